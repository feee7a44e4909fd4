"""Whether a directory is a mount point, and whether our kernel knows of every writer there."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

#: `f_type` of filesystems that count as local, see statfs(2) and linux/magic.h. On others a lease
#: says nothing: FUSE grants one though the file behind it has a writer, and network filesystems do
#: not report what other hosts do.
LOCAL = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
        0xCA451A4E,  # bcachefs
        0x3153464A,  # jfs
        0x52654973,  # reiserfs
        0x3434,  # nilfs2
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs: its files are written through it alone
        0x4D44,  # vfat
        0x2011BAB0,  # exfat
    }
)

#: Room for the result of statfs(2), more than it needs on any architecture.
_Buffer = ctypes.c_char * 256


def is_mount(fd: int) -> bool:
    """Whether an open directory is the root of a mount, a bind mount included.

    While the descriptor is open, the filesystem cannot be unmounted. So the answer stays true.
    os.path.ismount compares device numbers, which are equal if a directory is bound into its own
    filesystem.
    """
    above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        if _mount_id(above) != _mount_id(fd):
            return True
        # The root directory is its own parent.
        return os.path.samestat(os.fstat(above), os.fstat(fd))
    finally:
        os.close(above)


def is_mounted(path: str) -> bool:
    """Whether a path leads to a directory that is the root of a mount; False if to none."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_mount(fd)
    finally:
        os.close(fd)


def _mount_id(fd: int) -> int:
    """Return the id of the mount through which a descriptor was opened, see fdinfo in proc(5)."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "mnt_id":
                return int(value)
    raise AssertionError("since Linux 3.15 every descriptor has one")


def is_local(fd: int) -> bool:
    """Whether an open file is on a local filesystem. It may be open with O_PATH."""
    buffer = _Buffer()
    if _fstatfs()(fd, buffer) != 0:
        return False
    # `f_type` is the first member. It is a long on every architecture but s390.
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF in LOCAL


@functools.cache
def _fstatfs() -> Callable[..., Any]:
    return ctypes.CDLL(None, use_errno=True).fstatfs
