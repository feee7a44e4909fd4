"""One file of a log that grows, and where it was read to."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import os
import shutil
import stat
import tempfile
import zlib
from dataclasses import dataclass
from typing import Any, Self

from watchman.sources.logrecord import cut

#: Bytes per read(2): some hundred records, decided about and made durable together.
READ_SIZE = 1 << 14

#: Bytes before an offset by which the file is known again.
BEFORE = 256


@dataclass(frozen=True, slots=True)
class Position:
    """Where a file was read to: its inode, the offset, and a hash of the bytes before that."""

    inode: int
    offset: int
    digest: str

    def encode(self) -> list[Any]:
        return [self.inode, self.offset, self.digest]

    @classmethod
    def decode(cls, values: list[Any]) -> Self:
        return cls(*values)


class Tail:
    """An open log file, which may be a compressed one that nobody writes any more."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._fd = _unpack(path) if path.endswith(".gz") else _open(path)
        status = os.fstat(self._fd)
        self.inode, self.device, self.size = status.st_ino, status.st_dev, status.st_size
        self.offset = 0
        #: The bytes before the offset.
        self._before = b""
        #: Records that ProFTPD wrote before this (epoch) were read elsewhere.
        self.since = 0.0

    def close(self) -> None:
        os.close(self._fd)

    @property
    def position(self) -> Position:
        return Position(self.inode, self.offset, _digest(self._before))

    def holds(self, position: Position) -> bool:
        """Whether this file, whatever its inode, was the one that was read to `position`."""
        before = self._bytes_before(position.offset)
        whole = len(before) == min(position.offset, BEFORE)
        return whole and _digest(before) == position.digest

    def begins_as(self, other: Tail) -> bool:
        """Whether one is a copy of the other, which may have grown since."""
        mine, theirs = (os.pread(tail._fd, BEFORE, 0) for tail in (self, other))
        length = min(len(mine), len(theirs))
        return length > 0 and mine[:length] == theirs[:length]

    def seek(self, offset: int) -> None:
        """Read on from there."""
        self.offset, self._before = offset, self._bytes_before(offset)

    def is_intact(self) -> bool:
        """Whether what was read is still there: False after copytruncate, however far regrown."""
        return self._bytes_before(self.offset) == self._before

    def read(self, token: bytes) -> list[bytes]:
        """Return the next records as `cut` does, nothing at the end."""
        start = self.offset - len(self._before)
        data = os.pread(self._fd, READ_SIZE, start)
        if not data.startswith(self._before):
            return []  # truncated since it was asked
        new = data[len(self._before) :]
        pieces, length = cut(new, token, more=len(data) == READ_SIZE)
        self.offset += length
        self._before = (self._before + new[:length])[-BEFORE:]
        return pieces

    def has_writers(self) -> bool | None:
        """Whether a session has the file open, by asking for a read lease; None: not our right.

        See F_SETLEASE in fcntl(2). It is for the file's owner and who has CAP_LEASE.
        """
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as e:
            return True if e.errno == errno.EAGAIN else None
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def written(self) -> float:
        """Return when it was last written to (epoch)."""
        return os.fstat(self._fd).st_mtime

    def _bytes_before(self, offset: int) -> bytes:
        length = min(offset, BEFORE)
        return os.pread(self._fd, length, offset - length)


def _open(path: str) -> int:
    # O_NONBLOCK for a FIFO, which has no place here and would make us wait.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def _unpack(path: str) -> int:
    """Return a descriptor of the unpacked content, in a file without a name."""
    with tempfile.TemporaryFile() as unpacked:
        try:
            with open(_open(path), "rb") as packed, gzip.open(packed) as content:
                shutil.copyfileobj(content, unpacked)
        except (EOFError, zlib.error) as e:
            raise OSError(errno.EINVAL, str(e), path) from e
        unpacked.flush()
        return os.open(f"/proc/self/fd/{unpacked.fileno()}", os.O_RDONLY | os.O_CLOEXEC)


def _digest(before: bytes) -> str:
    return hashlib.blake2b(before, digest_size=8).hexdigest()
