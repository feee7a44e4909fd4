"""Counts what each source says, to warn of a source that should speak and does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from watchman.config.settings import Settings, WatchSettings
from watchman.uploads.upload import Kind, Notification, Source

#: Uploads of a watch in a row without ProFTPD's word, after which its source counts as silent.
#: NEVER is for a source that has not spoken of the watch since the start. NO_MORE is for one that
#: has: there the files may well be other programs'.
NEVER, NO_MORE = 3, 20

#: Uploads in the log whose start no hook has told, before we warn. A few are normal after a restart
#: of watchman.
UNSTARTED = 10


@dataclass(slots=True)
class Counts:
    """The counts of one watch since the start, or since the INI file was read again.

    `told` counts, by source, what ProFTPD has said of the watch's files.
    `unconfirmed` counts the uploads that have waited in vain for ProFTPD's word.
    `silence` counts those of them since the source that decides has last spoken of the watch.
    `hinted` counts those of the latter that a hook has called complete.
    """

    told: Counter[Source] = field(default_factory=Counter)
    unconfirmed: int = 0
    silence: int = 0
    hinted: int = 0


class Crosscheck:
    """Counts what sources say and do not say.

    The dispatcher's thread counts. Any thread may ask.
    """

    def __init__(self) -> None:
        #: By source and kind, how many notifications there were since the start.
        self._said: Counter[tuple[Source, Kind]] = Counter()
        self._watches: dict[str, Counts] = {}

    def forget(self) -> None:
        """Forget the counts of watches: under other settings, other sources should speak."""
        self._watches = {}

    def hear(self, notification: Notification) -> None:
        """Count a notification."""
        self._said[notification.source, notification.kind] += 1

    def hear_of(self, watch: str, source: Source, *, decisive: bool) -> None:
        """Count what a source of ProFTPD's says of an upload below a watch.

        `decisive` says that it is the source that decides.
        """
        counts = self._counts(watch)
        counts.told[source] += 1
        if decisive:
            counts.silence = counts.hinted = 0

    def miss(self, watch: str, source: Source, *, hinted: bool) -> None:
        """Count an upload that has waited in vain for ProFTPD's word.

        `source` was the last to speak of it. `hinted` says that a hook has called it complete.
        """
        counts = self._counts(watch)
        counts.unconfirmed += 1
        # A scan may find what came while watchman was down, so that does not count.
        if hinted or source is Source.INOTIFY:
            counts.silence += 1
            counts.hinted += hinted

    def said(self, source: str) -> dict[str, int]:
        """Return how many notifications of each kind a source has sent."""
        counts = {kind: self._said[Source(source), kind] for kind in Kind}
        return {kind: count for kind, count in counts.items() if count}

    def status(self, watch: str) -> dict[str, Any]:
        """Return the counts of a watch."""
        counts = self._watches.get(watch, Counts())
        told = {source: counts.told[source] for source in (Source.HOOK, Source.LOG)}
        return {"told": told, "unconfirmed": counts.unconfirmed}

    def warnings(self, settings: Settings, logs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield which source should have spoken and did not, why that may be, and what to do.

        `logs` is what the source of the transfer log says of each log.
        """
        for watch in settings.watches.values():
            counts = self._watches.get(watch.name, Counts())
            if not watch.proftpd and counts.told:
                words = " and ".join(f"{n} by {source}" for source, n in counts.told.items())
                yield (
                    f"ProFTPD writes below watch {watch.name} ({words}), which has proftpd = no:"
                    " what inotify finds there is sent before ProFTPD says whether it is whole;"
                    " set proftpd = yes"
                )
            elif watch.proftpd and settings.proftpd.transfer_log:
                yield from self._silent_log(watch, counts, logs)
            elif watch.proftpd:
                yield from self._silent_hooks(watch, counts)
        if settings.proftpd.transfer_log:
            yield from self._missing_starts()

    def _counts(self, watch: str) -> Counts:
        return self._watches.setdefault(watch, Counts())

    def _silent_hooks(self, watch: WatchSettings, counts: Counts) -> Iterator[str]:
        if counts.silence < (NO_MORE if counts.told else NEVER):
            return
        if not self._spoke(Source.HOOK):
            why = "DefaultRoot may lock users in, where no hook can run (use the transfer log);"
            why += " or mod_exec is not loaded, ExecEngine is off, or hooks use another socket"
            what = "watchman check --proftpd FILE says which, and hooks complain in syslog"
        elif not self._said[Source.HOOK, Kind.STARTED]:
            why = "hooks run before a login, so DefaultRoot locks users in, where none can run"
            what = "use the transfer log"
        else:
            why = "DefaultRoot may lock these users in, where no hook can run"
            what = "use the transfer log, unless other programs wrote them"
        yield f"{_in_vain(watch, counts, 'a hook')}: {why}; {what}"

    def _silent_log(
        self, watch: WatchSettings, counts: Counts, logs: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[str]:
        if counts.hinted < NEVER and counts.silence < (NO_MORE if counts.told else NEVER):
            return
        missing = [path for path, log in logs.items() if log["missing"]]
        refused = sum(log["refused"] for log in logs.values())
        if missing:
            why = f"there is no {missing[0]}, so ExtendedLog names another file or its directory"
            why += " is not there"
        elif refused:
            why = f"{refused} lines are not as watchman.conf has them, so LogFormat or token differ"
        else:
            why = "ExtendedLog may be missing for their server"
        what = "watchman check --proftpd FILE says which"
        if not counts.hinted:
            what += ", unless other programs wrote them"
        yield f"{_in_vain(watch, counts, 'the transfer log')}: {why}; {what}"

    def _missing_starts(self) -> Iterator[str]:
        logged = self._said[Source.LOG, Kind.COMPLETED] + self._said[Source.LOG, Kind.FAILED]
        started = self._said[Source.HOOK, Kind.STARTED]
        never = self._spoke(Source.HOOK) and not started and logged >= NEVER
        if never or (started and logged - started >= UNSTARTED):
            yield (
                f"the transfer log has told of {logged - started} uploads, and no hook said that"
                " they had started: DefaultRoot may lock these users in, where no hook can run;"
                " then nobody can tell whether their sessions die"
            )

    def _spoke(self, source: Source) -> bool:
        return any(self._said[source, kind] for kind in Kind)


def _in_vain(watch: WatchSettings, counts: Counts, whom: str) -> str:
    return f"{counts.silence} uploads in a row below watch {watch.name} came without {whom}"
