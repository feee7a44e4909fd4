"""Gives `watchman check` the rights of the daemon's user: its groups and capabilities.

Root may do everything, so a check with root's rights would not tell what the daemon may do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
from dataclasses import dataclass, replace
from pathlib import Path

from watchman.commands.shared import shell
from watchman.config.settings import Settings

#: Of prctl(2): keep capabilities when the user changes. Of capset(2): its present version.
PR_SET_KEEPCAPS = 8
CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True, slots=True)
class User:
    """A user, and the rights that the daemon has as this user. `how` says how we know them."""

    uid: int
    gid: int
    groups: frozenset[int]
    capabilities: int = 0
    how: str = "without capabilities, because no daemon runs as this user"


def user_of(settings: Settings, name: str | None) -> User | None:
    """Return the user whose rights to check, None if these are our own.

    It is the named user, else the owner of the spool. Raises Misused if we may not become that
    user.
    """
    is_there = os.path.isdir(settings.spool)
    owner = os.stat(settings.spool).st_uid if is_there else os.geteuid()
    uid = _uid(name) if name else owner
    if os.geteuid() != 0:
        if name and uid != os.geteuid():
            raise shell.Misused("--as: only root may check as another user")
        return None
    ours = _running("self")
    running = _daemon(settings.spool)
    if running is not None and running.uid == uid:
        return None if replace(running, how=ours.how) == ours else running
    return None if uid == ours.uid else _at_login(uid)


def become(user: User) -> None:
    """Give this process the rights of a user, for good. Only root may call it."""
    libc = ctypes.CDLL(None, use_errno=True)
    # A process cannot gain capabilities that it lacks, and root in a container lacks some.
    capabilities = user.capabilities & _running("self").capabilities
    _succeed(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups(sorted(user.groups))
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # The lower 32 bits of effective, permitted and inheritable, then the upper 32 bits of each.
    halves = (capabilities & 0xFFFFFFFF, capabilities >> 32)
    sets = [bits for half in halves for bits in (half, half, 0)]
    _succeed(libc.capset(header, (ctypes.c_uint32 * 6)(*sets)))


def _succeed(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise shell.Misused(f"--as: there is no user {name}") from None


def _at_login(uid: int) -> User:
    """Return a user with the rights that runuser(1) and supervisor give: no capabilities."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return User(uid, uid, frozenset())
    return User(uid, entry.pw_gid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def _daemon(spool: str) -> User | None:
    """Return the user of the daemon that holds the spool, None if no daemon does."""
    lock = os.path.join(spool, "lock")
    with contextlib.suppress(OSError, ValueError):
        pid = int(Path(lock).read_text())
        # Another process may have that number by now.
        files = (file for file in Path(f"/proc/{pid}/fd").iterdir() if file.exists())
        if any(file.samefile(lock) for file in files):
            return _running(str(pid))
    return None


def _running(process: str) -> User:
    """Return the user of a process, with the rights that it has now."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = {name: words.split() for name, _, words in (line.partition(":") for line in lines)}
    return User(
        uid=int(fields["Uid"][1]),
        gid=int(fields["Gid"][1]),
        groups=frozenset(map(int, fields["Groups"])),
        capabilities=int(fields["CapEff"][0], 16),
        how=f"with the rights of the daemon, pid {process}",
    )
