"""Makes our own files and directories, with modes that no umask changes, and makes them durable."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

#: Mode of directories that have to be made above our own.
ABOVE = 0o755


def limit_umask() -> None:
    """Change the umask, so that others can never write our files, and we can always use them."""
    os.umask(os.umask(0o077) & 0o077 | 0o002)


def made_with(mode: int) -> Callable[[str, int], int]:
    """Return an opener for open(). A file that it makes gets this mode; others keep theirs."""

    def opener(path: str, flags: int) -> int:
        try:
            fd = os.open(path, flags | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            return os.open(path, flags | os.O_CLOEXEC, mode)
        os.fchmod(fd, mode)
        return fd

    return opener


def replace_file(path: str, content: bytes, mode: int, *, durable: bool = False) -> None:
    """Replace a file by a new one. A reader finds either the old file or the new one, whole.

    On return the new file outlives a kill, because it was renamed to its place. If `durable`, it
    also outlives a power failure. Raises OSError. After that the old file is still there, unless
    the fsync after the rename failed: then the new file is there, and may not be durable.
    """
    new = f"{path}.new"
    try:
        # A file that a kill has left may belong to another user.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        with open(new, "wb", opener=made_with(mode)) as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.rename(new, path)
        if durable:
            fsync_directory(os.path.dirname(path))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def make_directory(path: str, mode: int) -> None:
    """Make a directory, and those above it, unless it is there."""
    if not os.path.isdir(path):
        make_directory(os.path.dirname(path), ABOVE)
        os.mkdir(path, mode)
        os.chmod(path, mode)


def fsync_directory(path: str, *, dir_fd: int | None = None) -> None:
    """Make new and removed names in a directory durable, see fsync(2). Raises OSError.

    With `dir_fd`, `path` is relative to that directory, which may be open with O_PATH.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
