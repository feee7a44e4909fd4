"""The durable log: JSON lines with a checksum, appended in batches, replayed at start."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Collection, Container, Iterator, Sequence
from typing import Any

from watchman.config.files import fsync_directory
from watchman.errors import JournalCorrupt, JournalTooNew, JournalUnwritable
from watchman.store.positions import Positions
from watchman.store.records import decode, encode, id_of
from watchman.store.segments import HEAD, OFFSET_BITS, VERSION, Segments

logger = logging.getLogger(__name__)

#: Bytes after which a segment is closed and the next one begun.
SEGMENT_SIZE = 16 << 20

#: Segments' worth of bytes that the closed ones may have, while most of it is settled.
WASTE = 4

#: Lines read between two moments at which others get their turn.
BREATH = 10_000

#: What a write is answered that may fit later.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Journal:
    """Segments `00000001.jsonl`, ... in a directory; settled ones move to the history.

    A position (segment and offset) names a record for as long as its segment is held. One thread
    replays, writes and retires; any thread reads. Long, for what is written, what is held and what
    may go is one account.
    """

    def __init__(self, directory: str, history: str, *, segment_size: int = SEGMENT_SIZE) -> None:
        self._directory = directory
        self._segments = Segments(directory, history)
        self._segment_size = segment_size
        self._fd = -1
        self._segment = 0
        self._offset = 0
        #: Positions of unsettled records, by segment.
        self._held: dict[int, Positions] = {}
        #: Bytes and records of closed segments.
        self._closed: dict[int, tuple[int, int]] = {}
        #: Records in the segment that is being written.
        self._records = 0
        #: Closed segments that are yet to be rewritten, the oldest first.
        self._wasteful: list[int] = []
        #: The segment that a failed write has left, and the offset that it is to end at.
        self._uncut: tuple[int, int] | None = None
        #: Bytes of the largest batch that there was no room for, since the last write.
        self._wanted = 0
        #: Lines that replay could not read, other than a batch cut short by a crash.
        self.damaged = 0

    def replay(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield every record with its position, oldest first, and be ready to write after that.

        Only the end of the last segment may be cut: a batch that was being written in a crash,
        of which nobody was told. A bad line elsewhere is reported and counted in `damaged`.
        Raises JournalTooNew before anything is changed.
        """
        self._segments.make()
        segments = self._segments.numbers()
        if (version := self._segments.version()) > VERSION:
            raise JournalTooNew(
                f"The journal in {self._segments.directory!r} is of version {version}, and this"
                f" watchman reads {VERSION} at the most. Start the newer one: what waits is sent by"
                " that."
            )
        for segment in segments:
            self._held.setdefault(segment, Positions())
            records = 0
            good = 0
            bad: list[int] = []
            with open(self._segments.path(segment), "rb") as file:
                offset = 0
                for line in file:
                    try:
                        record = decode(line)
                    except (JournalCorrupt, ValueError):
                        # Only the last line of all may have no end: nobody was told of it.
                        if segment != segments[-1] or line.endswith(b"\n"):
                            bad.append(offset)
                    else:
                        good = offset + len(line)
                        if record.get("event") != HEAD["event"]:
                            yield segment << OFFSET_BITS | offset, record
                            records += 1
                    offset += len(line)
            self._cut(segment, good, offset, bad, last=segment == segments[-1])
            self._closed[segment] = self._segments.size(segment), records
        self._check_lengths()
        self._segment = segments[-1] if segments else 0
        # One that was rewritten has its length in it. The first write begins a new one.
        if (
            segments
            and self._closed[self._segment][0] < self._segment_size
            and not self._segments.is_rewritten(self._segment)
        ):
            _, self._records = self._closed.pop(self._segment)
            self._open(self._segment)
        elif not segments:
            self._begin()

    def _check_lengths(self) -> None:
        """Miss what was lost of a segment between two lines, after it was closed."""
        for segment, length in self._segments.lengths().items():
            size = self._closed[segment][0] if segment in self._closed else length
            if size != length:
                self.damaged += 1
                logger.error(
                    "%r has %d bytes, and had %d. Rescanning every watch for what it held.",
                    self._segments.path(segment),
                    size,
                    length,
                )

    def _cut(self, segment: int, good: int, end: int, bad: list[int], *, last: bool) -> None:
        if last and good < end:
            os.truncate(self._segments.path(segment), good)
            logger.info("Cut %d bytes of an unfinished batch off %s.", end - good, segment)
        for offset in bad:
            self.damaged += 1
            logger.error(
                "Line at offset %d of %r cannot be read. Rescanning every watch for what it held.",
                offset,
                self._segments.path(segment),
            )

    def write(self, records: Sequence[dict[str, Any]]) -> list[int]:
        """Append records as one batch and return their positions; they are durable on return.

        Raises JournalUnwritable, and then none of them will be replayed; but for a crash before
        anything else could be written.
        """
        lines = [encode(record) for record in records]
        with self._unwritable():
            self._cut_off()
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
            first = b"" if self._offset else self._head()
            try:
                if self._wanted:
                    self._find_room(max(self._wanted, len(batch)))
                view = memoryview(first + batch)
                while view:
                    view = view[os.write(self._fd, view) :]
                os.fdatasync(self._fd)
            except OSError as e:
                if e.errno in NO_ROOM:
                    self._wanted = max(self._wanted, len(batch))
                # What fdatasync(2) could not write is marked clean: asking the same descriptor
                # again would answer that all is well (the PostgreSQL "fsyncgate" of 2018).
                self._abandon()
                raise
        self._wanted = 0
        self._offset += len(first)
        start = self._segment << OFFSET_BITS | self._offset
        self._offset += len(batch)
        self._records += batch.count(b"\n")
        return start

    def _head(self) -> bytes:
        """Return the first line of a segment: its version, and how long the one before it is for
        good.
        """
        head: dict[str, Any] = HEAD | {"version": VERSION}
        if before := max(self._closed, default=0):
            head["before"] = [before, self._closed[before][0]]
        return encode(head)

    def _find_room(self, size: int) -> None:
        """Raise OSError if so many bytes do not fit.

        A few would, and then all is well until whoever was refused brings the same again.
        """
        try:
            os.posix_fallocate(self._fd, self._offset, size)
        except OSError as e:
            if e.errno in NO_ROOM:
                raise
        finally:
            os.ftruncate(self._fd, self._offset)

    def _abandon(self) -> None:
        """Leave the segment, and take back what was written of a batch, now or before the next."""
        self._uncut = self._segment, self._offset
        self.close()
        with contextlib.suppress(OSError):
            self._cut_off()

    def _cut_off(self) -> None:
        """Take back what the last write has left, or raise OSError.

        Nothing may be written before that: who was refused comes again, and its old record would
        be another upload.
        """
        if self._uncut is None:
            return
        segment, end = self._uncut
        if end:
            fd = os.open(self._segments.path(segment), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(fd, end)
                os.fsync(fd)
            finally:
                os.close(fd)
        else:
            # Or a disk that is full for days would hold one for each try.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._segments.path(segment))
            fsync_directory(self._directory)
            self._drop(segment)
        self._uncut = None

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
        return self._segments.line(position)

    def hold(self, position: int) -> None:
        """Keep a record: its upload is not settled."""
        self._held.setdefault(position >> OFFSET_BITS, Positions()).add(position)

    def release(self, position: int) -> None:
        """Undo a `hold`."""
        self._held[position >> OFFSET_BITS].discard(position)

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
            self._segments.retire(segment)
            self._drop(segment)
        self._segments.forget(history)

    def wasteful(self) -> bool:
        """Whether most of the closed segments is settled and yet they may not be retired.

        A few uploads that nobody takes would else keep all that came after them.
        """
        if not self._wasteful:
            held = sum(len(self._held[segment]) for segment in self._closed)
            size = sum(size for size, _ in self._closed.values())
            records = sum(records for _, records in self._closed.values())
            if size >= WASTE * self._segment_size and held < records - held:
                self._wasteful = sorted(self._closed)
        return bool(self._wasteful)

    def compact(self) -> None:
        """Rewrite one wasteful segment: only what is held stays. Or raise OSError.

        The decisions it holds must stand in the ledgers, durably. The oldest comes first, and the
        later ones follow in turn: what one of these settles has left the earlier ones by then, and
        what is settled meanwhile stands in a segment that is written to.
        """
        segment = self._wasteful[0]
        if segment in self._held:  # else it was retired
            held = self._held[segment]
            self._segments.rewrite(segment, held)
            if held:
                self._closed[segment] = self._segments.size(segment), len(held)
            else:
                self._drop(segment)
        self._wasteful.pop(0)

    def _drop(self, segment: int) -> None:
        del self._held[segment]
        self._closed.pop(segment, None)

    def decisions(self) -> Iterator[dict[str, Any]]:
        """Yield the records in use, those that can be read, that hold an upload as a whole."""
        for segment in self._segments.numbers():
            with open(self._segments.path(segment), "rb") as file:
                for line in file:
                    with contextlib.suppress(JournalCorrupt, ValueError):
                        record = decode(line)
                        if "state" in record:
                            yield record

    def records(
        self, needles: Collection[str], ids: Container[str], begin: str = ""
    ) -> Iterator[dict[str, Any] | None]:
        """Yield the records, of the past too, that hold one of `needles` or whose id is in `ids`.

        Or whose id begins with `begin`, if there is such. The oldest first, and None now and then
        while there are none. Ids may be added on the way.
        """
        strings = [json.dumps(needle).encode("ascii") for needle in needles]
        for number, line in enumerate(self._segments.lines(), 1):
            if number % BREATH == 0:
                yield None
            upload_id = id_of(line)
            is_of_it = upload_id in ids or (begin and upload_id.startswith(begin))
            if is_of_it or any(string in line for string in strings):
                with contextlib.suppress(JournalCorrupt, ValueError):
                    yield decode(line)

    def close(self) -> None:
        """Close the segment being written; the next write begins a new one."""
        self._segments.close()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
            self._closed[self._segment] = self._offset, self._records

    def _begin(self) -> None:
        self.close()
        # One that was retired may have had the highest, and the history knows it by its number.
        self._segment = max(self._segment, self._segments.highest()) + 1
        self._records = 0
        self._open(self._segment)

    def _open(self, segment: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._segments.path(segment), flags, 0o600)
        self._offset = os.fstat(self._fd).st_size
        self._held.setdefault(segment, Positions())
        try:
            fsync_directory(self._directory)
        except OSError:
            self._abandon()
            raise
