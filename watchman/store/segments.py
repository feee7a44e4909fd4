"""The journal's files: where they are, how a line is found again, and how files get smaller."""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from watchman.config.files import fsync_directory, made_with, make_directory
from watchman.errors import JournalCorrupt
from watchman.store.positions import Positions
from watchman.store.records import decode, encode

#: Bits of a position that hold the offset; the segment's number stands above them.
OFFSET_BITS = 40
OFFSET = (1 << OFFSET_BITS) - 1

#: Segments kept open for reading.
OPEN_SEGMENTS = 16

SUFFIX = ".jsonl"

#: The first line of a segment. Its `before` is the number of the segment before and how many bytes
#: that has: so we find out if a disk loses some. A rewritten segment also has `holds`, the number
#: of bytes after this line.
HEAD = {"event": "segment"}

#: The version of the records that we write, and the newest that we read. It is in the first line of
#: each segment. A segment without it has version 1.
VERSION = 1

#: The end of a segment's name while it is being rewritten.
UNFINISHED = ".new"


class Segments:
    """Files `00000001.jsonl`, ... in a directory, and settled ones in another, the history.

    A position is a segment's number and the offset at which a line was first written. It names the
    line for as long as that is kept, even if the lines around it are dropped. One thread changes
    the files; any thread may read.
    """

    def __init__(self, directory: str, history: str) -> None:
        self.directory = directory
        self._history = history
        #: Guards what is below. A read holds it, so that its descriptor is not closed meanwhile.
        self._reading = threading.Lock()
        self._readers: OrderedDict[int, int] = OrderedDict()
        #: By rewritten segment, the offsets of its lines: first their old ones, then the new ones.
        self._moved: dict[int, tuple[array[int], array[int]]] = {}

    def make(self) -> None:
        """Make the directories, and remove what a crash has left of a rewrite."""
        for directory in (self.directory, self._history):
            make_directory(directory, 0o700)
        for name in os.listdir(self.directory):
            if name.endswith(UNFINISHED):
                os.unlink(os.path.join(self.directory, name))

    def numbers(self) -> list[int]:
        """Return the numbers of the segments outside the history, the oldest first."""
        return _numbers(self.directory)

    def highest(self) -> int:
        """Return the highest number of a segment, also in the history; 0 if there is none."""
        return max([*self.numbers(), *_numbers(self._history)], default=0)

    def path(self, segment: int) -> str:
        return os.path.join(self.directory, f"{segment:08}{SUFFIX}")

    def lengths(self) -> dict[int, int]:
        """Return by segment how many bytes it must have, as far as first lines say so."""
        lengths: dict[int, int] = {}
        for segment in self.numbers():
            line, record = self._head(segment)
            if "holds" in record:
                lengths[segment] = len(line) + record["holds"]
            if "before" in record:
                # If that segment was rewritten, its own `holds` counts.
                lengths.setdefault(*record["before"])
        return lengths

    def version(self) -> int:
        """Return the newest version among the segments."""
        heads = (self._head(segment)[1] for segment in self.numbers())
        return max((head.get("version", VERSION) for head in heads), default=VERSION)

    def is_rewritten(self, segment: int) -> bool:
        return "holds" in self._head(segment)[1]

    def _head(self, segment: int) -> tuple[bytes, dict[str, Any]]:
        """Return the first line of a segment, and its record, {} if it is not a HEAD."""
        with open(self.path(segment), "rb") as file:
            line = file.readline()
        with contextlib.suppress(JournalCorrupt, ValueError):
            record = decode(line)
            if record.get("event") == HEAD["event"]:
                return line, record
        return line, {}

    def size(self, segment: int) -> int:
        return os.path.getsize(self.path(segment))

    def line(self, position: int) -> bytes:
        """Return the line at a position, or raise JournalCorrupt or OSError."""
        segment, size = position >> OFFSET_BITS, 2048
        while True:
            with self._reading:
                offset = self._offset(position)
                data = os.pread(self._reader(segment), size, offset)
            end = data.find(b"\n") + 1
            if end:
                return data[:end]
            if len(data) < size:
                raise JournalCorrupt(f"no record at offset {offset} of {self.path(segment)}")
            size *= 4

    def _offset(self, position: int) -> int:
        """Return the offset that a line has now. Raises JournalCorrupt if it was dropped."""
        offset = position & OFFSET
        moved = self._moved.get(position >> OFFSET_BITS)
        if moved is None:
            return offset
        then, now = moved
        at = bisect.bisect_left(then, offset)
        if at == len(then) or then[at] != offset:
            raise JournalCorrupt(f"nothing is kept of position {position}")
        return now[at]

    def _reader(self, segment: int) -> int:
        fd = self._readers.get(segment, -1)
        if fd < 0:
            fd = os.open(self.path(segment), os.O_RDONLY | os.O_CLOEXEC)
            self._readers[segment] = fd
            if len(self._readers) > OPEN_SEGMENTS:
                os.close(self._readers.popitem(last=False)[1])
        self._readers.move_to_end(segment)
        return fd

    def rewrite(self, segment: int, kept: Positions) -> None:
        """Drop all lines of a segment but those at the positions `kept`. Durable on return.

        The history keeps the whole segment. If no line is kept, the segment is retired. Raises
        OSError, and then the segment is as it was.
        """
        path = self.path(segment)
        if not kept:
            self.retire(segment)
            return
        then = array("q", sorted(position & OFFSET for position in kept))
        now = array("q")
        new = path + UNFINISHED
        with open(path, "rb") as file, open(new, "wb", opener=made_with(0o600)) as rewritten:
            lines = []
            for position in sorted(kept):
                file.seek(self._offset(position))
                lines.append(file.readline())
            head = HEAD | self._head(segment)[1]
            rewritten.write(encode(head | {"holds": sum(map(len, lines))}))
            for line in lines:
                now.append(rewritten.tell())
                rewritten.write(line)
            rewritten.flush()
            os.fsync(rewritten.fileno())
        self._remember(segment)
        with self._reading:
            os.rename(new, path)
            self._moved[segment] = then, now
            self._close(segment)
        fsync_directory(self.directory)

    def retire(self, segment: int) -> None:
        """Move a segment to the history. The time for which it is kept there begins now."""
        self._remember(segment)
        with self._reading:
            os.unlink(self.path(segment))
            self._moved.pop(segment, None)
            self._close(segment)

    def _remember(self, segment: int) -> None:
        """Have the history hold everything that was ever written to a segment. Raises OSError."""
        path = os.path.join(self._history, os.path.basename(self.path(segment)))
        # A segment that was rewritten is there already, and whole.
        with contextlib.suppress(FileExistsError):
            os.link(self.path(segment), path)
        os.utime(path)
        fsync_directory(self._history)

    def close(self) -> None:
        """Close what is open for reading. It is opened again when it is needed."""
        with self._reading:
            for segment in list(self._readers):
                self._close(segment)

    def _close(self, segment: int) -> None:
        fd = self._readers.pop(segment, -1)
        if fd >= 0:
            os.close(fd)

    def forget(self, history: float) -> None:
        """Remove the segments that have been in the history for longer than `history` seconds."""
        for name in _names(self._history):
            path = os.path.join(self._history, name)
            if os.stat(path).st_mtime < time.time() - history:
                os.unlink(path)

    def lines(self) -> Iterator[bytes]:
        """Yield all lines, oldest first, those of the history too. Any thread may call it."""
        for name in sorted({*_names(self._history), *_names(self.directory)}):
            # A segment in both directories is whole only in the history. The history comes last
            # again, because a segment may have moved there after we looked.
            for directory in (self._history, self.directory, self._history):
                with contextlib.suppress(FileNotFoundError):
                    with open(os.path.join(directory, name), "rb") as file:
                        yield from file
                    break


def _numbers(directory: str) -> list[int]:
    return sorted(int(name[: -len(SUFFIX)]) for name in _names(directory))


def _names(directory: str) -> list[str]:
    return [name for name in os.listdir(directory) if name.endswith(SUFFIX)]
