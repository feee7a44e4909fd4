"""Which right we lack, as the kernel says, and the command that grants it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import stat
from pathlib import Path

from watchman.commands.check.findings import Finding, error, ok
from watchman.commands.shared.filesystems import group_name, may, user_name

#: For access(2), and how they are called.
LETTERS = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}

ENTER = os.R_OK | os.X_OK
WRITE = os.W_OK | os.X_OK


def me() -> str:
    return user_name(os.geteuid())


def account() -> str:
    """Return our name as commands take it."""
    return me().removeprefix("uid ")


def directory(subject: str, path: str, rights: int) -> Finding | None:
    """Whether a path is a directory that grants us rights; None where there is nothing yet."""
    is_directory = os.path.isdir(path)
    if text := complaint(path, rights if is_directory else 0):
        return error(subject, text)
    if is_directory:
        return ok(subject, path)
    return error(subject, f"{path!r} is not a directory") if os.path.lexists(path) else None


def closed(path: str) -> list[str]:
    """Return what FTP users cannot pass on their way into a directory, the innermost first."""
    return [
        str(one)
        for one in (Path(path), *Path(path).parents)
        if os.path.isdir(one) and not one.stat().st_mode & stat.S_IXOTH
    ]


def complaint(path: str, rights: int) -> str:
    """Say what we may not do with a path and what grants it; nothing if all is well.

    What stands in the way may be a directory above. What is not there has no rights to look at.
    """
    above = [(str(one), os.X_OK) for one in reversed(Path(path).parents) if os.path.isdir(one)]
    with contextlib.suppress(FileNotFoundError):
        for place, wanted in (*above, (path, rights)):
            lacking = "".join(
                letter
                for letter, right in LETTERS.items()
                if wanted & right and not may(place, right) and os.path.lexists(place)
            )
            if lacking:
                return f"{me()} lacks {lacking} on {place!r}; {_grant(place, lacking, wanted)}"
    return ""


def _grant(path: str, lacking: str, rights: int) -> str:
    """The command that gives us rights and takes nobody's."""
    user = os.geteuid()
    status = os.stat(path)
    place = shlex.quote(path)
    if "w" in lacking and os.statvfs(path).f_flag & os.ST_RDONLY:
        mount = next(one for one in (Path(path), *Path(path).parents) if one.is_mount())
        return f"mount -o remount,rw {shlex.quote(str(mount))}"
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
        entry = f"u:{account()}:{letters}"
        if stat.S_ISDIR(status.st_mode) and "w" in letters:
            entry = f"u:{account()}:rwx,d:u:{account()}:rwx"
        return f"setfacl -m {entry} {place}"
    inherited = "s" if stat.S_ISDIR(status.st_mode) else ""
    return f"chgrp {group_name(os.getegid())} {place} && chmod g+{letters}{inherited} {place}"


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
