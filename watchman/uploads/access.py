"""Who may speak of a file: who may write it, or make it where it is not there."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Collection
from typing import Protocol

from watchman.errors import NotBelowWatch
from watchman.uploads import beneath

#: Bits of a mode or of an entry of a list.
WRITE, SEARCH = 2, 1

#: A list as the kernel hands it out, see posix_acl_xattr.h: its version, then tag, rights and id of
#: each entry.
ACL = "system.posix_acl_access"
HEADER, ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
USER, GROUP_OBJ, GROUP, MASK = 0x02, 0x04, 0x08, 0x10


class Speaker(Protocol):
    """Who has said something: a user and its groups, None if it may speak of any file."""

    @property
    def uid(self) -> int | None: ...

    @property
    def groups(self) -> frozenset[int] | None: ...


def may_speak(who: Speaker, root: str, subpath: str, *, begins: bool = False) -> bool:
    """Whether somebody may say how a transfer of a path below `root` goes.

    Asked of the file that is there now, by its directory's descriptor; of its directory where
    nothing is there, or where a transfer `begins` that may replace the file as a whole. In a sticky
    directory nobody replaces files of others, see unlink(2).
    """
    uid, groups = who.uid, who.groups
    if uid is None or groups is None:
        return True
    directory, _, name = subpath.rpartition("/")
    try:
        parent = beneath.open_directory(root, directory)
    except (OSError, NotBelowWatch):
        return False
    try:
        above, place = os.fstat(parent), f"/proc/self/fd/{parent}"
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is not None:
            if may(uid, groups, status, f"{place}/{name}", WRITE):
                return True
            if not begins or (above.st_mode & stat.S_ISVTX and uid != above.st_uid):
                return False
        return may(uid, groups, above, f"{place}/.", WRITE | SEARCH)
    except OSError:
        return False
    finally:
        os.close(parent)


def may(uid: int, groups: Collection[int], status: os.stat_result, path: str, wanted: int) -> bool:
    """Whether a user has the `wanted` rights on a file, by the algorithm of acl(5).

    Its owner has, for he could give them to himself. `path` is where its list is read.
    """
    if uid in (0, status.st_uid):
        return True
    if stat.S_ISLNK(status.st_mode):
        return False  # its mode, of all rights, says nothing
    entries = _entries(path)
    if not entries:
        shift = 3 if status.st_gid in groups else 0
        return (status.st_mode >> shift) & wanted == wanted
    mask = next((rights for tag, rights, _ in entries if tag == MASK), 7)
    own = [rights for tag, rights, who in entries if tag == USER and who == uid]
    if own:
        return own[0] & mask & wanted == wanted
    shared = [
        rights
        for tag, rights, who in entries
        if (tag == GROUP and who in groups) or (tag == GROUP_OBJ and status.st_gid in groups)
    ]
    if shared:
        return any(rights & mask & wanted == wanted for rights in shared)
    return status.st_mode & wanted == wanted


def _entries(path: str) -> list[tuple[int, int, int]]:
    try:
        found = os.getxattr(path, ACL, follow_symlinks=False)
    except OSError:
        return []  # it has none, or its filesystem knows none
    return list(ENTRY.iter_unpack(found[HEADER.size :]))
