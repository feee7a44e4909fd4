"""The files of one transfer log: the current one, and those that were rotated away.

A file is recognized by its inode and its content, never by its name or its times. logrotate may
give it any name, move it to another directory, compress it, or copy it and truncate the original:
`extension .log` makes `uploads.1.log`, `olddir` another directory, `dateext` a date.
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

#: Seconds without a new line after which a renamed file is closed, if we have no right to ask the
#: kernel whether a session still has it open.
FORSAKEN = 86400.0

#: Renamed files that are kept open. If there are more, the oldest is closed.
OLD = 50

#: Files that are remembered by their first line, so that none of them is taken for a new one.
HEADS = 500

#: Bytes that may be read without writing a mark, if their lines needed no decision. After a restart
#: that much is read again.
UNMARKED = 1 << 20

#: Files that are looked at in a search for one that has gone.
SEARCHED = 20_000


class Mark(NamedTuple):
    """How far a log was read; the journal keeps it.

    `at` is when that was (epoch), and `files` has the position in each open file. `last` is when
    ProFTPD wrote the latest line that was read, by its own clock (epoch). `heads` are hashes of the
    first lines of files that were read, or that were there before we began. `places` are
    directories in which renamed files were seen.
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
    """The open files of a log. It follows rotation by renaming and by copytruncate.

    Old sessions write on to the renamed file until they end, so several files are read at once.
    `others` are the other configured logs, whose lines have the same token. A file that could be
    theirs by its name is not taken for ours, unless it holds the bytes that we have read. The class
    is long because it has each way in which a log is rotated.
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
        #: The oldest first. The last is the file at `path`, once that could be opened.
        self._tails: list[Tail] = []
        #: Whether the log is read for the first time: then the lines that it has are skipped.
        self._first_sight = True
        #: The latest mark.
        self._marked: Mark | None = None
        #: `Mark.heads` and `Mark.places`, in the order in which they were seen.
        self._heads: dict[str, None] = {}
        self._places: dict[str, None] = {os.path.dirname(path): None}
        #: Why the file at `path` cannot be read, None if it can.
        self.problem: OSError | None = None
        #: When ProFTPD wrote the latest line that was read (epoch).
        self.last = 0
        #: Set when a file could not be found again: lines older than this (epoch) were read in it,
        #: so that the next file skips them. Else 0.
        self._since = 0
        #: When the file that could not be found was last read (epoch), None if none is lost.
        self.lost_since: float | None = None

    def close(self) -> None:
        while self._tails:
            self._tails.pop().close()

    def resume(self, values: Mapping[str, Any]) -> None:
        """Go on where the last run stopped, as its last mark says."""
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
                self._note_lost(mark.at)

    def mark(self) -> dict[str, Any] | None:
        """Return a mark of how far all files were read; None before `follow` has succeeded."""
        self._marked = self._mark()
        return self._marked and self._marked._asdict()

    def is_marked(self) -> bool:
        """Whether a restart could go on from the last mark, without reading much twice."""
        now, then = self._mark(), self._marked
        if now is None or then is None:
            return now is then
        if [p.inode for p in now.files] != [p.inode for p in then.files]:
            return False
        both = zip(now.files, then.files, strict=True)
        return all(0 <= a.offset - b.offset < UNMARKED for a, b in both)

    def unread(self) -> int:
        """Return how many bytes of the file at `path` were not read yet; any thread may ask."""
        tails = list(self._tails)
        try:
            status = os.stat(self.path)
        except OSError:
            return 0
        if not tails:
            return 0
        is_read = tails[-1].identity == (status.st_dev, status.st_ino)
        return max(0, status.st_size - (tails[-1].offset if is_read else 0))

    def _mark(self) -> Mark | None:
        if self._first_sight:
            return None
        self._remember_read()
        positions = tuple(tail.position for tail in self._tails)
        return Mark(time.time(), positions, self.last, tuple(self._heads), tuple(self._places))

    def follow(self) -> None:
        """Open the file at `path` if that is another one than before, or was truncated."""
        try:
            status = os.stat(self.path, follow_symlinks=False)
            current = self._tails[-1] if self._tails else None
            if current is None or current.identity != (status.st_dev, status.st_ino):
                self._change()
            elif not current.is_intact():
                self._begin_again(current)
            elif not current.offset:
                # Nothing was read of this file, so we cannot see whether it was truncated. If it
                # was, a copy has its lines.
                self._tails[-1:-1] = self._unseen_files(current)
            self.problem = None
        except OSError as e:
            self.problem = e
            if not isinstance(e, FileNotFoundError):
                return
        self._first_sight = False

    def tails(self) -> Iterator[Tail]:
        """Yield each file to be read. A renamed one that nobody writes any more is closed then."""
        for tail in list(self._tails):
            # Ask before the file is read. If nobody has it open for writing now, the read that
            # follows gets everything that will ever be in it.
            over, before = tail is not self._tails[-1] and self._is_over(tail), tail.offset
            yield tail
            if tail.offset != before:
                tail.idle_since = self._clock()
            if over:
                self._remember([tail.head])
                self._tails.remove(tail)
                tail.close()

    def _change(self) -> None:
        """Open the file at `path`, which is another one than before, and keep the old ones."""
        tail = Tail(self.path)
        if self._first_sight:
            tail.seek(tail.size)
            self._remember(head for _, head in self._heads_of(_files(self._places)))
            # An operator must see this, for it also happens when the mark was lost with the
            # journal, and then lines are skipped.
            logger.info(
                "Nothing is known of log %r. Reading it on from its end, at byte %d.",
                self.path,
                tail.size,
            )
        else:
            for directory in filter(None, (old.directory for old in self._tails)):
                # Later files may be put into the same directory.
                self._places[directory] = None
            if self._tails:
                logger.info("Log %r was rotated. Reading the old file on.", self.path)
            self._tails += self._unseen_files(tail)
            tail.since, self._since = self._since, 0
            tail.idle_since = self._clock()
        for known in self._tails:
            if known.identity == tail.identity:
                self._tails.remove(known)  # renamed there and back
                self._tails.append(known)
                tail.close()
                return
        self._tails.append(tail)

    def _unseen_files(self, current: Tail) -> list[Tail]:
        """Open and return files that were at `path` and were rotated away before we saw them."""
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
        """Read a truncated file from its start, and before that the rest of its copy.

        See copytruncate in logrotate(8).
        """
        logger.info("Log %r was truncated. Reading it from its start.", self.path)
        self._remember([current.head])
        copy = self._find(current.position)
        if copy is not None:
            self._tails.insert(-1, copy)
        elif current.offset:
            self._note_lost(time.time())
            self._since = 0  # the file was emptied, so all of its lines are new
        current.seek(0)

    def _note_lost(self, at: float) -> None:
        self.lost_since, self._since = self.lost_since or at, self.last
        logger.warning(
            "No file of log %r holds what was read last. Lines may be missing.", self.path
        )

    def _find(self, position: Position) -> Tail | None:
        """Return the file that was read to `position`, ready to be read on; None if not found."""
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
        """Yield files that may be the one with `position`, first by inode, then by first line.

        Search the log's directory and those where renamed files were seen. Then search the
        directories below that one and beside it, where logrotate's `olddir` may be.
        """
        here = os.path.dirname(self.path)
        around = (path for above in (here, os.path.dirname(here)) for path in _directories(above))
        for directories in (self._places, around):
            files = _files(directories)
            yield from (path for path, status in files if status.st_ino == position.inode)
            if position.offset:  # if nothing was read of it, there is no first line to compare
                yield from (path for path, head in self._heads_of(files) if head == position.head)

    def _heads_of(self, files: Iterable[_File]) -> Iterator[tuple[str, str]]:
        """Yield the files that begin with our token, each with the hash of its first line."""
        for path, _ in files:
            with contextlib.suppress(OSError):
                if head := head_of(path, self._token):
                    yield path, head

    def _is_ours(self, path: str) -> bool:
        """Whether a file's name is more like this log's name than like any other log's."""
        name = os.path.basename(path)

        def likeness(log: str) -> tuple[int, int]:
            log = os.path.basename(log)
            stem = os.path.splitext(log)[0]
            return len(log) * name.startswith(log), len(stem) * name.startswith(stem)

        return all(likeness(self.path) > likeness(other) for other in self._others)

    def _remember_read(self) -> None:
        # Not those that were not read yet: one may be copied and truncated before it is, and then
        # the copy, which begins with the same line, must be read.
        self._remember(tail.head for tail in self._tails if tail.offset)

    def _remember(self, heads: Iterable[str]) -> None:
        self._heads |= dict.fromkeys(head for head in heads if head)
        for head in list(islice(self._heads, max(0, len(self._heads) - HEADS))):
            del self._heads[head]

    def _is_over(self, tail: Tail) -> bool:
        """Whether a renamed file can be closed: no session has it open for writing."""
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
                # Only regular files are opened: to open a FIFO would be seen at its other end.
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
