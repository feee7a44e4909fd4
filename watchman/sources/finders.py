"""The sources that look by themselves: transfer log, watcher and scanner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        submit_event: Callable[[Notification], None],
        submit_find: Callable[[Notification], bool],
        takes_finds: Callable[[int], bool],
        submit_lines: Submit,
        marked: Callable[[], Mapping[str, Any]],
        caught_up: Callable[[float], None],
        mounts_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`submit_lines`, `marked` and `caught_up` are the transfer log's, see there; `submit_find`
        and `takes_finds` the scanner's, `submit_event` and `mounts_changed` the watcher's.
        """
        self._submit_event = submit_event
        self._submit_find = submit_find
        self._takes_finds = takes_finds
        self._submit_lines = submit_lines
        self._marked = marked
        self._caught_up = caught_up
        self._mounts_changed = mounts_changed

    def look(
        self,
        settings: Settings,
        *,
        excluded: Callable[[WatchSettings, str], object],
        ledgers: Mapping[str, Ledger],
    ) -> None:
        """Say what to look at; while stopped."""
        watches = settings.watches.values()
        self._names = frozenset(settings.watches)
        self._scanner = Scanner(
            watches,
            submit=self._submit_find,
            takes=self._takes_finds,
            excluded=excluded,
            ledgers=ledgers,
        )
        self._watcher = Watcher(
            watches,
            submit=self._submit_event,
            rescan=self._scanner.request,
            excluded=excluded,
            mounts_changed=self._mounts_changed,
        )
        paths, token = settings.proftpd.transfer_log, settings.proftpd.token
        self._has_log = bool(paths)
        self._log = TransferLog(
            paths,
            token,
            submit=self._submit_lines,
            marked=self._marked,
            caught_up=self._caught_up,
        )

    def start(self) -> None:
        """Begin; raises InotifyUnavailable."""
        # The log is read to its end before a scan decides about what it tells of.
        if self._has_log:
            self._log.start()
        self._watcher.start()
        self._scanner.start()

    def stop(self) -> None:
        for source in (self._watcher, self._scanner, self._log):
            source.stop()

    def join(self) -> None:
        for source in (self._watcher, self._scanner, self._log):
            source.join()

    def request(self, watch: str, subpath: str) -> None:
        """Have a subtree scanned as soon as possible; never blocks, from any thread."""
        if watch in self._names:  # else its section has left the INI file
            self._scanner.request(watch, subpath)

    def request_later(self, watch: str, owner: int) -> None:
        """Have a watch scanned once more of an owner's files are taken, as `request` does."""
        if watch in self._names:
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
