"""A ledger's file: sorted entries of 36 bytes each. It is mapped, and replaced as a whole."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, BinaryIO

from watchman.config.files import fsync_directory

#: Key, size, ctime, sample, and the tag of the filesystem. Big-endian, so that bytes sort as keys.
ENTRY = struct.Struct(">8sQqQ4s")

#: An entry's values, which follow the key.
VALUES = struct.Struct(">QqQ4s")

#: The values of an entry: size, ctime, sample, filesystem.
Values = tuple[int, int, int, bytes]

#: Bytes of a key. It is a hash, so keys are spread evenly.
KEY = 8

#: Changes of a file, in parts for each first byte of a key, in order. A part has by key the new
#: entry, or b"" if the entry is to go.
Changes = Iterable[Mapping[bytes, bytes]]

#: A key's leading bits say in which bucket it is: at most BUCKET_BITS. Up to a million entries, the
#: buckets are so small that one fits in a few cache lines: some 2 ** BUCKET_SIZE_BITS entries.
BUCKET_BITS, BUCKET_SIZE_BITS = 16, 4

MAGIC = "watchman ledger 2"


class LedgerFile:
    """The entries of a file as it was when it was opened. Any thread may read them.

    They do not change when the file at `path` is replaced by another.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        """Read an open file. Raises ValueError if it is not a ledger's, or of another version."""
        self._path = path
        self.header: dict[str, Any] = json.loads(file.readline())
        magic = self.header.get("magic") if isinstance(self.header, dict) else None
        if magic != MAGIC:
            raise ValueError(f"it is none of a ledger of this version, but {magic!r}")
        self._start = file.tell()
        size = os.fstat(file.fileno()).st_size - self._start
        if size % ENTRY.size:
            raise ValueError("it ends within an entry")
        self.count = size // ENTRY.size
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        bits = min(BUCKET_BITS, max(0, self.count.bit_length() - BUCKET_SIZE_BITS))
        self._shift = BUCKET_BITS - bits
        #: Where in the file each bucket begins, and the last one ends.
        self._buckets = array("Q", self._bucket_offsets(bits))

    def _bucket_offsets(self, bits: int) -> Iterator[int]:
        """Yield where each bucket begins, and where the last one ends.

        For that only the first two bytes of the sorted keys are searched.
        """
        first = self._map[self._start :: ENTRY.size]
        second = self._map[self._start + 1 :: ENTRY.size]
        begin, end, before = 0, 0, -1
        for leading in range(0, 1 << BUCKET_BITS, 1 << BUCKET_BITS - bits):
            high, low = leading >> 8, leading & 0xFF
            if high != before:
                before, begin = high, bisect_left(first, high, end)
                end = bisect_left(first, high + 1, begin)
            yield self._start + ENTRY.size * bisect_left(second, low, begin, end)
        yield self._start + ENTRY.size * self.count

    @classmethod
    def open(cls, path: str) -> LedgerFile:
        """Read the file. Raises FileNotFoundError if there is none, ValueError if it is bad."""
        with open(path, "rb") as file:
            return cls(path, file)

    def get(self, wanted: bytes) -> tuple[int, Values] | None:
        """Return index and values of the entry with a key, None if there is none."""
        # A scan calls this for each file. So it makes no call that it can do without.
        bucket = (wanted[0] << 8 | wanted[1]) >> self._shift
        begin, end = self._buckets[bucket], self._buckets[bucket + 1]
        at = self._map.find(wanted, begin, end)
        while at >= 0:
            index, rest = divmod(at - self._start, ENTRY.size)
            # Only at the beginning of an entry these bytes are a key.
            if not rest:
                return index, VALUES.unpack_from(self._map, at + KEY)
            at = self._map.find(wanted, at + 1, end)
        return None

    def all(self) -> Iterator[tuple[bytes, Values]]:
        """Yield key and values of each entry."""
        for index in range(self.count):
            yield self._key(index), self.values(index)

    def values(self, index: int) -> Values:
        """Return the values of an entry."""
        return VALUES.unpack_from(self._map, self._start + index * ENTRY.size + KEY)

    def changed(self, changes: Changes, kept: bytearray | None = None) -> Iterator[bytes]:
        """Yield the file's entries after `changes`, in order.

        `kept` has a byte for each entry. Those whose byte is 0 are left out, unless `changes` has
        them.
        """
        at = 0
        for part in changes:
            if not self.count:
                yield b"".join(part[key] for key in sorted(part))
                continue
            for key in sorted(part):
                place = self._place(key)
                yield from self._slices(at, place, kept)
                yield part[key]
                at = place + (self._key(place) == key)
        yield from self._slices(at, self.count, kept)

    def entries(self, left_out: bytearray | None = None) -> Iterator[dict[bytes, bytes]]:
        """Return entries as changes for another file: all, or those not marked in `left_out`."""
        parts = groupby(self._each(left_out), key=itemgetter(0))
        return ({entry[:KEY]: entry for entry in part} for _, part in parts)

    def _each(self, left_out: bytearray | None) -> Iterator[bytes]:
        index = 0 if left_out is None else left_out.find(0)
        while 0 <= index < self.count:
            offset = self._start + index * ENTRY.size
            yield self._map[offset : offset + ENTRY.size]
            index = index + 1 if left_out is None else left_out.find(0, index + 1)

    def _key(self, index: int) -> bytes:
        offset = self._start + index * ENTRY.size
        return self._map[offset : offset + KEY]

    def _place(self, wanted: bytes) -> int:
        """Return the index of the first entry with this key or a higher one."""
        bucket = (wanted[0] << 8 | wanted[1]) >> self._shift
        low, high = self._buckets[bucket], self._buckets[bucket + 1]
        indices = range((low - self._start) // ENTRY.size, (high - self._start) // ENTRY.size)
        return indices.start + bisect_left(indices, wanted, key=self._key)

    def _slices(self, first: int, end: int, kept: bytearray | None) -> Iterator[bytes]:
        while first < end:
            upto = end if kept is None else kept.find(0, first, end)
            upto = end if upto < 0 else upto
            yield self._map[self._start + first * ENTRY.size : self._start + upto * ENTRY.size]
            first = end if kept is None else kept.find(1, upto, end)
            if first < 0:
                return


class Draft:
    """A new file that is durable under another name. Either `commit` or `discard` it."""

    def __init__(self, path: str, header: Mapping[str, Any], entries: Iterator[bytes]) -> None:
        self._path, self._temporary = path, path + ".new"
        try:
            with open(self._temporary, "w+b", opener=_owner_only) as file:
                file.write(json.dumps({"magic": MAGIC, **header}).encode("ascii") + b"\n")
                file.writelines(entries)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                self._file = LedgerFile(path, file)
        except OSError:
            self.discard()
            raise

    def commit(self) -> LedgerFile:
        """Let the new file take the place of the old one. Durable on return; raises OSError."""
        try:
            os.rename(self._temporary, self._path)
            fsync_directory(os.path.dirname(self._path))
        except OSError:
            self.discard()
            raise
        return self._file

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
