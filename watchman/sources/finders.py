"""The sources that look by themselves: transfer log, watcher and scanner."""

from __future__ import annotations

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
    """All three, on the same settings.

    A reload stops them and starts others: what happens in between is found by the scan that comes
    with every start, and stands in the log.
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
        """`submit_lines`, `marked` and `caught_up` are the transfer log's, see there; `submit_find`
        and `takes_finds` the scanner's, `submit_events` and `mounts_changed` the watcher's.
        """
        self._make_log = partial(
            TransferLog, submit=submit_lines, marked=marked, caught_up=caught_up
        )
        self._make_scanner = partial(Scanner, submit=submit_find, takes=takes_finds)
        self._make_watcher = partial(Watcher, submit=submit_events, mounts_changed=mounts_changed)

    def look(
        self,
        settings: Settings,
        *,
        excluded: Callable[[WatchSettings, str], object],
        ledgers: Mapping[str, Ledger],
    ) -> None:
        """Say what to look at; while stopped."""
        self._watches, paths = settings.watches, settings.proftpd.transfer_log
        watches = self._watches.values()
        self._log = self._make_log(paths, settings.proftpd.token)
        self._scanner = self._make_scanner(watches, excluded=excluded, ledgers=ledgers)
        self._watcher = self._make_watcher(watches, rescan=self._scanner.request, excluded=excluded)
        # The log is read to its end before a scan decides about what it tells of.
        self._sources: list[TransferLog | Watcher | Scanner] = [self._watcher, self._scanner]
        if paths:
            self._sources.insert(0, self._log)

    def start(self) -> None:
        """Begin; raises InotifyUnavailable."""
        for source in self._sources:
            source.start()

    def stop(self) -> None:
        for source in self._sources:
            source.stop()

    def join(self) -> None:
        for source in self._sources:
            source.join()

    def request(self, watch: str, subpath: str) -> None:
        """Have a subtree scanned as soon as possible; never blocks, from any thread."""
        if watch in self._watches:  # else its section has left the INI file
            self._scanner.request(watch, subpath)

    def request_later(self, watch: str, owner: int) -> None:
        """Have a watch scanned once more of an owner's files are taken, as `request` does."""
        if watch in self._watches:
            self._scanner.request_later(watch, {owner})

    def read_log(self) -> None:
        """Have the transfer log read soon; from any thread."""
        self._log.read()

    def status(self) -> dict[str, dict[str, Any]]:
        """What watcher and scanner say of each watch; from any thread."""
        watched = self._watcher.status()
        return {
            name: {**scanned, **watched.get(name, {})}
            for name, scanned in self._scanner.status().items()
        }

    def logs(self) -> dict[str, dict[str, Any]]:
        """How the reading of each transfer log goes; from any thread."""
        return self._log.status()
