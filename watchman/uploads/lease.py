"""Read leases, by which the kernel tells whether anyone has a file open for writing, see fcntl(2).

Whoever opens the file for writing while we hold a lease waits for its release (up to 45 seconds),
and the kernel sends us SIGIO. So a lease is released at once.
"""

import errno
import fcntl

from watchman.uploads.mounts import is_local


def take(fd: int) -> bool | None:
    """Take a read lease. Return True if we hold it, False if there is a writer, None if unknown.

    It is unknown if the file is not ours and we have no CAP_LEASE (EACCES), if it was opened with
    O_PATH (EBADF), and on network filesystems (EINVAL). It is also unknown on any filesystem that
    is not local: FUSE grants a lease even if somebody writes the file behind it.
    """
    if not is_local(fd):
        return None
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as e:
        return False if e.errno == errno.EAGAIN else None
    return True


def is_being_broken(fd: int) -> bool:
    """Whether somebody has opened the file for writing since, and waits for the release."""
    return fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK


def release(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def is_written(fd: int) -> bool | None:
    """Whether anyone has the file open for writing; None if unknown, see `take`."""
    if held := take(fd):
        release(fd)
    return None if held is None else not held
