"""Owner, permissions, times and what else a file has: set as the INI file says, or kept as far as
rights and filesystem allow. What lets others act as its owner or its group is not kept.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple

from watchman.config.settings import MoveSettings

logger = logging.getLogger(__name__)

#: Uid and gid.
Owner = tuple[int, int]

#: Who runs a file with these bits acts as its owner, or as its group.
SET_ID = stat.S_ISUID | stat.S_ISGID

#: Who runs a file with this attribute has some of root's rights. See capabilities(7).
CAPABILITY = "security.capability"

#: The access control list, as an extended attribute. See acl(5), xattr(7).
ACCESS = "system.posix_acl_access"

#: Of an entry of that list: whom it is about, what it allows, a uid or gid.
ENTRY = struct.Struct("<HHI")

#: Entries of the owning group, and of the mask, which limits what it may.
GROUP_OBJ, MASK = 0x04, 0x10

#: Why a filesystem does not take an attribute that another one had. With no room for one there may
#: yet be room for the file.
UNTAKEN = (
    *(errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENODATA, errno.ENOSYS),
    *(errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE),
)


class Kept(NamedTuple):
    """What a file has that a `change` may take from it."""

    status: os.stat_result
    access: bytes | None

    @classmethod
    def of(cls, fd: int) -> Kept:
        return cls(os.fstat(fd), _attribute(fd, ACCESS))


def change(fd: int, settings: MoveSettings, owner: Owner | None) -> None:
    """Set what the INI file says of a file, and take away what must not survive.

    `owner` is whose it was when it was accepted, as far as that is known.
    """
    before = os.fstat(fd)
    owner = owner or owner_of(before)
    set_owner(fd, settings, None)
    is_kept = owner_of(os.fstat(fd)) == owner
    mode = stat.S_IMODE(before.st_mode)
    if not is_kept and (access := _attribute(fd, ACCESS)):
        # Given by an owner who is none any more, perhaps to himself.
        mode = _without_list(mode, access)
        os.removexattr(_path(fd), ACCESS)
    mode = _mode(settings, mode, is_kept=is_kept)
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)
    if _attribute(fd, CAPABILITY) is not None:
        os.removexattr(_path(fd), CAPABILITY)


def copy(
    source: int,
    fd: int,
    settings: MoveSettings,
    owner: Owner | None,
    kept: os.stat_result,
) -> None:
    """Set what the INI file says of a copy, and all else as it was at the source, as `change`."""
    set_owner(fd, settings, kept)
    is_kept = owner_of(os.fstat(fd)) == (owner or owner_of(kept))
    mode, access = stat.S_IMODE(kept.st_mode), _attribute(source, ACCESS)
    if access and not is_kept:
        mode = _without_list(mode, access)
    elif access:
        _set_attribute(fd, ACCESS, access)  # before the mode, for this sets the list's mask
    _copy_users_attributes(source, fd)
    mode = _mode(settings, mode, is_kept=is_kept)
    permit(lambda: os.fchmod(fd, mode), required=settings.mode is not None)
    times = (kept.st_atime_ns, kept.st_mtime_ns)
    permit(lambda: os.utime(fd, ns=times), required=False)


def owner_of(status: os.stat_result) -> Owner:
    return status.st_uid, status.st_gid


def _mode(settings: MoveSettings, mode: int, *, is_kept: bool) -> int:
    """Return the permissions of a moved file that had `mode`; `is_kept` are owner and group."""
    if settings.mode is None:
        return mode & ~SET_ID
    return settings.mode if is_kept else settings.mode & ~SET_ID


def _without_list(mode: int, access: bytes) -> int:
    """Return the permissions without the list: with one, those of the group are the list's mask."""
    entries = ENTRY.iter_unpack(access[4:])
    allowed: dict[int, int] = {tag: rights for tag, rights, _ in entries}
    group = allowed.get(GROUP_OBJ, 0) & allowed.get(MASK, 7)
    return mode & ~stat.S_IRWXG | group << 3


def _copy_users_attributes(source: int, target: int) -> None:
    try:
        names = os.listxattr(source)
    except OSError as e:
        if e.errno not in UNTAKEN:
            raise
        return
    for name in names:
        if name.startswith("user.") and (value := _attribute(source, name)) is not None:
            _set_attribute(target, name, value)


def _set_attribute(fd: int, name: str, value: bytes) -> None:
    try:
        os.setxattr(fd, name, value)
    except OSError as e:
        if e.errno not in UNTAKEN:
            raise
        logger.debug("Attribute %r of a moved file is lost: %s.", name, e.strerror)


def _attribute(fd: int, name: str) -> bytes | None:
    """Return an extended attribute, None if there is none."""
    try:
        return os.getxattr(_path(fd), name)
    except OSError as e:
        if e.errno not in UNTAKEN:
            raise
        return None


def _path(fd: int) -> str:
    """Return a path of an open file, also of one that is open as with O_PATH."""
    return f"/proc/self/fd/{fd}"


def restore(fd: int, kept: Kept) -> None:
    """Undo a `change`, as far as rights allow."""
    old, now = kept.status, os.fstat(fd)
    if owner_of(now) != owner_of(old):
        permit(lambda: os.fchown(fd, old.st_uid, old.st_gid), required=False)
    access = kept.access
    if access is not None and _attribute(fd, ACCESS) != access:
        _set_attribute(fd, ACCESS, access)
    if os.fstat(fd).st_mode != old.st_mode:
        permit(lambda: os.fchmod(fd, stat.S_IMODE(old.st_mode)), required=False)


def set_owner(fd: int, settings: MoveSettings, kept: os.stat_result | None) -> None:
    """Give a file the INI file's owner and group, or as far as rights allow the `kept` ones."""
    now = os.fstat(fd)
    user = settings.owner if settings.owner is not None else kept.st_uid if kept else now.st_uid
    group = settings.group if settings.group is not None else kept.st_gid if kept else now.st_gid
    # The group first: who gives a file away may not do any more.
    if now.st_gid != group:
        permit(lambda: os.fchown(fd, -1, group), required=settings.group is not None)
    if now.st_uid != user:
        permit(lambda: os.fchown(fd, user, -1), required=settings.owner is not None)


def permit(change: Callable[[], None], *, required: bool) -> None:
    """Change something, which need not be permitted unless it is required."""
    try:
        change()
    except OSError as e:
        # EINVAL: an id that a user namespace does not map.
        if required or e.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP):
            raise
