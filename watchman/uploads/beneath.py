"""Looks at files below a watch, and follows no symlink on the way there."""

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

#: Flags to open each directory on the way. O_PATH needs no right to read it.
STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Flags to open the file. With O_NONBLOCK, open(2) does not wait for the other end of a FIFO, nor
#: for the holder of a lease.
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC

#: Kinds of files that are not regular, as messages call them.
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


class Look:
    """What a file looked like. If we may read the file, it stays open until the end of a `with`.

    `writing` says whether somebody has it open for writing, None if the kernel does not tell.
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
        """Return the sample of its content; 0 if it has changed since, or we may not read it."""
        try:
            return (sample_of_open(self._fd, self.state) or 0) if self._fd >= 0 else 0
        except OSError:
            return 0


def below(root: str, subpath: str) -> str:
    """Return the absolute path of a sub-path below a watch or another directory."""
    if not subpath:
        return root
    return f"{root}{subpath}" if root.endswith("/") else f"{root}/{subpath}"


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies below it, by the strings alone."""
    return f"{path}/".startswith(directory if directory.endswith("/") else f"{directory}/")


def subpath_of(path: str, root: str) -> str | None:
    """Return what `below` makes `path` of, given `root`; None if it is not below, by the strings.

    Both are paths without `..` and empty parts: relpath(3) would take ten times as long.
    """
    if path == root:
        return ""
    above = root if root.endswith("/") else f"{root}/"
    return path[len(above) :] if path.startswith(above) else None


def canonical(path: str, roots: Iterable[str]) -> str:
    """Return one and the same path for a file, however the path of its directory was written.

    ProFTPD passes on `..` and symlinked directories as the client wrote them. Here they are
    resolved as the kernel does. If the directory lies below one of `roots`, the path begins with
    that root as the INI file writes it; of several, with the innermost. The last component is kept
    as it is and not followed, unless it is `.` or `..`. A part of the path that does not exist any
    more is kept as written.
    """
    directory, name = os.path.split(path.rstrip("/"))
    if name in (".", ".."):
        directory, name = path, ""
    real = _real(directory or "/")
    found, below = "", ""
    for root in roots:
        real_root = _real(root)
        # Two roots may be one directory, if one is a symlink. Then the longer spelling wins.
        if is_below(real, real_root) and (len(real_root), len(root)) > (len(below), len(found)):
            found, below = root, real_root
    if found:
        real = os.path.normpath(os.path.join(found, os.path.relpath(real, below)))
    return os.path.join(real, name) if name else real


def _real(directory: str) -> str:
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return os.path.realpath(directory)  # resolves the part that exists and that we may see
    try:
        real = os.readlink(f"/proc/self/fd/{fd}")
        # Of a deleted directory the link names a path that is not there, see proc(5).
        is_there = os.path.samestat(os.stat(real), os.fstat(fd))
    except OSError:
        is_there = False
    finally:
        os.close(fd)
    return real if is_there else os.path.realpath(directory)


def identity(root: str) -> tuple[int, int] | None:
    """Return device and inode of a directory, None if stat(2) fails."""
    try:
        status = os.stat(root)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def open_directory(root: str, subpath: str) -> int:
    """Open a directory below `root` with O_PATH; raise NotBelowWatch at a symlink on the way.

    `root` itself may be a symlink.
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
    """Look at a regular file below `root`, and whether anyone has it open for writing.

    Use the result in a `with`. Raises FileNotFoundError if nothing is there, NotBelowWatch if it is
    not a regular file or the way leads over a symlink, and OSError if we may not go there.
    """
    directory, _, name = subpath.rpartition("/")
    parent = open_directory(root, directory)
    try:
        # Before open(2), because to open a device may have effects: a tape may rewind, a modem hang
        # up.
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
    """Return the state of a regular file below `root`. Raises what `look` raises."""
    directory, _, name = subpath.rpartition("/")
    parent = open_directory(root, directory)
    try:
        return FileState.of(_regular(os.stat(name, dir_fd=parent, follow_symlinks=False)))
    finally:
        os.close(parent)


def sample(root: str, subpath: str, state: FileState) -> int | None:
    """Return the sample of a file below `root`; None if it is not in `state` or cannot be read."""
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
    """Return what an open file looks like, and whether anyone has it open for writing.

    We ask for a read lease, see fcntl(2). While we hold it, whoever opens the file for writing
    waits for us to release it, and the kernel sends us SIGIO, which the daemon ignores. The state
    is taken under the lease, so it includes everything that the last writer wrote.
    """
    held = lease.take(fd)
    status = os.fstat(fd)
    if held:
        lease.release(fd)
    ownership = Ownership.of(status, os.fstat(parent))
    writing = None if held is None else not held
    return Look(FileState.of(_regular(status)), writing, ownership, fd)
