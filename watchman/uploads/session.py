"""FTP sessions. Each is a process of ProFTPD, which we look up in /proc.

A session is called "PID.START", with the start time of its process. That makes it unique: pids are
used again.
"""

from __future__ import annotations

import contextlib
import os
from functools import cache

#: The places of a process's parent and start time in /proc/PID/stat behind its name, see proc(5).
PARENT, START_TIME = 1, 19


def session_of(hook: int) -> str:
    """Return the session that runs the process `hook`, which is its parent.

    "" if not known: the hook is gone, or it is in another pid namespace.
    """
    if hook <= 0:
        return ""
    try:
        parent = int(_stat(hook)[PARENT])
        return f"{parent}.{_stat(parent)[START_TIME]}" if parent > 1 else ""
    except (OSError, IndexError, ValueError):
        return ""


def session_in(told: str) -> str:
    """Return the session that a hook names, as "NAMESPACE.PID.START", see pid_namespaces(7).

    "" if it is in another pid namespace, in which pids mean other processes.
    """
    namespace, _, session = told.partition(".")
    return session if namespace and namespace == _namespace() else ""


@cache
def _namespace() -> str:
    """Return the pid namespace of this process, which never changes; "" if /proc does not tell."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def is_alive(session: str) -> bool:
    """Whether a session's process still runs. Another process with the same pid does not count."""
    pid, _, started = session.partition(".")
    try:
        return _stat(int(pid))[START_TIME] == started
    except (OSError, IndexError, ValueError):
        return False


def may_be_of(session: str, uid: int) -> bool:
    """Whether a session may belong to a user: one of its uids is his, or it has ended.

    A session that has ended does no harm: it counts only for the transfers that it began itself.
    """
    pid = session.partition(".")[0]
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            uids = next(line for line in file if line.startswith("Uid:")).split()[1:]
    except (OSError, StopIteration):
        return True
    return not is_alive(session) or str(uid) in uids


def waits(session: str) -> bool:
    """Whether a session waits for its hook: it has a child, so the transfer has not gone on yet.

    If the kernel does not list children, see proc(5), True while the session's process runs.
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
        # Before we opened it, the pid may have been given to another process.
        if is_alive(session):
            return pidfd
        os.close(pidfd)
    return -1


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name, which may hold blanks and brackets."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
