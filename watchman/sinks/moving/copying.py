"""Copies the content of a file to another filesystem."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

#: Bytes that are copied before `keep_on` is called again.
CHUNK = 8 << 20

#: Bytes that are copied before they are synced. On a filesystem such as ext4 (data=ordered, see
#: ext4(5)) an fsync(2) of any other file would have to wait until unsynced data is written.
UNSYNCED = 16 << 20

#: Errors that say that a system call cannot copy between these two files. copy_file_range(2) fails
#: with EXDEV between ext4 and tmpfs.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


def copy(source: int, target: int, size: int, *, keep_on: Callable[[], None]) -> None:
    """Copy `size` bytes between open files; holes stay holes.

    `keep_on` is called now and then, and ends the copying by raising an exception. Raises OSError,
    with EIO if the source has become shorter than `size`.
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
    """Yield start and end of each part of a file that is not a hole, see lseek(2)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return  # nothing but a hole up to the end
            if e.errno != errno.EINVAL:
                raise
            yield end, size  # this filesystem does not tell where holes are
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def _copy_some(source: int, target: int, offset: int, count: int) -> int:
    """Copy some bytes by the best system call that works here, and return how many."""
    for way in (_copy_file_range, _sendfile):
        try:
            # On some filesystems, such as /proc, it copies nothing and reports no error. Then the
            # next way is tried.
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
