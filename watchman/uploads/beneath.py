"""Looking at a file below a watch, without following a symlink on the way there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Self

from watchman.errors import NotBelowWatch
from watchman.uploads import lease
from watchman.uploads.ownership import Ownership
from watchman.uploads.sample import sample_of, sample_of_open
from watchman.uploads.upload import FileState

#: Of each directory on the way: no right to read it is needed, and no symlink is followed.
STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Of the file: nothing waits on a FIFO's other end or on another's lease.
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC

#: What else than a regular file may have a name.
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


class Look:
    """What a file looked like; it stays open until the end of a `with`, where it may be read.

    `writing` is None where the kernel does not say.
    """

    __slots__ = ("_fd", "ownership", "state", "writing")

    def __init__(
        self, state: FileState, writing: bool | None, ownership: Ownership, fd: int
    ) -> None:
        self.state = state
        self.writing = writing
        self.ownership = ownership
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def sample(self) -> int:
        """Return the sample of what it holds; 0 if it has changed since, or may not be read."""
        try:
            return (sample_of_open(self._fd, self.state) or 0) if self._fd >= 0 else 0
        except OSError:
            return 0


def below(root: str, subpath: str) -> str:
    """The absolute path of what lies at a sub-path of a watch or another directory."""
    return f"{root.rstrip('/')}/{subpath}" if subpath else root


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies below it, as it is written."""
    return os.path.join(path, "").startswith(os.path.join(directory, ""))


def canonical(path: str, roots: Iterable[str]) -> str:
    """Return the one name of a file, whatever spelling of its directory was used for it.

    The directory is named by what it is: `..` and symlinks are followed as the kernel does, below
    one of `roots` as that is spelled, the innermost if several hold it. The last component is kept
    as it is written, and not followed; where it names a directory it is taken for one. What is not
    there any more of the directory is as it was written.
    """
    directory, name = os.path.split(path.rstrip("/"))
    if name in (".", ".."):
        directory, name = path, ""
    real = _real(directory or "/")
    found, below = "", ""
    for root in roots:
        real_root = _real(root)
        # A symlink may lead into another root: both are the same directory then.
        if is_below(real, real_root) and (len(real_root), len(root)) > (len(below), len(found)):
            found, below = root, real_root
    if found:
        real = os.path.normpath(os.path.join(found, os.path.relpath(real, below)))
    return os.path.join(real, name) if name else real


def _real(directory: str) -> str:
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return os.path.realpath(directory)  # as far as it is there, and may be seen
    try:
        real = os.readlink(f"/proc/self/fd/{fd}")
        # The kernel says so of a directory that is deleted, see proc(5).
        is_there = os.path.samestat(os.stat(real), os.fstat(fd))
    except OSError:
        is_there = False
    finally:
        os.close(fd)
    return real if is_there else os.path.realpath(directory)


def identity(root: str) -> tuple[int, int] | None:
    """Return device and inode of a directory, None where it cannot be seen."""
    try:
        status = os.stat(root)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def open_directory(root: str, subpath: str) -> int:
    """Open a directory below `root` as with O_PATH; raise NotBelowWatch at a symlink on the way.

    `root` itself may be one.
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in subpath.split("/") if subpath else ():
            if name in ("", ".", ".."):
                raise NotBelowWatch(f"{subpath!r} is not a plain path")
            inner = os.open(name, STEP, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError as e:
        os.close(fd)
        if e.errno in (errno.ENOTDIR, errno.ELOOP):
            raise NotBelowWatch("a symlink or a file stands in the way") from e
        raise
    except NotBelowWatch:
        os.close(fd)
        raise
    return fd


def look(root: str, subpath: str) -> Look:
    """Look at a regular file below `root`, and whether anyone has it open for writing: for `with`.

    Raises FileNotFoundError where nothing is there, NotBelowWatch where it is no regular file or
    the way leads over a symlink, another OSError where the way is barred.
    """
    directory, _, name = subpath.rpartition("/")
    parent = open_directory(root, directory)
    try:
        # Before open(2): to open a device may rewind it, hang up a line, or worse.
        status = _regular(os.stat(name, dir_fd=parent, follow_symlinks=False))
        try:
            fd = os.open(name, READ, dir_fd=parent)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ELOOP):
                raise FileNotFoundError(errno.ENOENT, "gone while it was looked at") from e
            ownership = Ownership.of(status, os.fstat(parent))
            return Look(FileState.of(status), None, ownership, -1)
        try:
            return _look_open(fd, parent)
        except BaseException:
            os.close(fd)
            raise
    finally:
        os.close(parent)


def state(root: str, subpath: str) -> FileState:
    """Return the state of a regular file below `root`; raises as `look`."""
    directory, _, name = subpath.rpartition("/")
    parent = open_directory(root, directory)
    try:
        return FileState.of(_regular(os.stat(name, dir_fd=parent, follow_symlinks=False)))
    finally:
        os.close(parent)


def sample(root: str, subpath: str, state: FileState) -> int | None:
    """Return the sample of a file below `root` as it was looked at; None if it has changed since,
    or may not be read.
    """
    directory, _, name = subpath.rpartition("/")
    try:
        parent = open_directory(root, directory)
    except (OSError, NotBelowWatch):
        return None
    try:
        return sample_of(parent, name, state)
    except OSError:
        return None
    finally:
        os.close(parent)


def _regular(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise NotBelowWatch(f"it is {kind}, not a regular file")
    return status


def _look_open(fd: int, parent: int) -> Look:
    """Take the state of an open file, and whether anyone writes it, by asking for a read lease.

    Whoever opens the file for writing meanwhile sends us SIGIO, which the daemon ignores, and waits
    for the release. The state is taken under the lease, so that the last writer's last byte is in
    it.
    """
    held = lease.take(fd)
    status = os.fstat(fd)
    if held:
        lease.release(fd)
    ownership = Ownership.of(status, os.fstat(parent))
    writing = None if held is None else not held
    return Look(FileState.of(_regular(status)), writing, ownership, fd)
