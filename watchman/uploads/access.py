"""Who may send notifications about a file: whoever may write it, or create it if it is missing."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Collection
from typing import Protocol

from watchman.errors import NotBelowWatch
from watchman.uploads import beneath

#: Bits of a mode, or of an entry in an access control list.
WRITE, SEARCH = 2, 1

#: An access control list as getxattr(2) returns it, see linux/posix_acl_xattr.h: a version, then
#: tag, rights and id of each entry.
ACL = "system.posix_acl_access"
HEADER, ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
USER, GROUP_OBJ, GROUP, MASK = 0x02, 0x04, 0x08, 0x10


class Speaker(Protocol):
    """Who has sent a notification: a uid and its groups, None if it may speak of any file."""

    @property
    def uid(self) -> int | None: ...

    @property
    def groups(self) -> frozenset[int] | None: ...


def may_speak(who: Speaker, root: str, subpath: str, *, begins: bool = False) -> bool:
    """Whether `who` may say how the transfer of a path below `root` goes.

    He may if he has the right to write the file that is there now. If there is none, he needs the
    right to write its directory. That is also enough if the transfer `begins`, because it may
    replace the whole file; but in a sticky directory nobody may replace the files of others, see
    unlink(2). All is looked up from a descriptor of the directory, so no symlink can mislead.
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

    The owner always has them, for he could give them to himself. The access control list is read
    at `path`.
    """
    if uid in (0, status.st_uid):
        return True
    if stat.S_ISLNK(status.st_mode):
        return False  # its mode always grants everything, see symlink(7)
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
        return []  # the file has no list, or its filesystem has none at all
    return list(ENTRY.iter_unpack(found[HEADER.size :]))
