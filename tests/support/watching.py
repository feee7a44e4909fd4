"""A watcher and a scanner at work, with a ledger in memory, for the tests of both."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from watchman.config.settings import DEFAULT_EXCLUDES, WatchSettings
from watchman.sources.inotify.watcher import Watcher
from watchman.sources.scan.scanner import Scanner
from watchman.uploads.upload import FileState, Kind, Notification, Source


@contextlib.contextmanager
def tree_too_deep() -> Iterator[str]:
    """Makes a directory with 3,000 levels of `d`, and a file `f` in each."""
    # Not in pytest's directory: it could not be removed there.
    directory = tempfile.mkdtemp()
    try:
        fd = os.open(directory, os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("d", dir_fd=fd)
            inner = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        yield directory
    finally:
        subprocess.run(["rm", "-rf", directory], check=True)


class MemoryLedger:
    """Decisions in a dict; a complete sweep keeps what it has seen."""

    def __init__(self) -> None:
        self.decided: dict[str, FileState] = {}
        #: How each sweep ended, None for one under way.
        self.sweeps: list[bool | None] = []
        #: Whether a sweep is of the root that is scanned then.
        self.is_of_root = True

    def known(self, subpath: str, state: FileState) -> bool:
        return self.decided.get(subpath) == state

    def doubts(self, _subpath: str, _state: FileState) -> bool:
        return False

    def holds(self, _subpath: str, _state: FileState, _sample: int) -> bool:
        return False

    def decide(self, root: Path, *subpaths: str) -> None:
        for subpath in subpaths:
            self.decided[subpath] = FileState.of(os.lstat(root / subpath))

    def sweep(self) -> MemorySweep:
        self.sweeps.append(None)
        return MemorySweep(self, len(self.sweeps) - 1)


class MemorySweep:
    def __init__(self, ledger: MemoryLedger, number: int) -> None:
        self._ledger = ledger
        self._number = number
        self._seen: dict[str, FileState] = {}

    def is_of(self, _root: int) -> bool:
        return self._ledger.is_of_root

    def unchanged(self, _name: str, _status: os.stat_result) -> bool:
        return False

    def known(self, subpath: str, state: FileState) -> bool:
        if not self._ledger.known(subpath, state):
            return False
        self._seen[subpath] = state
        return True

    def finish(self, *, complete: bool) -> None:
        self._ledger.sweeps[self._number] = complete
        if complete:
            self._ledger.decided = self._seen


class Clock:
    """Seconds that go on as they should, and further by `advance`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._clock() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


def excluded(_watch: WatchSettings, subpath: str) -> bool:
    """Names as by default, on any level."""
    return any(
        fnmatch.fnmatchcase(name, pattern)
        for name in set(subpath.split("/"))
        for pattern in DEFAULT_EXCLUDES
    )


class Heard:
    """What was submitted."""

    def __init__(self) -> None:
        self.notifications: list[Notification] = []
        #: Those of names that appeared, which are told of again when they are closed, most of them.
        self.appeared: list[Notification] = []
        #: While it is not set, submit() waits, as for a full inbox.
        self.has_room = threading.Event()
        self.has_room.set()
        #: Finds of an owner's that are taken.
        self.room = 1 << 30

    def submit(self, notification: Notification) -> bool:
        self.has_room.wait()
        if notification.source is Source.SCAN and not self.takes(notification.owner):
            return False
        (self.appeared if notification.appeared else self.notifications).append(notification)
        return True

    def takes(self, owner: int | None) -> bool:
        return len([n for n in self.notifications if n.owner == owner]) < self.room

    def paths(self, source: Source | None = None) -> set[str]:
        """Of files that are complete or renamed to there."""
        return {
            n.path
            for n in list(self.notifications)
            if not n.is_directory and source in (None, n.source)
        }

    def renamed(self) -> set[tuple[str, str]]:
        return {(n.old_path, n.path) for n in list(self.notifications) if n.kind is Kind.RENAMED}


class Watching(Heard):
    """A watcher whose rescans a scanner walks, both submitting to one list."""

    def __init__(
        self, watches: Sequence[WatchSettings], *, clock: Callable[[], float] | None = None
    ) -> None:
        super().__init__()
        self.rescans: list[tuple[str, str]] = []
        self.ledgers = {watch.name: MemoryLedger() for watch in watches}
        self.scanner = Scanner(
            watches,
            submit=self.submit,
            takes=self.takes,
            excluded=excluded,
            ledgers=self.ledgers,
        )
        clocks = {} if clock is None else {"clock": clock}
        self.watcher = Watcher(
            watches, submit=self._submit_all, rescan=self._rescan, excluded=excluded, **clocks
        )

    def _submit_all(self, notifications: Sequence[Notification]) -> None:
        for notification in notifications:
            self.submit(notification)

    def _rescan(self, watch: str, subpath: str) -> None:
        self.rescans.append((watch, subpath))
        self.scanner.request(watch, subpath)

    def start(self) -> Self:
        self.scanner.start()
        self.watcher.start()
        return self

    def stop(self) -> None:
        for thread in (self.watcher, self.scanner):
            thread.stop()
        for thread in (self.watcher, self.scanner):
            thread.join()
        assert not {t.name for t in threading.enumerate()} & {"watcher", "scanner"}

    def state(self, watch: str = "in") -> str:
        return str(self.watcher.status()[watch]["state"])

    def directories(self, watch: str = "in") -> int:
        return int(self.watcher.status()[watch]["directories"])
