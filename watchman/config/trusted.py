"""Reads files that decide what the daemon does, unless somebody else may have written them."""

import grp
import os
import pwd
import shlex
import stat
from typing import BinaryIO


def read(path: str) -> bytes:
    """Return the content of `path`; symlinks are followed.

    Raises OSError. Raises ValueError if it is not a regular file, if it belongs to anyone but root
    or ourselves, or if everyone may write it.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        return _read(file)


def read_secret(path: str) -> bytes:
    """Return the content of `path` as `read` does. Raises ValueError also if all may read it."""
    with open(path, "rb", opener=_without_waiting) as file:
        content = _read(file)
        if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
            raise ValueError("may be read by everyone; chmod o= it")
        return content


def how_to_close(path: str, reader: int) -> str:
    """Return a command that keeps everyone from reading a file, except the user `reader`."""
    place = shlex.quote(path)
    close = f"chmod o= {place}"
    try:
        status = os.stat(path)
        user = pwd.getpwuid(reader)
        group = grp.getgrgid(user.pw_gid).gr_name
    except (OSError, KeyError):
        return close
    if reader in (0, status.st_uid) or status.st_gid in os.getgrouplist(user.pw_name, user.pw_gid):
        return close
    if status.st_gid == 0:
        return f"chgrp {group} {place} && chmod g+r,o= {place}"
    # The file belongs to another group, whose members may need to read it. So the group stays.
    return f"setfacl -m u:{user.pw_name}:r {place} && {close}"


def _read(file: BinaryIO) -> bytes:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a regular file")
    if status.st_uid not in _trusted_users():
        raise ValueError(
            f"belongs to user {status.st_uid}, who could make the daemon do anything;"
            f" it must be root's or your own (user {os.geteuid()})"
        )
    if status.st_mode & stat.S_IWOTH:
        raise ValueError("may be written by everyone; chmod o-w it")
    return file.read()


def _trusted_users() -> set[int]:
    """Return the uids of root, of us, and of the user of sudo(8), as in `sudo make run`."""
    users = {0, os.geteuid()}
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "").isdecimal():
        users.add(int(os.environ["SUDO_UID"]))
    return users


def _without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK, to open a FIFO waits until somebody opens it for writing, see fifo(7).
    return os.open(path, flags | os.O_NONBLOCK)
