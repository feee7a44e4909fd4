"""Renames a file without ever replacing another one."""

import ctypes
import errno
import functools
import os
from collections.abc import Callable

#: A flag of renameat2(2).
RENAME_NOREPLACE = 1

#: Errors of link(2) on a filesystem without hard links, or for a file that has too many of them.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def rename(source: int, name: str, target: int, new: str) -> None:
    """Rename `name` in the open directory `source` to `new` in the open directory `target`.

    Raises FileExistsError if the new name is taken, and OSError as rename(2).
    """
    try:
        _renameat2(source, name, target, new)
    except OSError as e:
        # EINVAL: NFS and some FUSE filesystems do not support the flag. ENOSYS: a C library from
        # before 2018 does not have the function.
        if e.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        _link_and_unlink(source, name, target, new)


def link(source: int, name: str, target: int, new: str) -> bool:
    """Give a file a second name; return False where the filesystem knows no hard links."""
    try:
        os.link(name, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        # Over NFS link(2) may have worked though it fails: the server's answer was lost, and the
        # repeated request found the name taken. See BUGS in link(2).
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
    """Rename in two steps. After a crash between them the file has both names."""
    if link(source, name, target, new):
        os.unlink(name, dir_fd=source)
    else:
        _rename_over_placeholder(source, name, target, new)


def _rename_over_placeholder(source: int, name: str, target: int, new: str) -> None:
    """Take the new name with an empty file, then rename over that.

    A crash between the two leaves the empty file behind.
    """
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
