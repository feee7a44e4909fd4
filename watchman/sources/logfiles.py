"""The files of one transfer log: the one that its path names, and those that it named before."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Self

from watchman.sources.tail import Position, Tail

logger = logging.getLogger(__name__)

#: Seconds after which a renamed file is let go of that nobody writes to, where we may not ask who
#: has it open.
FORSAKEN = 86400.0

#: Renamed files that are read at most; of more, the oldest are let go of.
OLD = 50

#: Seconds by which times of files and of records may differ.
SLACK = 2.0


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the files of a log were read to, and when that was (epoch)."""

    at: float
    positions: tuple[Position, ...]

    def encode(self) -> dict[str, Any]:
        return {"at": self.at, "files": [position.encode() for position in self.positions]}

    @classmethod
    def decode(cls, values: dict[str, Any]) -> Self:
        return cls(values["at"], tuple(Position.decode(values) for values in values["files"]))


class LogFiles:
    """The open files of a log; rotation by renaming and by copytruncate is followed.

    `others` are the other configured logs: their files are none of ours.
    """

    def __init__(self, path: str, others: Collection[str] = ()) -> None:
        self.path = path
        self._others = [other for other in others if other.startswith(path) and other != path]
        #: The oldest first. What the path names is the last, once it could be opened.
        self._tails: list[Tail] = []
        #: Whether we begin: what is there now is not ours to read.
        self._first_sight = True
        #: When the path was last looked at (epoch); files renamed since were not seen.
        self._looked = 0.0
        #: Before which time (epoch) records of a file just found were read in another one.
        self._since = 0.0
        #: Why the path cannot be read.
        self.problem: OSError | None = None

    def close(self) -> None:
        while self._tails:
            self._tails.pop().close()

    def resume(self, mark: Mark) -> None:
        """Go on where the last run stopped."""
        self._first_sight = False
        self._looked = mark.at
        for position in mark.positions:
            tail = self._find(position)
            if tail is not None:
                self._tails.append(tail)
            elif position.offset:
                # What is left of them may be in a file that has the newer lines only.
                self._since = mark.at - SLACK
                logger.warning(
                    "No file of log %r holds what was read last. Lines may be missing.", self.path
                )

    def mark(self) -> Mark | None:
        """Return where all files were read to; None before the first could be looked at."""
        if self._first_sight:
            return None
        return Mark(self._looked, tuple(tail.position for tail in self._tails))

    def follow(self) -> None:
        """Open what the path names, should it be another file now."""
        looked = time.time()
        try:
            status = os.stat(self.path, follow_symlinks=False)
            if not self._is_current(status):
                self._change()
            elif not self._tails[-1].is_intact():
                self._begin_again(self._tails[-1])
            elif not self._tails[-1].offset:
                # It does not show whether it was truncated.
                self._tails[-1:-1] = self._passed(self._tails[-1])
            self.problem = None
        except OSError as e:
            self.problem = e
            if not isinstance(e, FileNotFoundError):
                return
        self._first_sight = False
        self._looked = looked

    def tails(self) -> Iterator[Tail]:
        """Yield each file, and after it was read let go of it if nobody writes it any more."""
        for tail in list(self._tails):
            # Asked before it is read: what was written until then is read, and no more comes.
            over = tail is not self._tails[-1] and self._is_over(tail)
            yield tail
            if over:
                self._tails.remove(tail)
                tail.close()

    def _is_current(self, status: os.stat_result) -> bool:
        if not self._tails:
            return False
        current = self._tails[-1]
        return (current.inode, current.device) == (status.st_ino, status.st_dev)

    def _change(self) -> None:
        tail = Tail(self.path)
        if self._first_sight:
            tail.seek(tail.size)
            # Also when the only word of where it was read to has been lost with the journal.
            logger.info(
                "Nothing is known of log %r. Reading it on from its end, at byte %d.",
                self.path,
                tail.size,
            )
        else:
            if self._tails:
                logger.info("Log %r was rotated. Reading the old file on.", self.path)
            tail.since, self._since = self._since, 0.0
            self._tails += self._passed(tail)
        for known in self._tails:
            if known.inode == tail.inode and known.device == tail.device:
                self._tails.remove(known)  # renamed there and back
                self._tails.append(known)
                tail.close()
                return
        self._tails.append(tail)

    def _passed(self, current: Tail) -> list[Tail]:
        """Return files that the path named for a while since it was last looked at."""
        known = {tail.inode for tail in [current, *self._tails]}
        found = []
        for path, status in self._siblings():
            if status.st_mtime < self._looked - SLACK or status.st_ino in known:
                continue
            with contextlib.suppress(OSError):
                tail = Tail(path)
                # A file that was read before and is called otherwise now, or the copy of one, be it
                # of that which we begin to read.
                tail.since = self._looked - SLACK
                was_read = any(tail.holds(t.position) for t in self._tails if t.offset)
                # A copy that is only begun shows what it is when it is looked at again.
                shows_nothing = not tail.size and current in self._tails
                if was_read or shows_nothing or tail.begins_as(current):
                    tail.close()
                else:
                    found.append(tail)
        return found

    def _begin_again(self, current: Tail) -> None:
        """Read a truncated file from its start, and before that the rest that was copied."""
        logger.info("Log %r was truncated. Reading it from its start.", self.path)
        copy = self._find(current.position)
        if copy is not None:
            self._tails.insert(-1, copy)
        elif current.offset:
            logger.warning("No copy of log %r was found. Lines may be missing.", self.path)
        current.seek(0)

    def _find(self, position: Position) -> Tail | None:
        """Return the file that was read to a position: by its inode, else by its bytes."""
        # Of the others the newest first, and packed ones last: they take time.
        siblings = self._siblings()
        siblings.sort(key=lambda sibling: -sibling[1].st_mtime)
        siblings.sort(key=lambda sibling: sibling[0].endswith(".gz"))
        siblings.sort(key=lambda sibling: sibling[1].st_ino != position.inode)
        for path, status in siblings:
            if not position.offset and status.st_ino != position.inode:
                break  # of nothing every file begins with it
            try:
                tail = Tail(path)
            except FileNotFoundError:
                return self._find(position)  # packed meanwhile
            except OSError:
                continue
            if tail.holds(position):
                tail.seek(position.offset)
                return tail
            tail.close()
        return None

    def _siblings(self) -> list[tuple[str, os.stat_result]]:
        """Return the log and what it was renamed or copied to, the longest unwritten first."""
        directory, name = os.path.split(self.path)
        found: list[tuple[str, os.stat_result]] = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(directory):
                if not entry.name.startswith(name) or entry.path.startswith(tuple(self._others)):
                    continue
                with contextlib.suppress(OSError):
                    found.append((entry.path, entry.stat(follow_symlinks=False)))
        return sorted(found, key=lambda sibling: sibling[1].st_mtime)

    def _is_over(self, tail: Tail) -> bool:
        """Whether no session writes a renamed file any more."""
        if len(self._tails) > OLD and tail is self._tails[0]:
            logger.warning("Log %r has too many old files. Letting go of the oldest.", self.path)
            return True
        # What was written since would be taken for a file that we have not seen yet.
        idle = self._looked - tail.written()
        return idle > FORSAKEN or (idle > SLACK and tail.has_writers() is False)
