"""Sorts files into folders beside them, and never replaces another file."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from watchman.uploads import renaming
from watchman.worker.announced import Announced
from watchman.worker.store import Mark

#: Bytes of a file's name, limits.h.
NAME_MAX = 255

#: How a directory is opened: not over a symlink that somebody has put there.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def mark_of(path: str) -> Mark | None:
    """By what the file is known again; None if there is none that we can see."""
    with contextlib.suppress(OSError):
        return _mark(os.lstat(path))
    return None


def sort(upload: Announced, folder: str, mark: Mark) -> bool:
    """Rename the upload's file into `folder` beside it; it is durable on return.

    False if the file of that mark is not there: it was sorted before, or is somebody's new write.
    Raises OSError.
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
                # Both names are the file's: a crash came between link and unlink.
                os.unlink(name, dir_fd=source)
            break
        else:
            raise FileExistsError(f"every name for it is taken in {os.path.join(where, folder)!r}")
        os.fsync(target)
        os.fsync(source)
    return True


def is_sorted(upload: Announced, folder: str) -> bool:
    """Whether the file that the message tells of is in that folder, by its inode."""
    where = os.path.join(os.path.dirname(upload.path), folder)
    for name in names(upload):
        with contextlib.suppress(OSError):
            status = os.lstat(os.path.join(where, name))
            if stat.S_ISREG(status.st_mode) and status.st_ino == upload.inode:
                return True
    return False


def names(upload: Announced) -> Iterator[str]:
    """The names that an upload's file may get, best first; the last ones are no other's."""
    name = os.path.basename(upload.path)
    yield name
    stem, suffix = os.path.splitext(name)
    for tail in (upload.id[:8], upload.id):
        cut = stem
        while cut and len(os.fsencode(f"{cut}@{tail}{suffix}")) > NAME_MAX:
            cut = cut[:-1]
        yield f"{cut}@{tail}{suffix}"


def _open(name: str, directory: int | None, stack: contextlib.ExitStack) -> int:
    # The way to the file may lead over symlinks that are an operator's.
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
