"""What a hypothesis machine knows of files, writes and words, to hold against what watchman does.

A *write* is a change of content that the model makes; its number is what the file then holds, so a
file tells which write it is of. Everything that the model lets watchman do twice, or not at all, is
a flag of the write, and a comment says which sentence in docs/ allows it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from watchman.uploads.upload import FileState, Kind, Notification, Source

#: The clock that stamps files, see clock_getres(2).
CLOCK_REALTIME_COARSE = 5


@dataclass(eq=False)
class Write:
    """One content of one file, and what was said and seen of it."""

    number: int
    #: The ids under which its task was sent, and those under which it was ever listed.
    sent: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    #: Ids that a source was told with OK, for as long as the file lies where it was then.
    told: set[str] = field(default_factory=set)
    accepted: bool = False
    #: The source that decides has called it failed before it was accepted.
    failed: bool = False
    #: Where it lay when it was listed as failed, and whether nothing good was said of it since: of
    #: a name that is written again within a second, a line of the log may be about either.
    listed: Path | None = None
    gave_up: bool = False
    #: The source that decides has called it complete.
    confirmed: bool = False
    #: It has said so of its transfer, and not only of a rename.
    whole: bool = False
    #: Listed as failed is as good as sent: somebody may have called it failed.
    may_fail: bool = False
    #: It may be sent under a second id.
    may_repeat: bool = False
    #: Its mode or times were changed since it was written.
    touched: bool = False
    #: It was sent, and watchman may not know.
    in_doubt: bool = False
    #: Its directory was renamed into another watch.
    crossed: bool = False

    def may_be_new(self) -> None:
        """Watchman may take it for a write that it has not seen yet."""
        self.may_repeat = True
        self.failed = self.gave_up = False


@dataclass(frozen=True)
class Word:
    """A notification under way, and the write that it is about."""

    notification: Notification
    write: Write | None = None


@dataclass
class Transfer:
    """A file that a session, or with "" some other program, has open for writing."""

    fd: int
    path: Path
    write: Write
    session: str


class Session:
    """A process, as one of ProFTPD's sessions."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sleep", "1000"])
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        self.name = f"{self.process.pid}.{stat.rpartition(')')[2].split()[19]}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Files:
    """The files below the watches, and which write each holds."""

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.at: dict[Path, Write] = {}
        #: Every inode, by its device and number, with every ctime that one of them had.
        self._seen: set[tuple[int, int, int]] = set()
        #: Inodes of files that have changed since the clock was moved.
        self.fresh: set[int] = set()

    def number(self, path: Path) -> int:
        return int(path.read_bytes().split()[-1])

    def content(self, size: int) -> tuple[Write, bytes]:
        write = Write(len(self.writes))
        self.writes.append(write)
        return write, (b" %d" % write.number).rjust(size, b".")

    def put(self, path: Path, content: bytes, mode: str) -> None:
        """Write a file in one go, at a time that no file of its inode has borne.

        A write is noticed by its ctime; the kernel's clock ticks every few milliseconds.
        """
        while True:
            with path.open(mode) as file:
                file.write(content)
            if self.is_stamped(path):
                return
            if mode == "ab":
                os.truncate(path, path.stat().st_size - len(content))

    def wait_for_clock(self, path: Path) -> None:
        """Return when the kernel would stamp a file with another time than it bears."""
        while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= path.stat().st_ctime_ns:
            pass

    def is_stamped(self, path: Path) -> bool:
        status = path.stat()
        stamp = status.st_dev, status.st_ino, status.st_ctime_ns
        if stamp in self._seen:
            return False
        self._seen.add(stamp)
        self.fresh.add(status.st_ino)
        return True

    def move(self, old: Path, new: Path) -> None:
        old.rename(new)
        for path in [path for path in self.at if path == old or old in path.parents]:
            self.at[new / path.relative_to(old)] = self.at.pop(path)


def state(path: Path) -> FileState:
    return FileState.of(path.lstat())


def say(kind: Kind, path: Path | str, source: Source, **more: object) -> Notification:
    return Notification(kind, str(path), source, **more)  # type: ignore[arg-type]


def cut_last_batch(directory: Path, before: dict[str, int], share: float) -> None:
    """Cut what was written to a journal since `before` at a share of it, as a power failure may."""
    for segment in sorted(directory.iterdir(), reverse=True):
        size, old = segment.stat().st_size, before.get(segment.name, 0)
        if size > old:
            os.truncate(segment, old + int((size - old) * share))
            return


def sizes(directory: Path) -> dict[str, int]:
    with contextlib.suppress(FileNotFoundError):
        return {entry.name: entry.stat().st_size for entry in directory.iterdir()}
    return {}


def ledgers(spool: Path) -> list[int]:
    """What changes when a ledger is written; `spool` is where they lie."""
    return [path.stat().st_mtime_ns for path in sorted(spool.iterdir()) if path.is_file()]
