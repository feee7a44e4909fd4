"""The work that waits for a thread, in lanes."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

Work = Callable[[], object]


class Inbox:
    """Pieces of work in lanes. The lanes take turns; within a lane the oldest piece comes first.

    Urgent work comes before all lanes. A lane holds at most `limit` pieces, and `put` blocks while
    it is full. There is no limit for urgent work.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Guards what is below. Notified when work comes, and when a full lane has room again.
        self._changed = threading.Condition()
        self._urgent: deque[Work] = deque()
        #: The lanes that have work. The first one is next.
        self._lanes: OrderedDict[str, deque[Work]] = OrderedDict()

    def put(self, work: Work, lane: str = "") -> None:
        """Add work at the end of a lane. Blocks while the lane is full."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._lanes.get(lane, ())) < self._limit)
            self._lanes.setdefault(lane, deque()).append(work)
            self._changed.notify_all()

    def put_first(self, work: Work) -> None:
        """Add urgent work. Never blocks."""
        with self._changed:
            self._urgent.append(work)
            self._changed.notify_all()

    def take(self, timeout: float) -> Work | None:
        """Wait at most `timeout` seconds for work; return None if none came."""
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
