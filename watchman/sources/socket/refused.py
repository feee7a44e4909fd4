"""Logs requests that were refused: at most one line per user and minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from watchman.sources.socket.peers import Peer

logger = logging.getLogger(__name__)

#: Seconds between two lines about the same user.
PERIOD = 60.0

#: Users that are remembered at once.
USERS = 1000


class Refused:
    """The log of refused requests. Only the listener's thread uses it."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        #: By uid, when (monotonic) a line was last logged, and how many were refused since.
        self._users: dict[int, tuple[float, int]] = {}

    def tell(self, peer: Peer, reason: str) -> None:
        """Log that a request was refused, or count it for the next line."""
        now = self._monotonic()
        told, count = self._users.get(peer.uid, (-PERIOD, 0))
        if now < told + PERIOD:
            self._users[peer.uid] = told, count + 1
            return
        if len(self._users) >= USERS:
            self._users = {u: v for u, v in self._users.items() if now < v[0] + PERIOD}
        if len(self._users) < USERS:
            self._users[peer.uid] = now, 0
        more = f"; {count} more since the last such line" if count else ""
        logger.warning("Refused uid %d (pid %d): %s%s.", peer.uid, peer.pid, reason, more)
