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

#: Closed segments may hold this many times SEGMENT_SIZE bytes before they are rewritten, although
#: most of their records are settled.
WASTE = 4

#: Lines that `records` reads between two pauses, in which its caller may do something else.
BREATH = 10_000

#: Errors of a write for which there may be room later.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Journal:
    """The journal: segments `00000001.jsonl`, ... in a directory. Settled ones move to the history.

    A position (segment and offset) names a record at least until its `release`. One thread replays,
    writes and retires; any thread may read. The class is long because it keeps one account of what
    is written, what is held, and what may be retired.
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
        #: Bytes and records of each closed segment.
        self._closed: dict[int, tuple[int, int]] = {}
        #: Records in the segment that is being written.
        self._records = 0
        #: Closed segments that are to be rewritten, the oldest first.
        self._wasteful: list[int] = []
        #: A segment that has the remains of a failed write, and the offset where it must end.
        self._uncut: tuple[int, int] | None = None
        #: Bytes of the largest batch for which there was no room, since the last successful write.
        self._wanted = 0
        #: Number of lines that `replay` could not read, and of segments that have lost bytes. A
        #: batch that a crash cut short does not count.
        self.damaged = 0

    def replay(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield every record with its position, oldest first. After that `write` may be called.

        The end of the last segment is cut off if it is a batch that a crash has cut short. Nobody
        was told that those records are durable. A bad line elsewhere is logged and counted in
        `damaged`. Raises JournalTooNew before any record is yielded or cut off.
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
                        # A last line without a newline was being written in a crash. That is no
                        # damage.
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
        # Go on with the last segment unless it is full, or was rewritten and says in its first line
        # how long it is. Then the first write begins a new one.
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
        """Find closed segments that have lost whole lines, which no checksum of a line shows."""
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
        """Cut the last segment after its last good line; log and count bad lines."""
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
        """Append records as one batch, and return their positions. They are durable on return.

        Raises JournalUnwritable, and then none of them will be replayed. The exception is a crash
        before the remains of this write could be cut off.
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
        """Write and sync a batch; return the position of its first line."""
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
                # The kernel marks pages clean that fdatasync(2) could not write. Called again on
                # the same descriptor, it would report success (PostgreSQL's "fsyncgate" of 2018).
                self._abandon()
                raise
        self._wanted = 0
        self._offset += len(first)
        start = self._segment << OFFSET_BITS | self._offset
        self._offset += len(batch)
        self._records += batch.count(b"\n")
        return start

    def _head(self) -> bytes:
        """Return the first line of a new segment: the version, and the length of the one before."""
        head: dict[str, Any] = HEAD | {"version": VERSION}
        if before := max(self._closed, default=0):
            head["before"] = [before, self._closed[before][0]]
        return encode(head)

    def _find_room(self, size: int) -> None:
        """Raise OSError if `size` bytes do not fit.

        After a batch had no room, a single record may still fit. If that counted as success, the
        journal would be reported as written again and as unwritable in turn, every second.
        """
        try:
            os.posix_fallocate(self._fd, self._offset, size)
        except OSError as e:
            if e.errno in NO_ROOM:
                raise
        finally:
            # posix_fallocate(3) has made the file longer.
            os.ftruncate(self._fd, self._offset)

    def _abandon(self) -> None:
        """Close the segment, and cut off what was written of a batch: now, or before the next."""
        self._uncut = self._segment, self._offset
        self.close()
        with contextlib.suppress(OSError):
            self._cut_off()

    def _cut_off(self) -> None:
        """Cut off the remains of a failed write; raises OSError.

        Nothing may be written before that. The file of a refused upload is accepted again later;
        if a replay also found the record of the first try, there would be two uploads.
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
            # Nothing was written to it. Unless it is removed, there is an empty segment for each
            # try on a disk that is full for days.
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
        """Keep a record until `release`, because what it is about is not settled."""
        self._held.setdefault(position >> OFFSET_BITS, Positions()).add(position)

    def release(self, position: int) -> None:
        """Undo a `hold`."""
        self._held[position >> OFFSET_BITS].discard(position)

    def is_current(self, position: int) -> bool:
        """Whether a record stands in the segment that is being written."""
        return position >> OFFSET_BITS == self._segment

    def retirable(self) -> bool:
        """Whether the oldest segment is closed, and no record in it is held any more."""
        oldest = min(self._held, default=self._segment)
        return oldest < self._segment and not self._held[oldest]

    def retire(self, history: float) -> None:
        """Move settled segments to the history; remove those older than `history` seconds there.

        The ledgers must hold the decisions of these segments, durably. Only the oldest segment may
        be retired, because a later one has the records that settle uploads of earlier ones.
        """
        while self.retirable():
            segment = min(self._held)
            self._segments.retire(segment)
            self._drop(segment)
        self._segments.forget(history)

    def wasteful(self) -> bool:
        """Whether closed segments are to be rewritten: they are large, and mostly settled.

        Otherwise a few uploads that wait for long would keep all segments that came after theirs.
        """
        if not self._wasteful:
            held = sum(len(self._held[segment]) for segment in self._closed)
            size = sum(size for size, _ in self._closed.values())
            records = sum(records for _, records in self._closed.values())
            if size >= WASTE * self._segment_size and held < records - held:
                self._wasteful = sorted(self._closed)
        return bool(self._wasteful)

    def compact(self) -> None:
        """Rewrite the next wasteful segment, so that only held records stay in it. Raises OSError.

        The ledgers must hold its decisions, durably. Each call rewrites one segment, the oldest
        first. So when a record that settles an upload is dropped, the record that accepted it was
        dropped before, with an earlier segment. An upload that is settled meanwhile is no problem:
        that record goes into the segment being written, which is not rewritten now.
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
        """Yield the records that hold a whole upload; not those of the history, nor bad lines."""
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
        """Yield the records that hold one of `needles` or whose id is in `ids`, oldest first.

        Or whose id begins with `begin`, if that is not empty. Records of the history are among
        them. Yields None after every BREATH lines, so that the caller can do something else. The
        caller may add ids meanwhile.
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
        # A segment in the history may have the highest number. No number is used twice, because
        # the history names segments by it, too.
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
