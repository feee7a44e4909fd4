"""One file of a transfer log, and how far it was read."""

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

#: Bytes per read(2): some hundred records, which are decided about and made durable together.
READ_SIZE = 1 << 14

#: The first bytes of compressed files, and what reads each kind. The file's name says nothing about
#: its kind: logrotate's `compresscmd` need not be gzip, see logrotate(8).
_GZIP, _XZ, _BZIP2 = b"\x1f\x8b", b"\xfd7", b"BZ"
_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    _GZIP: lambda file: gzip.GzipFile(fileobj=file),
    _XZ: lzma.LZMAFile,
    _BZIP2: bz2.BZ2File,
}

#: Raised for a compressed file that is cut off, or that is none.
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError)

#: Bytes before the offset that are remembered, so that the file can be recognized by them.
BEFORE = 256


class Position(NamedTuple):
    """How far a file was read, and by what to recognize it.

    `digest` is a hash of the bytes before `offset`. `head` is a hash of the first line, "" if the
    file has none yet.
    """

    inode: int
    offset: int
    digest: str
    head: str = ""


class Tail:
    """An open log file. A compressed one is unpacked first; nobody writes to that any more."""

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
        #: Since when (monotonic) no line has come. `LogFiles` sets it.
        self.idle_since = 0.0
        #: Records older than this (epoch, by ProFTPD's clock) are skipped: another file had them.
        self.since = 0

    def close(self) -> None:
        os.close(self._fd)

    @property
    def position(self) -> Position:
        return Position(self.identity[1], self.offset, _digest(self._before), self.head)

    @property
    def head(self) -> str:
        """The hash of the file's first line, "" if it has none yet.

        It stays the same while the file grows, and in a copy of it.
        """
        head = self._head or _head(os.pread(self._fd, LONGEST, 0))
        if self.offset:
            self._head = head
        return head

    @property
    def directory(self) -> str:
        """The directory that the file is in now, even after a rename; "" if it has no name.

        See /proc/self/fd in proc(5).
        """
        path = os.readlink(f"/proc/self/fd/{self._fd}")
        return os.path.dirname(path) if os.path.lexists(path) else ""

    def holds(self, position: Position) -> bool:
        """Whether this file has the bytes that were read before `position`, whatever its inode."""
        before = self._bytes_before(position.offset)
        whole = len(before) == min(position.offset, BEFORE)
        return whole and _digest(before) == position.digest

    def seek(self, offset: int) -> None:
        """Have `read` go on from `offset`."""
        self.offset, self._before = offset, self._bytes_before(offset)
        self._head = ""

    def is_intact(self) -> bool:
        """Whether the file was not truncated: the bytes that were read last are still there.

        That tells even if a truncated file has grown beyond the offset again.
        """
        return self._bytes_before(self.offset) == self._before

    def read(self, token: bytes) -> list[bytes]:
        """Return the next pieces, as `cut` makes them; [] at the end."""
        start = self.offset - len(self._before)
        data = os.pread(self._fd, READ_SIZE, start)
        if not data.startswith(self._before):
            return []  # truncated since `is_intact` was asked
        new = data[len(self._before) :]
        if not self.offset:
            # Taken now: the file may be truncated and grow again before anybody asks for `head`.
            self._head = _head(new)
        pieces, length = cut(new, token, more=len(data) == READ_SIZE)
        self.offset += length
        self._before = (self._before + new[:length])[-BEFORE:]
        return pieces

    def has_writers(self) -> bool | None:
        """Whether a session has the file open for writing; None if we may not ask.

        We ask for a read lease, see fcntl(2). Only the file's owner and a process with CAP_LEASE
        may do so.
        """
        return lease.is_written(self._fd)

    def _bytes_before(self, offset: int) -> bytes:
        length = min(offset, BEFORE)
        return os.pread(self._fd, length, offset - length)


def _open(path: str) -> int:
    # O_NONBLOCK, because to open a FIFO would otherwise wait for a writer. A FIFO is then refused.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return fd


def head_of(path: str, token: bytes) -> str:
    """Return the hash of a file's first line if that begins with the token, else "".

    A compressed file is unpacked as far as that. Raises OSError.
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
    """Return `fd`, or for a compressed file the descriptor of its unpacked content instead.

    The content is in a temporary file without a name.
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
