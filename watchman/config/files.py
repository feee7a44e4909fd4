"""Our own files and directories: durable, and with modes that no umask changes."""

from __future__ import annotations

import os
from collections.abc import Callable

#: Permission bits of directories above those that are ours.
ABOVE = 0o755


def limit_umask() -> None:
    """Have the umask keep others from writing, and never us from our own files."""
    os.umask(os.umask(0o077) & 0o077 | 0o002)


def made_with(mode: int) -> Callable[[str, int], int]:
    """An opener for open(), which gives a file that it makes this mode, and leaves others alone."""

    def opener(path: str, flags: int) -> int:
        try:
            fd = os.open(path, flags | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            return os.open(path, flags | os.O_CLOEXEC, mode)
        os.fchmod(fd, mode)
        return fd

    return opener


def make_directory(path: str, mode: int) -> None:
    """Make a directory, and those above it, unless it is there."""
    if not os.path.isdir(path):
        make_directory(os.path.dirname(path), ABOVE)
        os.mkdir(path, mode)
        os.chmod(path, mode)


def fsync_directory(path: str, *, dir_fd: int | None = None) -> None:
    """Make names just made or removed in a directory durable, see fsync(2); `path` is taken from
    the directory `dir_fd`, which may be open as with O_PATH, if one is given.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
