"""Copying what a file holds into another one, on another filesystem."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

#: Bytes copied between two looks at whether to stop.
CHUNK = 8 << 20

#: Bytes copied between two that are written to disk. What is not when another file is synced has to
#: be written before that is done, on filesystems that write data before what tells of it, as ext4.
UNSYNCED = 16 << 20

#: What says that a system call cannot copy between these two files.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


def copy(source: int, target: int, size: int, *, keep_on: Callable[[], None]) -> None:
    """Copy `size` bytes between open files, holes as holes.

    `keep_on` is called now and then; what it raises ends the copying. Raises OSError with EIO if
    the source ends before.
    """
    os.ftruncate(target, size)
    unsynced = 0
    for start, end in _data(source, size):
        while start < end:
            keep_on()
            count = _copy_some(source, target, start, min(CHUNK, end - start))
            if not count:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            start += count
            unsynced += count
            if unsynced >= UNSYNCED:
                os.fdatasync(target)
                unsynced = 0


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of what is not a hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return  # nothing but a hole up to the end
            if e.errno != errno.EINVAL:
                raise
            yield end, size  # this filesystem does not say
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def _copy_some(source: int, target: int, offset: int, count: int) -> int:
    """Copy some bytes by the best system call that there is for it, and return how many."""
    for way in (_copy_file_range, _sendfile):
        try:
            # Some filesystems let it end early without an error, as those of /proc do.
            if copied := way(source, target, offset, count):
                return copied
        except OSError as e:
            if e.errno not in _CANNOT:
                raise
    data = os.pread(source, min(count, 1 << 20), offset)
    return os.pwrite(target, data, offset)


def _copy_file_range(source: int, target: int, offset: int, count: int) -> int:
    return os.copy_file_range(source, target, count, offset, offset)


def _sendfile(source: int, target: int, offset: int, count: int) -> int:
    os.lseek(target, offset, os.SEEK_SET)
    return os.sendfile(target, source, offset, count)
