"""Whether a filesystem is local, so that our kernel knows of every writer.

On others a lease says nothing. FUSE grants one though the file behind it has a writer, and network
filesystems do not report what other hosts do. A filesystem that is not listed here does not count
as local.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

#: `f_type` of local filesystems, see statfs(2) and linux/magic.h.
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
