"""What waits for a thread to do it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

Work = Callable[[], object]


class Inbox:
    """Pieces of work in the order in which they came, but that urgent ones come first.

    Whoever brings more than `limit` of the others waits; who brings an urgent one never does.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Guards both, and tells of what comes and goes.
        self._changed = threading.Condition()
        self._urgent: deque[Work] = deque()
        self._waiting: deque[Work] = deque()

    def put(self, work: Work) -> None:
        """Bring work; wait while there is too much of it."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._limit)
            self._waiting.append(work)
            self._changed.notify_all()

    def put_first(self, work: Work) -> None:
        """Bring work that is to be done before all that is not urgent."""
        with self._changed:
            self._urgent.append(work)
            self._changed.notify_all()

    def take(self, timeout: float) -> Work | None:
        """Wait at most `timeout` seconds for work."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._urgent or self._waiting, timeout):
                return None
            if self._urgent:
                return self._urgent.popleft()
            if len(self._waiting) == self._limit:
                self._changed.notify_all()
            return self._waiting.popleft()

    def empty(self) -> bool:
        return not self._urgent and not self._waiting
