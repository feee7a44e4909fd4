"""A sample of a file's content. It shows a rewrite that leaves size and mtime as they were."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from watchman.uploads.upload import FileState

#: Bytes that are read. A file that has no more than this is read as a whole.
MOST = 1 << 16

#: What is read of a larger file: END bytes at either end, where many formats have headers and
#: indices, and blocks of BLOCK bytes at even distances between.
END, BLOCK = 1 << 14, 1 << 12

#: The number of these blocks.
BLOCKS = (MOST - 2 * END) // BLOCK

#: With O_NONBLOCK, open(2) waits neither for the other end of a FIFO nor for the holder of a lease.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def sample_of(directory: int, name: str, state: FileState) -> int | None:
    """Return the sample of a file in an open directory: 64 bits, never 0.

    None if the file is not in `state` any more. Raises OSError if we may not read it.
    """
    # Before open(2), because to open a device may have effects: a tape may rewind, a modem hang up.
    if not _is_as(state, os.stat(name, dir_fd=directory, follow_symlinks=False)):
        return None
    fd = os.open(name, _FLAGS, dir_fd=directory)
    try:
        return sample_of_open(fd, state) if _is_as(state, os.fstat(fd)) else None
    finally:
        os.close(fd)


def sample_of_open(fd: int, state: FileState) -> int | None:
    """Return the sample of an open file; None if it is not in `state` after it was read.

    Raises OSError if it cannot be read.
    """
    found = hashlib.blake2b(state.size.to_bytes(8, "big"), digest_size=8)
    for offset, length in _pieces(state.size):
        found.update(os.pread(fd, length, offset))
    if not _is_as(state, os.fstat(fd)):
        return None
    return int.from_bytes(found.digest(), "big") or 1


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each piece that is read of a file."""
    if size <= MOST:
        yield 0, size
        return
    yield 0, END
    step = (size - 2 * END) // (BLOCKS + 1)
    for n in range(1, BLOCKS + 1):
        # Aligned to a page, so that the kernel reads no more than one.
        yield (END + n * step) // BLOCK * BLOCK, BLOCK
    yield size - END, END


def _is_as(state: FileState, status: os.stat_result) -> bool:
    now = status.st_ino, status.st_size, status.st_ctime_ns
    return now == (state.inode, state.size, state.ctime)
