"""The open transfers: those that FTP sessions have begun, until the transfer or session ends."""

from __future__ import annotations

import os
import resource
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from watchman.uploads.session import is_alive, open_pidfd
from watchman.uploads.upload import FileState

#: How many sessions' processes are held by a pidfd, as the limit of open files allows. Those of
#: further sessions are looked up in /proc by pid and start time.
PIDFDS = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

#: How many open transfers of one session are remembered. In ProFTPD an FTP session has one at a
#: time, an SFTP session may have a few.
TRANSFERS = 256

#: Seconds after a session's end within which we have read what it wrote to the transfer log.
LOG_LAG = 1.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer that a session has begun.

    `before` is what was at `path` before, None if nothing was or if that is not known.
    `position` is where the journal has its record, -1 if that could not be written.
    `uid` and `groups` are those of the process that told of it. `groups` is None if that process
    may speak of any file.
    """

    path: str
    session: str
    before: FileState | None
    position: int
    uid: int | None = None
    groups: frozenset[int] | None = None


@dataclass(slots=True)
class _Session:
    pidfd: int
    #: Whether its process must be looked up in /proc. If not, and without a pidfd, it has ended.
    is_looked_for: bool = False
    transfers: dict[str, Transfer] = field(default_factory=dict)


class Transfers:
    """The open transfers by session. Only the dispatcher's thread uses them.

    A session's process is held by a pidfd, see pidfd_open(2): poll(2) tells when it has ended, and
    no other process is taken for it that gets the same pid.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._sessions: dict[str, _Session] = {}
        self._paths: dict[str, set[str]] = {}
        self._poll = select.poll()
        #: By session whose process has ended, when that was first seen (monotonic).
        self._died: dict[str, float] = {}
        self._by_pidfd: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, transfer: Transfer) -> list[Transfer]:
        """Remember a transfer; return those of which no record is needed any more.

        That is the transfer itself if its session has begun the same path before. It is the oldest
        of the session if there are TRANSFERS. If the session has died meanwhile, `dead` returns it.
        """
        session = self._session(transfer.session)
        if transfer.path in session.transfers:
            # While SFTP writes several files at once, mod_exec gives the name of the first one for
            # each of them. What that file was like before, only the first transfer knows.
            return [transfer]
        over = []
        if len(session.transfers) >= TRANSFERS:
            over = self.close(transfer.session, next(iter(session.transfers)))
        session.transfers[transfer.path] = transfer
        self._paths.setdefault(transfer.path, set()).add(transfer.session)
        return over

    def only(self, name: str) -> str:
        """Return the path of a session's open transfer; "" if it has none, or more than one."""
        session = self._sessions.get(name)
        paths = list(session.transfers) if session is not None else []
        return paths[0] if len(paths) == 1 else ""

    def of(self, path: str) -> list[Transfer]:
        """Return the open transfers of a file."""
        names = self._paths.get(path)
        return [self._sessions[name].transfers[path] for name in names] if names else []

    def close(self, name: str, path: str = "") -> list[Transfer]:
        """Forget a session's transfer of a path, or with "" all of them; return them.

        The transfer log does not tell the start time of a session's process. `name` is `PID.` then.
        """
        if name.endswith("."):
            name = next((known for known in self._sessions if known.startswith(name)), "")
        session = self._sessions.get(name)
        if session is None:
            return []
        paths = list(session.transfers) if not path else [path]
        over = [session.transfers.pop(path) for path in paths if path in session.transfers]
        for transfer in over:
            self._paths[transfer.path].discard(name)
            if not self._paths[transfer.path]:
                del self._paths[transfer.path]
        if not session.transfers:
            self._forget(name)
        return over

    def end(self, name: str) -> list[Transfer]:
        """Forget a session; return its open transfers."""
        over = self.close(name)
        if name in self._sessions:
            self._forget(name)
        return over

    def dead(self, lag: float = 0.0) -> list[str]:
        """Return the sessions whose process was seen to have ended at least `lag` seconds ago."""
        gone = [
            name
            for name, session in self._sessions.items()
            if session.pidfd < 0 and not (session.is_looked_for and is_alive(name))
        ]
        gone += [self._by_pidfd[fd] for fd, _ in self._poll.poll(0)]
        now = self._monotonic()
        self._died = {name: self._died.get(name, now) for name in gone}
        return [name for name, since in self._died.items() if now >= since + lag]

    def _session(self, name: str) -> _Session:
        session = self._sessions.get(name)
        if session is None:
            is_looked_for = len(self._by_pidfd) >= PIDFDS
            session = _Session(
                -1 if is_looked_for else open_pidfd(name), is_looked_for=is_looked_for
            )
            self._sessions[name] = session
            if session.pidfd >= 0:
                self._poll.register(session.pidfd, select.POLLIN)
                self._by_pidfd[session.pidfd] = name
        return session

    def _forget(self, name: str) -> None:
        session = self._sessions.pop(name)
        if session.pidfd >= 0:
            self._poll.unregister(session.pidfd)
            del self._by_pidfd[session.pidfd]
            os.close(session.pidfd)
