"""Read leases: the kernel's word on who writes a file, see fcntl(2).

Who opens the file for writing while one is held waits until it is released, and sends SIGIO.
"""

import errno
import fcntl

from watchman.uploads.local import is_local


def take(fd: int) -> bool | None:
    """Take a read lease: True is held, False says that there is a writer, None that nobody knows.

    The kernel has no say for a file that is not ours without CAP_LEASE (EACCES), for one that is
    open as with O_PATH (EBADF), and on network filesystems (EINVAL). Only on a local filesystem is
    it told of every writer: FUSE grants leases on files that are written behind it.
    """
    if not is_local(fd):
        return None
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as e:
        return False if e.errno == errno.EAGAIN else None
    return True


def is_being_broken(fd: int) -> bool:
    """Whether a writer has come since the lease was taken, and waits for its release."""
    return fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK


def release(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def is_written(fd: int) -> bool | None:
    """Whether anyone has the file open for writing; None where nobody knows."""
    if held := take(fd):
        release(fd)
    return None if held is None else not held
