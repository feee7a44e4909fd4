"""Who spoke of what: to tell of a source that should have spoken and is silent, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from watchman.config.settings import Settings, WatchSettings
from watchman.uploads.upload import Kind, Notification, Source

#: Uploads in a row without ProFTPD's word after which it counts as silent: where it has never
#: spoken since the start; and where it has, for then they may well be other programs' writes.
NEVER, NO_MORE = 3, 20

#: Uploads that the log told of and whose start no hook did, beyond what a restart may explain.
UNSTARTED = 10


@dataclass(slots=True)
class Counts:
    """Of one watch since the start, or since the INI file was read again.

    `told` counts words about its files by ProFTPD's source, `unconfirmed` uploads that went on
    without one; `silence` those since the last word of the source that decides, and `hinted` those
    of them that hooks have called complete.
    """

    told: Counter[Source] = field(default_factory=Counter)
    unconfirmed: int = 0
    silence: int = 0
    hinted: int = 0


class Crosscheck:
    """Counts in the dispatcher's thread; any thread may ask."""

    def __init__(self) -> None:
        #: By source and kind, since the start.
        self._said: Counter[tuple[Source, Kind]] = Counter()
        self._watches: dict[str, Counts] = {}

    def forget(self) -> None:
        """Begin anew, but for the sums: other settings, other expectations."""
        self._watches = {}

    def hear(self, notification: Notification) -> None:
        """A source has spoken."""
        self._said[notification.source, notification.kind] += 1

    def hear_of(self, watch: str, source: Source, *, decisive: bool) -> None:
        """A source of ProFTPD's has spoken of an upload below a watch."""
        counts = self._counts(watch)
        counts.told[source] += 1
        if decisive:
            counts.silence = counts.hinted = 0

    def miss(self, watch: str, source: Source, *, hinted: bool) -> None:
        """An upload, last spoken of by `source`, has waited for ProFTPD's word in vain."""
        counts = self._counts(watch)
        counts.unconfirmed += 1
        # What a scan finds may have come while nobody listened.
        if hinted or source is Source.INOTIFY:
            counts.silence += 1
            counts.hinted += hinted

    def said(self, source: str) -> dict[str, int]:
        """Return how often a source has said what."""
        counts = {kind.value: self._said[Source(source), kind] for kind in Kind}
        return {kind: count for kind, count in counts.items() if count}

    def status(self, watch: str) -> dict[str, Any]:
        """Return the sums of a watch."""
        counts = self._watches.get(watch, Counts())
        told = {source.value: counts.told[source] for source in (Source.HOOK, Source.LOG)}
        return {"told": told, "unconfirmed": counts.unconfirmed}

    def warnings(self, settings: Settings, logs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield which source should have spoken and did not, why that may be, and what to do."""
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
