"""Walks a directory tree by descriptors.

So it never follows a symlink, even if somebody swaps a directory for one while the walk is in it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from watchman.errors import NotBelowWatch
from watchman.uploads import beneath

T = TypeVar("T")

#: Device and inode.
Identity = tuple[int, int]

#: Bytes of the longest path that can be opened, with its closing NUL, see limits.h.
PATH_MAX = 4096

#: Descriptors that a walk holds open at once. Deeper down, those nearest to the top are closed.
HELD = 32

#: Errors of opening a directory that was listed and is gone by now, or whose name something else
#: has.
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

#: Errors that another try does not cure. Somebody must change a right or rename something.
BARRED = frozenset({errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENAMETOOLONG})

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Directory(Generic[T]):
    """An open directory on a walk.

    The caller of `walk` fills `names` with the subdirectories to go into, as with the dirnames of
    `os.walk`. It sets `here` to a value of its own, which each of them gets as `above`.
    """

    __slots__ = ("_identity", "above", "fd", "here", "name", "names")

    def __init__(self, fd: int, name: str, above: T | None, here: T | None) -> None:
        self.fd = fd
        self.name = name
        self.above = above
        self.here = here
        self.names: list[str] = []
        self._identity: Identity | None = None

    @property
    def identity(self) -> Identity:
        """Device and inode; looked up when first asked for, because most walks never ask."""
        if self._identity is None:
            self._identity = identity(self.fd)
        return self._identity

    def close(self) -> None:
        """Close it for now; `reopen` opens it again."""
        assert self.identity  # remembered, for `reopen` to compare
        os.close(self.fd)
        self.fd = -1

    def reopen(self, inner: int) -> None:
        """Open it again as the parent of `inner`; raises OSError if that was moved elsewhere."""
        fd = os.open("..", _FLAGS, dir_fd=inner)
        if identity(fd) != self._identity:
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        self.fd = fd


def identity(fd: int) -> Identity:
    """Return device and inode of an open directory."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def join(above: str, name: str) -> str:
    """Return the sub-path of `name` in the directory with the sub-path `above`."""
    return f"{above}/{name}" if above else name


def too_long(path: str, subpath: str) -> bool:
    """Whether a path is too long for any system call; it is `subpath` below a watch's `path`."""
    # No character takes more than four bytes, so most paths need not be encoded to tell.
    if 4 * (len(path) + 1 + len(subpath)) < PATH_MAX:
        return False
    return len(os.fsencode(beneath.below(path, subpath))) >= PATH_MAX


def open_below(path: str, subpath: str) -> int:
    """Open a directory; raises OSError. `path` may lead over symlinks, `subpath` may not."""
    try:
        handle = beneath.open_directory(path, subpath)
    except NotBelowWatch as e:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from e
    try:
        return os.open(".", _FLAGS, dir_fd=handle)
    finally:
        os.close(handle)


def walk(fd: int, here: T, failed: Callable[[T, str, OSError], None]) -> Iterator[Directory[T]]:
    """Go through the tree below `fd` from the top down; `fd` is closed at the end.

    `failed(above, name, error)` is called for each subdirectory that cannot be opened. With an
    empty name it says that the walk could not get back into `above`, because a directory was moved
    meanwhile. Then the subdirectories that were left there are not visited.
    """
    chain: list[Directory[T]] = []
    try:
        chain.append(Directory(fd, "", None, here))
        yield chain[0]
        while chain:
            directory = chain[-1]
            if not directory.names:
                chain.pop()
                try:
                    if chain and chain[-1].fd < 0:
                        chain[-1].reopen(directory.fd)
                except OSError as e:
                    for lost in chain:
                        if lost.names:
                            assert lost.here is not None
                            failed(lost.here, "", e)
                    return
                finally:
                    os.close(directory.fd)
                continue
            name = directory.names.pop()
            assert directory.here is not None
            try:
                fd = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=directory.fd)
            except OSError as e:
                failed(directory.here, name, e)
                continue
            chain.append(Directory(fd, name, directory.here, None))
            if len(chain) > HELD and (outer := chain[-HELD - 1]).fd >= 0:
                outer.close()
            yield chain[-1]
    finally:
        for directory in chain:
            if directory.fd >= 0:
                os.close(directory.fd)
