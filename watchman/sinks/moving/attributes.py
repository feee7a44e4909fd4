"""Sets or keeps a moved file's owner, permissions, times and extended attributes.

What the INI file says is set. All else is kept, as far as our rights and the filesystem allow.
Set-uid, set-gid and file capabilities are not kept: with them others could act as the file's owner
or with some of root's rights.
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

#: Bits with which a program runs as the file's owner, or with the file's group.
SET_ID = stat.S_ISUID | stat.S_ISGID

#: An attribute with which a program has some of root's rights, see capabilities(7).
CAPABILITY = "security.capability"

#: The attribute that holds the access control list, see acl(5) and xattr(7).
ACCESS = "system.posix_acl_access"

#: An entry of that list: a tag (whom it is about), the rights, and a uid or gid.
ENTRY = struct.Struct("<HHI")

#: Tags of the entry for the owning group, and of the mask, which limits that group's rights.
GROUP_OBJ, MASK = 0x04, 0x10

#: Errors because of which an attribute is left out. ENOSPC is one: a filesystem without room for
#: an attribute may still have room for the file.
UNTAKEN = (
    *(errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENODATA, errno.ENOSYS),
    *(errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE),
)


class Kept(NamedTuple):
    """What `change` may take from a file, kept so that `restore` can give it back."""

    status: os.stat_result
    access: bytes | None

    @classmethod
    def of(cls, fd: int) -> Kept:
        return cls(os.fstat(fd), _attribute(fd, ACCESS))


def change(fd: int, settings: MoveSettings, owner: Owner | None) -> None:
    """Set what the INI file says, and take away what must not be kept. Raises OSError.

    `owner` is the file's owner when it was accepted, None if that is not known.
    """
    before = os.fstat(fd)
    owner = owner or owner_of(before)
    set_owner(fd, settings, None)
    is_kept = owner_of(os.fstat(fd)) == owner
    mode = stat.S_IMODE(before.st_mode)
    if not is_kept and (access := _attribute(fd, ACCESS)):
        # The list was made by the old owner, who may have given himself rights by it.
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
    """Set on the copy `fd` what the INI file says, and all else as the file `source` has it.

    `owner` is as with `change`; `kept` is the status of the source. Raises OSError.
    """
    set_owner(fd, settings, kept)
    is_kept = owner_of(os.fstat(fd)) == (owner or owner_of(kept))
    mode, access = stat.S_IMODE(kept.st_mode), _attribute(source, ACCESS)
    if access and not is_kept:
        mode = _without_list(mode, access)
    elif access:
        _set_attribute(fd, ACCESS, access)  # before the mode, because chmod(2) sets the list's mask
    _copy_users_attributes(source, fd)
    mode = _mode(settings, mode, is_kept=is_kept)
    permit(lambda: os.fchmod(fd, mode), required=settings.mode is not None)
    times = (kept.st_atime_ns, kept.st_mtime_ns)
    permit(lambda: os.utime(fd, ns=times), required=False)


def owner_of(status: os.stat_result) -> Owner:
    return status.st_uid, status.st_gid


def _mode(settings: MoveSettings, mode: int, *, is_kept: bool) -> int:
    """Return the permissions for a moved file that had `mode`.

    `is_kept` says whether it keeps owner and group. Only then the INI file may set set-id bits.
    """
    if settings.mode is None:
        return mode & ~SET_ID
    return settings.mode if is_kept else settings.mode & ~SET_ID


def _without_list(mode: int, access: bytes) -> int:
    """Return the permissions that a file has after its access control list is removed.

    While it has one, the group bits of `mode` are the list's mask, see acl(5).
    """
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
    """Return an extended attribute, None if the file has none of that name."""
    try:
        return os.getxattr(_path(fd), name)
    except OSError as e:
        if e.errno not in UNTAKEN:
            raise
        return None


def _path(fd: int) -> str:
    """Return a path to an open file.

    By a path it works with O_PATH, too; fgetxattr(2) fails with EBADF there, see open(2).
    """
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
    """Give a file the INI file's owner and group, else those in `kept` as far as rights allow."""
    now = os.fstat(fd)
    user = settings.owner if settings.owner is not None else kept.st_uid if kept else now.st_uid
    group = settings.group if settings.group is not None else kept.st_gid if kept else now.st_gid
    # The group first: after a file was given away, we may not change it any more.
    if now.st_gid != group:
        permit(lambda: os.fchown(fd, -1, group), required=settings.group is not None)
    if now.st_uid != user:
        permit(lambda: os.fchown(fd, user, -1), required=settings.owner is not None)


def permit(change: Callable[[], None], *, required: bool) -> None:
    """Call `change`. If it is not permitted, raise OSError only if it is `required`."""
    try:
        change()
    except OSError as e:
        # EINVAL: the id does not exist in our user namespace, see chown(2).
        if required or e.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP):
            raise
