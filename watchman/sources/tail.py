"""One file of a log that grows, and where it was read to."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

#: Bytes per read(2).
READ_SIZE = 1 << 16

#: Bytes before an offset that are told again by their hash.
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
    """An open log file."""

    def __init__(self, path: str, offset: int = 0) -> None:
        """Raises OSError. An offset of -1 is the end."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        self._fd = os.open(path, flags)
        status = os.fstat(self._fd)
        self.inode = status.st_ino
        self.device = status.st_dev
        self.offset = offset if offset >= 0 else status.st_size
        #: Read, and not a whole record yet.
        self._rest = b""

    def close(self) -> None:
        os.close(self._fd)

    def position(self) -> Position:
        """Return where the next record begins."""
        return Position(self.inode, self.offset, self._digest(self.offset))

    def holds(self, position: Position) -> bool:
        """Whether this file is the one that was read to `position`, whatever its inode."""
        size = os.fstat(self._fd).st_size
        return size >= position.offset and self._digest(position.offset) == position.digest

    def rewind(self) -> None:
        """Begin again at the start."""
        self.offset, self._rest = 0, b""

    def records(self, token: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield what was written since, cut before each token: the piece, and whether it has one.

        ProFTPD writes a record at once. One that lost its newline ends where the next begins.
        """
        while data := os.pread(self._fd, READ_SIZE, self.offset + len(self._rest)):
            data = self._rest + data
            marks = _marks(data, token)
            for start, end in zip(marks, [*marks[1:], len(data)], strict=True):
                piece = data[start:end]
                if end == len(data) and not piece.endswith(b"\n") and len(piece) < READ_SIZE:
                    self._rest = piece
                    break
                self.offset += len(piece)
                yield piece.removeprefix(token), piece.startswith(token)
            else:
                self._rest = b""

    def has_writers(self) -> bool:
        """Whether a session still has the file open, by asking for a read lease, see fcntl(2)."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError:
            return True
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False

    def idle(self) -> float:
        """Return when it was last written to (epoch)."""
        return os.fstat(self._fd).st_mtime

    def _digest(self, offset: int) -> str:
        with contextlib.suppress(OSError):
            length = min(offset, BEFORE)
            before = os.pread(self._fd, length, offset - length)
            return hashlib.blake2b(before, digest_size=8).hexdigest()
        return ""


def _marks(data: bytes, token: bytes) -> list[int]:
    """Return where pieces begin: at 0, and at each token."""
    marks = [0]
    at = data.find(token)
    while at >= 0:
        if at > 0:
            marks.append(at)
        at = data.find(token, at + len(token))
    return marks
