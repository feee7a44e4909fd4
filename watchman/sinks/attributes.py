"""Owner, permissions, times and what else a file has: set as the INI file says, or kept as far as
rights and filesystem allow.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from watchman.settings import MoveSettings

logger = logging.getLogger(__name__)

#: The access control list, as an extended attribute. See acl(5), xattr(7).
ACCESS = "system.posix_acl_access"

#: Why a filesystem does not take an attribute that another one had. With no room for one there may
#: yet be room for the file.
UNTAKEN = (
    *(errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENODATA),
    *(errno.ENOSPC, errno.EDQUOT, errno.E2BIG, errno.ERANGE),
)


def change(fd: int, settings: MoveSettings) -> None:
    """Set what the INI file says of a file."""
    set_owner(fd, settings, None)
    if settings.mode is not None:
        os.fchmod(fd, settings.mode)


def copy(source: int, fd: int, settings: MoveSettings, kept: os.stat_result) -> None:
    """Set what the INI file says of a copy, and all else as it was at the source."""
    owned = set_owner(fd, settings, kept)
    copy_extended(source, fd)
    if settings.mode is not None:
        os.fchmod(fd, settings.mode)
    else:
        # What lets others act as the owner must not let them act as somebody else.
        mode = stat.S_IMODE(kept.st_mode) & (0o7777 if owned else 0o777)
        permit(lambda: os.fchmod(fd, mode), required=False)
    times = (kept.st_atime_ns, kept.st_mtime_ns)
    permit(lambda: os.utime(fd, ns=times), required=False)


def copy_extended(source: int, target: int) -> None:
    """Give a copy the access control list and the users' extended attributes of its source.

    Before its mode, for this sets the list's mask.
    """
    for name in _extended(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as e:
            if e.errno not in UNTAKEN:
                raise
            logger.debug("Attribute %r of a moved file is lost: %s.", name, e.strerror)


def _extended(fd: int) -> list[str]:
    try:
        names = os.listxattr(fd)
    except OSError as e:
        if e.errno not in UNTAKEN:
            raise
        return []
    return [name for name in names if name == ACCESS or name.startswith("user.")]


class Kept(NamedTuple):
    """What a file has that a `change` may take from it."""

    status: os.stat_result

    @classmethod
    def of(cls, fd: int) -> Kept:
        return cls(os.fstat(fd))


def restore(fd: int, kept: Kept) -> None:
    """Undo a `change`, as far as rights allow."""
    old, now = kept.status, os.fstat(fd)
    if (now.st_uid, now.st_gid) != (old.st_uid, old.st_gid):
        permit(lambda: os.fchown(fd, old.st_uid, old.st_gid), required=False)
    if now.st_mode != old.st_mode:
        permit(lambda: os.fchmod(fd, stat.S_IMODE(old.st_mode)), required=False)


def set_owner(fd: int, settings: MoveSettings, kept: os.stat_result | None) -> bool:
    """Give an open file the INI file's owner and group, or as far as rights allow the `kept` ones.

    Returns whether they are these now.
    """
    now = os.fstat(fd)
    user = settings.owner if settings.owner is not None else kept.st_uid if kept else now.st_uid
    group = settings.group if settings.group is not None else kept.st_gid if kept else now.st_gid
    # The group first: who gives a file away may not do any more.
    fine = now.st_gid == group or permit(
        lambda: os.fchown(fd, -1, group), required=settings.group is not None
    )
    return fine & (
        now.st_uid == user
        or permit(lambda: os.fchown(fd, user, -1), required=settings.owner is not None)
    )


def permit(change: Callable[[], None], *, required: bool) -> bool:
    """Change something; return False where it is not permitted, unless it is required."""
    try:
        change()
    except OSError as e:
        # EINVAL: an id that a user namespace does not map.
        if required or e.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    return True
