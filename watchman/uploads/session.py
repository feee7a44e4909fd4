"""FTP sessions, each a process of ProFTPD, which is asked for in /proc."""

from __future__ import annotations

import contextlib
import os
from functools import cache

#: Where a process's parent and start time stand in /proc/PID/stat behind its name, see proc(5).
PARENT, START_TIME = 1, 19


def session_of(hook: int) -> str:
    """Return a name for the session that runs the process `hook`: of its parent.

    "" where it is not known: the process is gone, or pid namespaces hide it.
    """
    if hook <= 0:
        return ""
    try:
        parent = int(_stat(hook)[PARENT])
        return f"{parent}.{_stat(parent)[START_TIME]}" if parent > 1 else ""
    except (OSError, IndexError, ValueError):
        return ""


def session_in(told: str) -> str:
    """Return the session that a hook says to be of: "NAMESPACE.PID.START", as pid_namespaces(7) has
    the first.

    "" where its process would have another number here.
    """
    namespace, _, session = told.partition(".")
    return session if namespace and namespace == _namespace() else ""


@cache
def _namespace() -> str:
    """Return this process's, in which it stays; "" if /proc does not say."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def is_alive(session: str) -> bool:
    """Whether a session's process still runs; one that took over its number is another."""
    pid, _, started = session.partition(".")
    try:
        return _stat(int(pid))[START_TIME] == started
    except (OSError, IndexError, ValueError):
        return False


def may_be_of(session: str, uid: int) -> bool:
    """Whether a session may be a user's: it has that uid, among others, or is over by now.

    What is over tells of nothing but what it has begun itself.
    """
    pid = session.partition(".")[0]
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            uids = next(line for line in file if line.startswith("Uid:")).split()[1:]
    except (OSError, StopIteration):
        return True
    return not is_alive(session) or str(uid) in uids


def waits(session: str) -> bool:
    """Whether a session waits for its hook, which is its child: then it has not gone on yet.

    True where the kernel does not tell of children, see proc(5).
    """
    pid = session.partition(".")[0]
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as children:
            return bool(children.read())
    except OSError:
        return is_alive(session)


def open_pidfd(session: str) -> int:
    """Return a pidfd of a session's process, -1 if it has ended; see pidfd_open(2)."""
    pid, _, _ = session.partition(".")
    with contextlib.suppress(OSError, ValueError):
        pidfd = os.pidfd_open(int(pid))
        # The number may have gone to another process before it was opened.
        if is_alive(session):
            return pidfd
        os.close(pidfd)
    return -1


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name, which may hold blanks and brackets."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
