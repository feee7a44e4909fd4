"""Which rights we have, as the kernel says, and the command that grants one that we lack."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from watchman.uploads.access import ACL

#: Bits of capabilities, see capabilities(7) and linux/capability.h.
CAP_CHOWN = 0
CAP_FOWNER = 3
CAP_LEASE = 28

#: Places that are named of all that have a problem.
NAMED = 10

#: For access(2), and how they are called.
LETTERS = {"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}

ENTER = os.R_OK | os.X_OK
WRITE = os.W_OK | os.X_OK


class Problems:
    """What is wrong in many places, of which the first are named."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}
        self._more = 0

    def need(self, path: str, rights: int) -> None:
        """Add what we may not do with a path."""
        if not may(path, rights):
            self.add(complaint(path, rights))

    def add(self, text: str) -> None:
        if text and text not in self._texts:
            if len(self._texts) < NAMED:
                self._texts[text] = None
            else:
                self._more += 1

    def told(self, what: str) -> Iterator[str]:
        yield from (f"{what}: {text}" for text in self._texts)
        if self._more:
            yield f"{what}: {self._more} more like these"


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def me() -> str:
    return user_name(os.geteuid())


def account() -> str:
    """Return our name as commands take it."""
    return me().removeprefix("uid ")


def may(path: str, rights: int) -> bool:
    """As access(2), for the rights in effect."""
    return os.access(path, rights, effective_ids=True)


def has_capability(bit: int) -> bool:
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> bit & 1)


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
        return bool(os.getxattr(path, ACL))
    except OSError:
        return False


def _private_group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return -1
