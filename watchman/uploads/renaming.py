"""Renaming a file, never over another one."""

import ctypes
import errno
import functools
import os
from collections.abc import Callable

#: renameat2(2).
RENAME_NOREPLACE = 1

#: What a filesystem without hard links answers, see link(2); or one file that has too many.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def rename(source: int, name: str, target: int, new: str) -> None:
    """Rename `name` in the directory `source` to `new` in `target`, both open.

    Raises FileExistsError if that name is taken, and OSError as rename(2).
    """
    try:
        _renameat2(source, name, target, new)
    except OSError as e:
        # NFS and some FUSE filesystems know no flags; nor does a C library before 2018.
        if e.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        _link_and_unlink(source, name, target, new)


def link(source: int, name: str, target: int, new: str) -> bool:
    """Give a file a second name; return False where the filesystem knows no hard links."""
    try:
        os.link(name, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        # open(2): over NFS it may have been done all the same, its answer lost and asked for again.
        if not _is_same(source, name, target, new):
            raise
    except OSError as e:
        if e.errno in NO_LINKS:
            return False
        raise
    return True


def _is_same(source: int, name: str, target: int, new: str) -> bool:
    one = os.stat(name, dir_fd=source, follow_symlinks=False)
    other = os.stat(new, dir_fd=target, follow_symlinks=False)
    return os.path.samestat(one, other)


def _link_and_unlink(source: int, name: str, target: int, new: str) -> None:
    if link(source, name, target, new):
        os.unlink(name, dir_fd=source)
    else:
        _rename_over_placeholder(source, name, target, new)


def _rename_over_placeholder(source: int, name: str, target: int, new: str) -> None:
    """Take the name with an empty file first, which a crash right then would leave behind."""
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0, dir_fd=target))
    try:
        os.rename(name, new, src_dir_fd=source, dst_dir_fd=target)
    except OSError:
        os.unlink(new, dir_fd=target)
        raise


def _renameat2(source: int, name: str, target: int, new: str) -> None:
    function = _load_renameat2()
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(source, os.fsencode(name), target, os.fsencode(new), RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name, None, new)


@functools.cache
def _load_renameat2() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (
            *(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p),
            ctypes.c_uint,
        )
    return function
