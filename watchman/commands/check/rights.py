"""Which right we lack, as the kernel says, and the command that grants it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import stat
from pathlib import Path

from watchman.commands.shared.filesystems import group_name, may, user_name

#: For access(2), and how they are called.
LETTERS = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}

ENTER = os.R_OK | os.X_OK
WRITE = os.W_OK | os.X_OK


def me() -> str:
    return user_name(os.geteuid())


def complaint(path: str, rights: int) -> str:
    """Say what we may not do with a path and what grants it; nothing if all is well.

    What stands in the way may be a directory above. What is not there has no rights to look at.
    """
    with contextlib.suppress(FileNotFoundError):
        for above in map(str, reversed(Path(path).parents)):
            if os.path.isdir(above) and not may(above, os.X_OK):
                return _complaint(above, "x", os.X_OK)
        lacking = [
            letter
            for letter, right in LETTERS.items()
            if rights & right and not may(path, right) and os.path.lexists(path)
        ]
        if lacking:
            return _complaint(path, "".join(lacking), rights)
    return ""


def _complaint(path: str, lacking: str, rights: int) -> str:
    return f"{me()} lacks {lacking} on {path!r}; {_grant(path, lacking, rights)}"


def _grant(path: str, lacking: str, rights: int) -> str:
    """The command that gives us rights and takes nobody's."""
    user = os.geteuid()
    status = os.stat(path)
    place = shlex.quote(path)
    if "w" in lacking and os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"mount -o remount,rw {shlex.quote(_mount_of(path))}"
    if user == 0:
        return f"something keeps even root from it: lsattr -d {place}"
    if status.st_uid == user:
        return f"chmod u+{lacking} {place}"
    letters = "".join(letter for letter, right in LETTERS.items() if rights & right)
    has_list = _has_list(path)
    if status.st_gid in {os.getegid(), *os.getgroups()} and not has_list:
        return f"chmod g+{lacking} {place}"
    if has_list or status.st_gid not in (0, _private_group(status.st_uid)):
        # The group is somebody's: to give the directory to another one would shut them out.
        entry = f"u:{_name()}:{letters}"
        if stat.S_ISDIR(status.st_mode) and "w" in letters:
            entry = f"u:{_name()}:rwx,d:u:{_name()}:rwx"
        return f"setfacl -m {entry} {place}"
    inherited = "s" if stat.S_ISDIR(status.st_mode) else ""
    return f"chgrp {group_name(os.getegid())} {place} && chmod g+{letters}{inherited} {place}"


def sticky_complaint(directory: str, owners: set[int], *, owns_all: bool) -> str:
    """Say that we may not rename what others own in a sticky directory, see unlink(2)."""
    status = os.stat(directory)
    ours = {os.geteuid()}
    if not status.st_mode & stat.S_ISVTX or owns_all or status.st_uid in ours:
        return ""
    if owners and owners <= ours:
        return ""
    text = f"{directory!r} is sticky, so that {me()} may not move what others own"
    return f"{text}; chown {_name()} {shlex.quote(directory)}"


def _has_list(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


def _private_group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return -1


def _name() -> str:
    return me().removeprefix("uid ")


def _mount_of(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
