"""The durable log: JSON lines with a checksum, appended in batches, replayed at start."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from watchman.errors import JournalCorrupt, JournalUnwritable

logger = logging.getLogger(__name__)

#: Bytes after which a segment is closed and the next one begun.
SEGMENT_SIZE = 16 << 20

#: Bits of a position that hold the offset; the segment's number stands above them.
OFFSET_BITS = 40

#: Segments kept open for reading.
OPEN_SEGMENTS = 16

SUFFIX = ".jsonl"
CHECKSUM = b',"crc":"'


def encode(record: dict[str, Any]) -> bytes:
    """Return the line of a record: ASCII JSON whose last member is the CRC-32 of what precedes."""
    body = json.dumps(record, separators=(",", ":")).encode("ascii")[:-1]
    return b'%b%b%08x"}\n' % (body, CHECKSUM, zlib.crc32(body))


def decode(line: bytes) -> dict[str, Any]:
    """Return the record of a line, or raise JournalCorrupt."""
    body, _, tail = line.rpartition(CHECKSUM)
    if tail != b'%08x"}\n' % zlib.crc32(body) or not body:
        raise JournalCorrupt("its checksum does not match")
    record: dict[str, Any] = json.loads(body + b"}")
    return record


def fsync_directory(path: str) -> None:
    """Make names just made or removed in a directory durable, see fsync(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _matching(lines: Iterable[bytes], needles: Collection[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if any(needle in line for needle in needles):
            with contextlib.suppress(JournalCorrupt, ValueError):
                yield decode(line)


class Journal:
    """Segments `00000001.jsonl`, ... in a directory; settled ones move to the history.

    A position (segment and offset) names a record for as long as its segment is held. One thread
    replays, writes and retires; any thread reads.
    """

    def __init__(self, directory: str, history: str, *, segment_size: int = SEGMENT_SIZE) -> None:
        self._directory = directory
        self._history = history
        self._segment_size = segment_size
        self._fd = -1
        self._segment = 0
        self._offset = 0
        #: Unsettled records by segment. A segment without any, and none before it, may go.
        self._held: dict[int, int] = {}
        #: Guards `_readers`, and a descriptor against being closed while it is read.
        self._reading = threading.Lock()
        self._readers: OrderedDict[int, int] = OrderedDict()
        #: Lines that replay could not read, other than a batch cut short by a crash.
        self.damaged = 0

    def replay(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield every record with its position, oldest first, and be ready to write after that.

        Only the end of the last segment may be cut: a batch that was being written in a crash,
        of which nobody was told. A bad line elsewhere is reported and counted in `damaged`.
        """
        for directory in (self._directory, self._history):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        segments = self._segments()
        for segment in segments:
            self._held.setdefault(segment, 0)
            good = 0
            bad: list[int] = []
            with open(self._path(segment), "rb") as file:
                offset = 0
                for line in file:
                    try:
                        record = decode(line)
                    except (JournalCorrupt, ValueError):
                        bad.append(offset)
                    else:
                        yield segment << OFFSET_BITS | offset, record
                        good = offset + len(line)
                    offset += len(line)
            self._cut(segment, good, offset, bad, last=segment == segments[-1])
        self._segment = segments[-1] if segments else 0
        if segments and os.path.getsize(self._path(self._segment)) < self._segment_size:
            self._open(self._segment)
        else:
            self._begin()

    def _cut(self, segment: int, good: int, end: int, bad: list[int], *, last: bool) -> None:
        tail = [offset for offset in bad if offset >= good] if last else []
        if tail:
            os.truncate(self._path(segment), good)
            logger.info("Cut %d bytes of an unfinished batch off %s.", end - good, segment)
        for offset in bad[: len(bad) - len(tail)]:
            self.damaged += 1
            logger.error(
                "Line at offset %d of %r cannot be read. Rescanning every watch for what it held.",
                offset,
                self._path(segment),
            )

    def write(self, records: Sequence[dict[str, Any]]) -> list[int]:
        """Append records as one batch and return their positions; they are durable on return.

        Raises JournalUnwritable, and then none of them will be replayed.
        """
        lines = [encode(record) for record in records]
        if self._offset >= self._segment_size:
            with self._unwritable():
                self._begin()
        start = self._append(b"".join(lines))
        positions = []
        for line in lines:
            positions.append(start)
            start += len(line)
        return positions

    def _append(self, batch: bytes) -> int:
        with self._unwritable():
            if self._fd < 0:
                self._begin()
            try:
                view = memoryview(batch)
                while view:
                    view = view[os.write(self._fd, view) :]
                os.fdatasync(self._fd)
            except OSError:
                # What fdatasync(2) could not write is marked clean: asking the same descriptor
                # again would answer that all is well (the PostgreSQL "fsyncgate" of 2018).
                self._abandon()
                raise
        start = self._segment << OFFSET_BITS | self._offset
        self._offset += len(batch)
        return start

    def _abandon(self) -> None:
        """Take back what was written of a batch and leave the segment."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._offset)
            os.fsync(self._fd)
        self.close()

    @contextlib.contextmanager
    def _unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise JournalUnwritable(f"{self._directory}: {e.strerror}") from e

    def read(self, position: int) -> dict[str, Any]:
        """Return the record at a position, or raise JournalCorrupt or OSError."""
        return decode(self.line(position))

    def line(self, position: int) -> bytes:
        """Return the line of the record at a position, or raise JournalCorrupt or OSError."""
        segment, offset = position >> OFFSET_BITS, position & ((1 << OFFSET_BITS) - 1)
        size = 2048
        while True:
            with self._reading:
                data = os.pread(self._reader(segment), size, offset)
            end = data.find(b"\n") + 1
            if end:
                return data[:end]
            if len(data) < size:
                raise JournalCorrupt(f"no record at offset {offset} of {self._path(segment)}")
            size *= 4

    def _reader(self, segment: int) -> int:
        fd = self._readers.get(segment, -1)
        if fd < 0:
            fd = os.open(self._path(segment), os.O_RDONLY | os.O_CLOEXEC)
            self._readers[segment] = fd
            if len(self._readers) > OPEN_SEGMENTS:
                os.close(self._readers.popitem(last=False)[1])
        self._readers.move_to_end(segment)
        return fd

    def hold(self, position: int) -> None:
        """Keep the segment of a record: its upload is not settled."""
        segment = position >> OFFSET_BITS
        self._held[segment] = self._held.get(segment, 0) + 1

    def release(self, position: int) -> None:
        """Undo one `hold`."""
        self._held[position >> OFFSET_BITS] -= 1

    def is_current(self, position: int) -> bool:
        """Whether a record stands in the segment that is being written."""
        return position >> OFFSET_BITS == self._segment

    def retirable(self) -> bool:
        """Whether the oldest segment is full and holds nothing unsettled any more."""
        oldest = min(self._held, default=self._segment)
        return oldest < self._segment and not self._held[oldest]

    def retire(self, history: float) -> None:
        """Move settled segments to the history, and forget what is older than `history` seconds.

        The decisions they hold must stand in the ledgers, durably. Only the oldest may go: a
        later one settles uploads of an earlier one.
        """
        while self.retirable():
            segment = min(self._held)
            path = self._path(segment)
            os.rename(path, os.path.join(self._history, os.path.basename(path)))
            del self._held[segment]
            with self._reading:
                fd = self._readers.pop(segment, -1)
                if fd >= 0:
                    os.close(fd)
        for name in os.listdir(self._history):
            path = os.path.join(self._history, name)
            if os.stat(path).st_mtime < time.time() - history:
                os.unlink(path)

    def story(self, subject: str) -> Iterator[dict[str, Any]]:
        """Yield the records, of the past too, that name a path or an id; oldest first."""
        return self.records({json.dumps(subject).encode("ascii")})

    def records(self, needles: Collection[bytes]) -> Iterator[dict[str, Any]]:
        """Yield the records, of the past too, that hold one of `needles`; oldest first.

        More may be added on the way.
        """
        names = {*os.listdir(self._history), *os.listdir(self._directory)}
        for name in sorted(name for name in names if name.endswith(SUFFIX)):
            # First where it is while it is in use: it only ever goes from there to the history.
            for directory in (self._directory, self._history):
                with contextlib.suppress(FileNotFoundError):
                    with open(os.path.join(directory, name), "rb") as file:
                        yield from _matching(file, needles)
                    break

    def close(self) -> None:
        """Close the segment being written; the next write begins a new one."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _begin(self) -> None:
        self.close()
        # A segment retired meanwhile may have had the highest number.
        self._segment = max([self._segment, *self._segments()]) + 1
        self._open(self._segment)

    def _open(self, segment: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path(segment), flags, 0o600)
        self._offset = os.fstat(self._fd).st_size
        self._held.setdefault(segment, 0)
        fsync_directory(self._directory)

    def _segments(self) -> list[int]:
        names = os.listdir(self._directory)
        return sorted(int(name[: -len(SUFFIX)]) for name in names if name.endswith(SUFFIX))

    def _path(self, segment: int) -> str:
        return os.path.join(self._directory, f"{segment:08}{SUFFIX}")
