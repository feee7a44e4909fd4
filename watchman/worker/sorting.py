"""Sorts files into folders beside them, and never replaces another file."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from watchman.uploads import renaming
from watchman.worker.announced import Announced
from watchman.worker.store import Mark

#: The most bytes of a file's name, see limits.h.
NAME_MAX = 255

#: Flags to open a directory, but not over a symlink that somebody has put there.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def mark_of(path: str) -> Mark | None:
    """Return the mark of a file; None if we cannot see one there."""
    with contextlib.suppress(OSError):
        return _mark(os.lstat(path))
    return None


def sort(upload: Announced, folder: str, mark: Mark) -> bool:
    """Rename the upload's file into `folder` beside it; durable on return. Raises OSError.

    Return False if the file with that mark is not there. Then it was sorted before, or somebody has
    written it again.
    """
    where, name = os.path.split(upload.path)
    with contextlib.ExitStack() as stack:
        source = _open(where, None, stack)
        if _mark_in(source, name) != mark:
            return False
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, dir_fd=source)
        target = _open(folder, source, stack)
        for new in names(upload):
            try:
                renaming.rename(source, name, target, new)
            except FileExistsError:
                if _mark_in(target, new) != mark:
                    continue
                # The file has both names: a crash came between link and unlink.
                os.unlink(name, dir_fd=source)
            break
        else:
            raise FileExistsError(f"every name for it is taken in {os.path.join(where, folder)!r}")
        os.fsync(target)
        os.fsync(source)
    return True


def is_sorted(upload: Announced, folder: str) -> bool:
    """Return whether the upload's file is in that folder; it is recognized by its inode."""
    where = os.path.join(os.path.dirname(upload.path), folder)
    for name in names(upload):
        with contextlib.suppress(OSError):
            status = os.lstat(os.path.join(where, name))
            if stat.S_ISREG(status.st_mode) and status.st_ino == upload.inode:
                return True
    return False


def names(upload: Announced) -> Iterator[str]:
    """Yield the names that an upload's file may get, best first. The last one has the whole id."""
    name = os.path.basename(upload.path)
    yield name
    stem, suffix = os.path.splitext(name)
    for tail in (upload.id[:8], upload.id):
        cut = stem
        while cut and len(os.fsencode(f"{cut}@{tail}{suffix}")) > NAME_MAX:
            cut = cut[:-1]
        yield f"{cut}@{tail}{suffix}"


def _open(name: str, directory: int | None, stack: contextlib.ExitStack) -> int:
    # An operator may have made symlinks on the way to the file. Those are followed.
    flags = DIRECTORY if directory is not None else DIRECTORY & ~os.O_NOFOLLOW
    fd = os.open(name, flags, dir_fd=directory)
    stack.callback(os.close, fd)
    return fd


def _mark_in(directory: int, name: str) -> Mark | None:
    with contextlib.suppress(FileNotFoundError):
        return _mark(os.stat(name, dir_fd=directory, follow_symlinks=False))
    return None


def _mark(status: os.stat_result) -> Mark | None:
    return Mark.of(status) if stat.S_ISREG(status.st_mode) else None
