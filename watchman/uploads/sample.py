"""A sample of a file's content: by it a rewrite shows that keeps size and times."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from watchman.uploads.upload import FileState

#: Bytes that are looked at. A file that has no more is looked at as a whole.
MOST = 1 << 16

#: Of a larger one: bytes at either end, where formats have headers and indices, and those of each
#: of the blocks that lie evenly between.
END, BLOCK = 1 << 14, 1 << 12

#: Blocks between the ends.
BLOCKS = (MOST - 2 * END) // BLOCK

#: Nothing waits on a FIFO's other end or on another's lease.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def sample_of(directory: int, name: str, state: FileState) -> int | None:
    """Return the sample, 64 bits and never 0, of a file in an open directory.

    None where it is not as in `state` any more. Raises OSError where it may not be read.
    """
    # Before open(2): to open a device may rewind it, hang up a line, or worse.
    if not _is_as(state, os.stat(name, dir_fd=directory, follow_symlinks=False)):
        return None
    fd = os.open(name, _FLAGS, dir_fd=directory)
    try:
        return sample_of_open(fd, state) if _is_as(state, os.fstat(fd)) else None
    finally:
        os.close(fd)


def sample_of_open(fd: int, state: FileState) -> int | None:
    """Return the sample of an open file that was as in `state`; None if it is not any more.

    Raises OSError where it cannot be read.
    """
    found = hashlib.blake2b(state.size.to_bytes(8, "big"), digest_size=8)
    for offset, length in _pieces(state.size):
        found.update(os.pread(fd, length, offset))
    if not _is_as(state, os.fstat(fd)):
        return None
    return int.from_bytes(found.digest(), "big") or 1


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    if size <= MOST:
        yield 0, size
        return
    yield 0, END
    step = (size - 2 * END) // (BLOCKS + 1)
    for n in range(1, BLOCKS + 1):
        # From the beginning of a page, so that no more than one is read.
        yield (END + n * step) // BLOCK * BLOCK, BLOCK
    yield size - END, END


def _is_as(state: FileState, status: os.stat_result) -> bool:
    now = status.st_ino, status.st_size, status.st_ctime_ns
    return now == (state.inode, state.size, state.ctime)
