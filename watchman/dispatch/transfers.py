"""The transfers that FTP sessions have begun, until each is ended or its session is."""

from __future__ import annotations

import os
import resource
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from watchman.uploads.session import is_alive, open_pidfd
from watchman.uploads.upload import FileState

#: Sessions whose process is held by a descriptor, if the limit on those allows. Others are known by
#: their number and start time, and looked for.
PIDFDS = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

#: Transfers of one session that are remembered: ProFTPD has one of a session, or a few by SFTP.
TRANSFERS = 256

#: Seconds within which the transfer log was read, after the session that wrote it has ended.
LOG_LAG = 1.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """A file that a session began to write, and what it looked like before: None if not there.

    `position` is where the journal keeps its record, -1 if it could not be written. Who has said so
    is `uid`, in these `groups`, None if it may speak of any file.
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
    #: Without a pidfd it has ended, or is looked for.
    is_looked_for: bool = False
    transfers: dict[str, Transfer] = field(default_factory=dict)


class Transfers:
    """The transfers that were begun and not ended, by session. For the dispatcher's thread.

    A session's process is held by a pidfd: no other can be taken for it, and its end is seen.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._sessions: dict[str, _Session] = {}
        self._paths: dict[str, set[str]] = {}
        self._poll = select.poll()
        #: When sessions were first seen to have ended (monotonic).
        self._died: dict[str, float] = {}
        self._by_pidfd: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, transfer: Transfer) -> list[Transfer]:
        """Remember a transfer; return what need not be any more: it, where its path was begun
        before, or the oldest of a session that begins too many.

        A session that has died meanwhile is told of by the next `dead`.
        """
        session = self._session(transfer.session)
        if transfer.path in session.transfers:
            # mod_exec gives the name of the first of several files that SFTP writes at once. What
            # that was like before is known from then only.
            return [transfer]
        over = []
        if len(session.transfers) >= TRANSFERS:
            over = self.close(transfer.session, next(iter(session.transfers)))
        session.transfers[transfer.path] = transfer
        self._paths.setdefault(transfer.path, set()).add(transfer.session)
        return over

    def only(self, name: str) -> str:
        """Return the path of the only transfer that a session has begun and not ended, or ""."""
        session = self._sessions.get(name)
        paths = list(session.transfers) if session is not None else []
        return paths[0] if len(paths) == 1 else ""

    def of(self, path: str) -> list[Transfer]:
        """Return the transfers of a file that sessions have begun and not ended."""
        return [self._sessions[name].transfers[path] for name in self._paths.get(path, ())]

    def close(self, name: str, path: str = "") -> list[Transfer]:
        """Forget a session's transfer of a path, or with "" all of them; return them.

        A `name` without a start time, as the transfer log knows it, is `PID.`.
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
        """Forget a session; return the transfers that it has begun and not ended."""
        over = self.close(name)
        if name in self._sessions:
            self._forget(name)
        return over

    def dead(self, lag: float = 0.0) -> list[str]:
        """Return the sessions whose process was seen to have ended `lag` seconds ago."""
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
