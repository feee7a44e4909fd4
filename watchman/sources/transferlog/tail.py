"""One file of a log that grows, and where it was read to."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from watchman.sources.transferlog.lines import LONGEST, cut
from watchman.uploads import lease

#: Bytes per read(2): some hundred records, decided about and made durable together.
READ_SIZE = 1 << 14

#: What a compressed file begins with, and who reads it: logrotate's compresscmd may be another one
#: than gzip, and its name tells nothing.
_GZIP, _XZ, _BZIP2 = b"\x1f\x8b", b"\xfd7", b"BZ"
_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    _GZIP: lambda file: gzip.GzipFile(fileobj=file),
    _XZ: lzma.LZMAFile,
    _BZIP2: bz2.BZ2File,
}

#: What is raised for one that is cut or none.
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError)

#: Bytes before an offset by which the file is known again.
BEFORE = 256


class Position(NamedTuple):
    """Where a file was read to: its inode, the offset, a hash of the bytes before that, and one of
    its first line, "" before there is one.
    """

    inode: int
    offset: int
    digest: str
    head: str = ""


class Tail:
    """An open log file, which may be a compressed one that nobody writes any more."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._fd = _unpacked(_open(path), path)
        status = os.fstat(self._fd)
        #: Device and inode.
        self.identity = status.st_dev, status.st_ino
        self.size = status.st_size
        self.offset = 0
        #: The bytes before the offset.
        self._before = b""
        self._head = ""
        #: Since when (monotonic) nothing has come, as whoever reads it says.
        self.idle_since = 0.0
        #: Records that ProFTPD wrote before this (epoch, by its own clock) were read elsewhere.
        self.since = 0

    def close(self) -> None:
        os.close(self._fd)

    @property
    def position(self) -> Position:
        return Position(self.identity[1], self.offset, _digest(self._before), self.head)

    @property
    def head(self) -> str:
        """The hash of the first line that was read, or is there to be; "" without one.

        It stays as it is while a file grows.
        """
        head = self._head or _head(os.pread(self._fd, LONGEST, 0))
        if self.offset:
            self._head = head
        return head

    @property
    def directory(self) -> str:
        """Where it is now, whatever it was renamed to, "" if it has no name; see proc(5)."""
        path = os.readlink(f"/proc/self/fd/{self._fd}")
        return os.path.dirname(path) if os.path.lexists(path) else ""

    def holds(self, position: Position) -> bool:
        """Whether this file, whatever its inode, was the one that was read to `position`."""
        before = self._bytes_before(position.offset)
        whole = len(before) == min(position.offset, BEFORE)
        return whole and _digest(before) == position.digest

    def seek(self, offset: int) -> None:
        """Read on from there."""
        self.offset, self._before = offset, self._bytes_before(offset)
        self._head = ""

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
        if not self.offset:
            # It may be truncated, and grow again, before anybody asks.
            self._head = _head(new)
        pieces, length = cut(new, token, more=len(data) == READ_SIZE)
        self.offset += length
        self._before = (self._before + new[:length])[-BEFORE:]
        return pieces

    def has_writers(self) -> bool | None:
        """Whether a session has the file open, by asking for a read lease; None: not our right.

        It is for the file's owner and who has CAP_LEASE.
        """
        return lease.is_written(self._fd)

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


def head_of(path: str, token: bytes) -> str:
    """Return the hash of a file's first line if that begins with the token, else "".

    Of a compressed one what it was compressed from. Raises OSError.
    """
    with open(_open(path), "rb") as file:
        opener = _OPENERS.get(file.peek(len(_XZ))[:2])
        try:
            begin = (opener(file) if opener else file).read(LONGEST)
        except _BROKEN:
            return ""
    return _head(begin) if begin.startswith(token) else ""


def _head(begin: bytes) -> str:
    line, newline, _ = begin.partition(b"\n")
    return _digest(line) if newline else ""


def _unpacked(fd: int, path: str) -> int:
    """Return the descriptor of a log file, or that of what it was compressed from, in a file
    without a name.
    """
    opener = _OPENERS.get(os.pread(fd, 2, 0))
    if opener is None:
        return fd
    with tempfile.TemporaryFile() as unpacked:
        try:
            with open(fd, "rb") as packed, opener(packed) as content:
                shutil.copyfileobj(content, unpacked)
        except _BROKEN as e:
            raise OSError(errno.EINVAL, str(e), path) from e
        unpacked.flush()
        return os.open(f"/proc/self/fd/{unpacked.fileno()}", os.O_RDONLY | os.O_CLOEXEC)


def _digest(before: bytes) -> str:
    return hashlib.blake2b(before, digest_size=8).hexdigest()
