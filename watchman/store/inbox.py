"""What waits for a thread to do it."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

Work = Callable[[], object]


class Inbox:
    """Pieces of work of several lanes, which take turns; within a lane in the order in which they
    came. Urgent ones come first.

    Whoever brings more than `limit` to a lane waits; who brings an urgent one never does.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Guards both, and tells of what comes and goes.
        self._changed = threading.Condition()
        self._urgent: deque[Work] = deque()
        #: Those that have work, the next one first.
        self._lanes: OrderedDict[str, deque[Work]] = OrderedDict()

    def put(self, work: Work, lane: str = "") -> None:
        """Bring work; wait while its lane has too much of it."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._lanes.get(lane, ())) < self._limit)
            self._lanes.setdefault(lane, deque()).append(work)
            self._changed.notify_all()

    def put_first(self, work: Work) -> None:
        """Bring work that is to be done before all that is not urgent."""
        with self._changed:
            self._urgent.append(work)
            self._changed.notify_all()

    def take(self, timeout: float) -> Work | None:
        """Wait at most `timeout` seconds for work."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._urgent or self._lanes, timeout):
                return None
            if self._urgent:
                return self._urgent.popleft()
            lane, waiting = self._lanes.popitem(last=False)
            if len(waiting) == self._limit:
                self._changed.notify_all()
            work = waiting.popleft()
            if waiting:
                self._lanes[lane] = waiting
            return work

    def empty(self) -> bool:
        return not self._urgent and not self._lanes
