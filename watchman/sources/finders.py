"""The sources that need nobody to call them: transfer log, watcher and scanner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from watchman.config.settings import Settings, WatchSettings
from watchman.sources.inotify.watcher import Watcher
from watchman.sources.scan.scan import Ledger
from watchman.sources.scan.scanner import Scanner
from watchman.sources.transferlog.follower import Submit, TransferLog
from watchman.uploads.upload import Notification


class Finders:
    """The transfer log, the watcher and the scanner, started and stopped together.

    A reload stops all three and starts new ones. Files that arrive in between are not lost: every
    start scans the watches, and the transfer log is read on from where it was left.
    """

    def __init__(
        self,
        *,
        submit_events: Callable[[Sequence[Notification]], None],
        submit_find: Callable[[Notification], bool],
        takes_finds: Callable[[int], bool],
        submit_lines: Submit,
        marked: Callable[[], Mapping[str, Any]],
        caught_up: Callable[[float], None],
        mounts_changed: Callable[[], None],
    ) -> None:
        """Take the callables that each source is given; each source's class describes its own.

        `TransferLog`: `submit_lines`, `marked` and `caught_up`. `Scanner`: `submit_find` and
        `takes_finds`. `Watcher`: `submit_events` and `mounts_changed`.
        """
        self._make_log = partial(
            TransferLog, submit=submit_lines, marked=marked, caught_up=caught_up
        )
        self._make_scanner = partial(
            Scanner, submit=submit_find, takes=takes_finds, ended=self._count_scan
        )
        self._make_watcher = partial(
            Watcher,
            submit=submit_events,
            mounts_changed=mounts_changed,
            overflowed=self._count_overflow,
        )
        #: How often events were lost since the start, and by watch how often it was scanned.
        self.overflows = 0
        self._scans: Counter[str] = Counter()

    def look(
        self,
        settings: Settings,
        *,
        excluded: Callable[[WatchSettings, str], object],
        ledgers: Mapping[str, Ledger],
    ) -> None:
        """Make the sources for these settings. Call it only while they are stopped."""
        self._watches, paths = settings.watches, settings.proftpd.transfer_log
        watches = self._watches.values()
        self._log = self._make_log(paths, settings.proftpd.token)
        self._scanner = self._make_scanner(watches, excluded=excluded, ledgers=ledgers)
        self._watcher = self._make_watcher(watches, rescan=self._scanner.request, excluded=excluded)
        # The log starts first and is read to its end. A scan that came earlier would take a failed
        # upload for a whole file.
        self._sources: list[TransferLog | Watcher | Scanner] = [self._watcher, self._scanner]
        if paths:
            self._sources.insert(0, self._log)

    def start(self) -> None:
        """Start all sources; raises InotifyUnavailable."""
        for source in self._sources:
            source.start()

    def stop(self) -> None:
        for source in self._sources:
            source.stop()

    def join(self) -> None:
        for source in self._sources:
            source.join()

    def is_alive(self) -> bool:
        return all(source.is_alive() for source in self._sources)

    def request(self, watch: str, subpath: str) -> None:
        """Ask for a scan of a subtree as soon as possible. Never blocks; any thread may call it."""
        if watch in self._watches:  # a reload may have removed its section
            self._scanner.request(watch, subpath)

    def request_later(self, watch: str, owner: int) -> None:
        """Ask for a scan of a watch for when more files of `owner` are taken, as `request` does."""
        if watch in self._watches:
            self._scanner.request_later(watch, {owner})

    def read_log(self) -> None:
        """Ask for the transfer log to be read soon; any thread may call it."""
        self._log.read()

    def status(self) -> dict[str, dict[str, Any]]:
        """Return what watcher and scanner report of each watch; any thread may call it."""
        watched = self._watcher.status()
        return {
            name: {**scanned, "scans": self._scans[name], **watched.get(name, {})}
            for name, scanned in self._scanner.status().items()
        }

    def _count_overflow(self) -> None:
        self.overflows += 1

    def _count_scan(self, watch: str) -> None:
        self._scans[watch] += 1

    def logs(self) -> dict[str, dict[str, Any]]:
        """Return the status of each transfer log; any thread may call it."""
        return self._log.status()
