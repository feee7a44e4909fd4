"""The files of one transfer log: the one that its path names, and those that it named before.

A file is known by its inode and by what it holds, never by its name or its times: logrotate may
call it anything, put it elsewhere, pack or copy it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Self

from watchman.sources.transferlog.tail import Position, Tail, head_of

logger = logging.getLogger(__name__)

#: Seconds after which a renamed file is let go of to which nothing has come, where we may not ask
#: who has it open.
FORSAKEN = 86400.0

#: Renamed files that are read at most; of more, the oldest are let go of.
OLD = 50

#: First lines of files that are remembered, so that none of them is taken for a new one.
HEADS = 500

#: Bytes that are read again at most because what they say needed no decision.
UNMARKED = 1 << 20

#: Files that are looked at, at most, where a file is searched for that has gone.
SEARCHED = 20_000


class Mark(NamedTuple):
    """Where the files of a log were read to, when that was, and when ProFTPD wrote the latest line
    of them by its own clock (epoch); the heads of all files that were read or are none of ours to
    read, and the directories where renamed files were.
    """

    at: float
    files: tuple[Position, ...]
    last: int = 0
    heads: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    @classmethod
    def decode(cls, values: Mapping[str, Any]) -> Self:
        known = {name: values[name] for name in cls._fields if name in values}
        return cls(**known | {"files": tuple(Position(*file) for file in values["files"])})


class LogFiles:
    """The open files of a log; rotation by renaming and by copytruncate is followed.

    `others` are the other configured logs, whose files have the same token: one that may be theirs
    by its name is not taken for ours, unless it holds what was read of ours.
    """

    def __init__(
        self,
        path: str,
        token: bytes,
        others: Collection[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.path = path
        self._token = token
        self._others = [other for other in others if other != path]
        #: The oldest first. What the path names is the last, once it could be opened.
        self._tails: list[Tail] = []
        #: Whether we begin: what is there now is not ours to read.
        self._first_sight = True
        #: What was marked last.
        self._marked: Mark | None = None
        #: In order of sight.
        self._heads: dict[str, None] = {}
        self._places: dict[str, None] = {os.path.dirname(path): None}
        #: Why the path cannot be read.
        self.problem: OSError | None = None
        #: When ProFTPD wrote the latest line that was read (epoch).
        self.last = 0
        #: Before when lines were read in a file that could not be found again; 0 if all were.
        self._since = 0
        #: Until when (epoch) that one was read.
        self.lost_since: float | None = None

    def close(self) -> None:
        while self._tails:
            self._tails.pop().close()

    def resume(self, values: Mapping[str, Any]) -> None:
        """Go on where the last run stopped, by its last mark."""
        self._first_sight = False
        self._marked = mark = Mark.decode(values)
        self.last = mark.last
        self._heads = dict.fromkeys(mark.heads)
        self._places |= dict.fromkeys(mark.places)
        for position in mark.files:
            tail = self._find(position)
            if tail is not None:
                self._tails.append(tail)
            elif position.offset:
                self._miss(mark.at)

    def mark(self) -> dict[str, Any] | None:
        """Return where all files were read to; None before the first could be looked at."""
        self._marked = self._mark()
        return self._marked and self._marked._asdict()

    def is_marked(self) -> bool:
        """Whether it would do no harm to go on from the last mark."""
        now, then = self._mark(), self._marked
        if now is None or then is None:
            return now is then
        if [p.inode for p in now.files] != [p.inode for p in then.files]:
            return False
        both = zip(now.files, then.files, strict=True)
        return all(0 <= a.offset - b.offset < UNMARKED for a, b in both)

    def _mark(self) -> Mark | None:
        if self._first_sight:
            return None
        self._remember_read()
        positions = tuple(tail.position for tail in self._tails)
        return Mark(time.time(), positions, self.last, tuple(self._heads), tuple(self._places))

    def follow(self) -> None:
        """Open what the path names, should it be another file now."""
        try:
            status = os.stat(self.path, follow_symlinks=False)
            current = self._tails[-1] if self._tails else None
            if current is None or current.identity != (status.st_dev, status.st_ino):
                self._change()
            elif not current.is_intact():
                self._begin_again(current)
            elif not current.offset:
                # It does not show whether it was truncated.
                self._tails[-1:-1] = self._passed(current)
            self.problem = None
        except OSError as e:
            self.problem = e
            if not isinstance(e, FileNotFoundError):
                return
        self._first_sight = False

    def tails(self) -> Iterator[Tail]:
        """Yield each file, and after it was read let go of it if nobody writes it any more."""
        for tail in list(self._tails):
            # Asked before it is read: what was written until then is read, and no more comes.
            over, before = tail is not self._tails[-1] and self._is_over(tail), tail.offset
            yield tail
            if tail.offset != before:
                tail.idle_since = self._clock()
            if over:
                self._remember([tail.head])
                self._tails.remove(tail)
                tail.close()

    def _change(self) -> None:
        tail = Tail(self.path)
        if self._first_sight:
            tail.seek(tail.size)
            self._remember(head for _, head in self._heads_of(_files(self._places)))
            # Also when the only word of where it was read to has been lost with the journal.
            logger.info(
                "Nothing is known of log %r. Reading it on from its end, at byte %d.",
                self.path,
                tail.size,
            )
        else:
            for directory in filter(None, (old.directory for old in self._tails)):
                # Where it is now, others may come to be.
                self._places[directory] = None
            if self._tails:
                logger.info("Log %r was rotated. Reading the old file on.", self.path)
            self._tails += self._passed(tail)
            tail.since, self._since = self._since, 0
            tail.idle_since = self._clock()
        for known in self._tails:
            if known.identity == tail.identity:
                self._tails.remove(known)  # renamed there and back
                self._tails.append(known)
                tail.close()
                return
        self._tails.append(tail)

    def _passed(self, current: Tail) -> list[Tail]:
        """Return files that the path named for a while without our seeing it."""
        self._remember_read()
        opened = {tail.identity for tail in [*self._tails, current]}
        files = (f for f in _files(self._places) if (f[1].st_dev, f[1].st_ino) not in opened)
        found = []
        for path, head in self._heads_of(files):
            if head not in self._heads and head != current.head and self._is_ours(path):
                self._remember([head])
                with contextlib.suppress(OSError):
                    found.append(Tail(path))
                    found[-1].idle_since = self._clock()
        return found

    def _begin_again(self, current: Tail) -> None:
        """Read a truncated file from its start, and before that the rest that was copied."""
        logger.info("Log %r was truncated. Reading it from its start.", self.path)
        self._remember([current.head])
        copy = self._find(current.position)
        if copy is not None:
            self._tails.insert(-1, copy)
        elif current.offset:
            self._miss(time.time())
            self._since = 0  # what is there now was written since
        current.seek(0)

    def _miss(self, at: float) -> None:
        self.lost_since, self._since = self.lost_since or at, self.last
        logger.warning(
            "No file of log %r holds what was read last. Lines may be missing.", self.path
        )

    def _find(self, position: Position) -> Tail | None:
        """Return the file that was read to a position."""
        for path in self._candidates(position):
            with contextlib.suppress(OSError):
                tail = Tail(path)
                if tail.holds(position):
                    tail.seek(position.offset)
                    tail.idle_since = self._clock()
                    self._places[os.path.dirname(path)] = None
                    return tail
                tail.close()
        return None

    def _candidates(self, position: Position) -> Iterator[str]:
        """Yield files that may be it, by inode, else by what they hold: of those where the log is
        and where renamed ones were; then of those below its directory and beside it, as of
        logrotate's olddir.
        """
        here = os.path.dirname(self.path)
        around = (path for above in (here, os.path.dirname(here)) for path in _directories(above))
        for directories in (self._places, around):
            files = _files(directories)
            yield from (path for path, status in files if status.st_ino == position.inode)
            if position.offset:  # of nothing every file begins with it
                yield from (path for path, head in self._heads_of(files) if head == position.head)

    def _heads_of(self, files: Iterable[_File]) -> Iterator[tuple[str, str]]:
        """Yield files that begin with our token, and the hash of their first line."""
        for path, _ in files:
            with contextlib.suppress(OSError):
                if head := head_of(path, self._token):
                    yield path, head

    def _is_ours(self, path: str) -> bool:
        """Whether a file's name is more like that of this log than like another's."""
        name = os.path.basename(path)

        def likeness(log: str) -> tuple[int, int]:
            log = os.path.basename(log)
            stem = os.path.splitext(log)[0]
            return len(log) * name.startswith(log), len(stem) * name.startswith(stem)

        return all(likeness(self.path) > likeness(other) for other in self._others)

    def _remember_read(self) -> None:
        # What was not begun may be gone before it is, and then be in a copy alone.
        self._remember(tail.head for tail in self._tails if tail.offset)

    def _remember(self, heads: Iterable[str]) -> None:
        self._heads |= dict.fromkeys(head for head in heads if head)
        for head in list(islice(self._heads, max(0, len(self._heads) - HEADS))):
            del self._heads[head]

    def _is_over(self, tail: Tail) -> bool:
        """Whether no session writes a renamed file any more."""
        if len(self._tails) > OLD and tail is self._tails[0]:
            logger.warning("Log %r has too many old files. Letting go of the oldest.", self.path)
            return True
        is_written = tail.has_writers()
        if is_written is None:
            return self._clock() - tail.idle_since > FORSAKEN
        return not is_written


_File = tuple[str, os.stat_result]


def _files(directories: Iterable[str]) -> list[_File]:
    """Return the regular files in directories, the oldest first."""
    found: list[_File] = []
    for directory in dict.fromkeys(directories):
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            for entry in islice(entries, SEARCHED - len(found)):
                # Nothing but a regular file is opened: a FIFO would have an effect.
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found.append((entry.path, status))
    return sorted(found, key=lambda file: file[1].st_mtime)


def _directories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
