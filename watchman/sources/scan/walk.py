"""Walking a directory tree by descriptors, so that no symlink is followed, however fast swapped."""

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

#: Bytes of a path with its closing NUL, the kernel's PATH_MAX: a longer one cannot be opened.
PATH_MAX = 4096

#: Descriptors that a walk holds at once; deeper down, those nearest to the top are closed.
HELD = 32

#: What opening a listed directory says when it is gone, or something else has taken its name.
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

#: What another try does not cure, only another's chmod or rename.
BARRED = frozenset({errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENAMETOOLONG})

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Directory(Generic[T]):
    """An open directory on a walk.

    The walk's user fills `names` with the subdirectories to go into, as `os.walk`'s dirnames, and
    sets `here` to whatever it wants to see again as `above` in each of them.
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
        """What it is; few ask."""
        if self._identity is None:
            self._identity = identity(self.fd)
        return self._identity

    def close(self) -> None:
        """Close it until it is needed again."""
        assert self.identity
        os.close(self.fd)
        self.fd = -1

    def reopen(self, inner: int) -> None:
        """Open it again from a directory in it, unless that was moved elsewhere."""
        fd = os.open("..", _FLAGS, dir_fd=inner)
        if identity(fd) != self._identity:
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        self.fd = fd


def identity(fd: int) -> Identity:
    """What an open directory is."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def join(above: str, name: str) -> str:
    """The sub-path of `name` in the directory with the sub-path `above`."""
    return f"{above}/{name}" if above else name


def too_long(path: str, subpath: str) -> bool:
    """Whether no system call can name what has this sub-path below a watch's path."""
    # A character takes at most four bytes, so most paths need not be encoded to know.
    if 4 * (len(path) + 1 + len(subpath)) < PATH_MAX:
        return False
    return len(os.fsencode(beneath.below(path, subpath))) >= PATH_MAX


def open_below(path: str, subpath: str) -> int:
    """Open a directory; `path` may be a symlink or lead over some, nothing below it may."""
    try:
        handle = beneath.open_directory(path, subpath)
    except NotBelowWatch as e:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from e
    try:
        return os.open(".", _FLAGS, dir_fd=handle)
    finally:
        os.close(handle)


def walk(fd: int, here: T, failed: Callable[[T, str, OSError], None]) -> Iterator[Directory[T]]:
    """Go through the tree below `fd`, which is closed at the end, top down.

    `failed(above, name, error)` hears of each subdirectory that cannot be opened. An empty name
    says that the way back into `above` is lost, with what has not been visited there.
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
