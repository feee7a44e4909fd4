"""Uploads that wait for one broker or move: where the journal keeps them, in order of arrival."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lane:
    """Uploads held up together. `until` is monotonic; a position grows with the time of arrival."""

    positions: list[int] = field(default_factory=list)
    until: float = 0.0
    attempts: int = 0
    reason: str = ""


class Backlog:
    """A queue of journal positions, 8 bytes and an integer for each upload.

    What is deferred goes back to its place: into the lane of what held it up, which is left alone
    for a while, or into the common lane "". What is taken comes oldest first of all open lanes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Guards everything below; notified when something may be taken.
        self._changed = threading.Condition()
        self._lanes: dict[str, Lane] = {"": Lane()}
        self._taken: set[int] = set()
        self._closed = False

    def add(self, position: int) -> None:
        """Let an upload wait that has just been accepted."""
        with self._changed:
            heapq.heappush(self._lanes[""].positions, position)
            self._changed.notify()

    def take(self, limit: int, timeout: float) -> list[int]:
        """Wait at most `timeout` seconds for at most `limit` uploads; [] also once closed."""
        deadline = self._clock() + timeout
        with self._changed:
            while not self._closed:
                now = self._clock()
                taken = list(self._pop(limit, now))
                if taken or now >= deadline:
                    self._taken.update(taken)
                    return taken
                shut = [lane.until for lane in self._lanes.values() if lane.positions]
                self._changed.wait(min([deadline, *shut]) - now)
            return []

    def _pop(self, limit: int, now: float) -> Iterator[int]:
        lanes = [lane for lane in self._lanes.values() if lane.until <= now and lane.positions]
        for _ in range(limit):
            if not lanes:
                return
            oldest = min(lanes, key=lambda lane: lane.positions[0])
            yield heapq.heappop(oldest.positions)
            if not oldest.positions:
                lanes.remove(oldest)

    def put_back(self, position: int, lane: str = "", delay: float = 0.0, reason: str = "") -> None:
        """Let an upload that was taken wait again; its lane is shut for `delay` seconds."""
        with self._changed:
            self._taken.discard(position)
            held = self._lanes.setdefault(lane, Lane())
            until = self._clock() + delay
            if delay and held.until <= self._clock():
                held.attempts += 1
            held.until, held.reason = max(held.until, until) if lane else 0.0, reason
            heapq.heappush(held.positions, position)
            self._changed.notify()

    def replace(self, position: int, new: int) -> None:
        """Say that an upload that was taken has another position from now on."""
        with self._changed:
            self._taken.discard(position)
            self._taken.add(new)

    def settle(self, position: int) -> None:
        """Say that an upload that was taken does not come back."""
        with self._changed:
            self._taken.discard(position)
            for name in [name for name, lane in self._lanes.items() if name and not lane.positions]:
                if self._lanes[name].until <= self._clock() and not self._taken:
                    del self._lanes[name]

    def close(self) -> None:
        """Give nothing any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        """Return how many wait or are taken."""
        with self._changed:
            return len(self._taken) + sum(len(lane.positions) for lane in self._lanes.values())

    def in_hand(self) -> int:
        """Return how many are taken or could be taken at once."""
        with self._changed:
            now = self._clock()
            lanes = [lane for lane in self._lanes.values() if lane.until <= now]
            return len(self._taken) + sum(len(lane.positions) for lane in lanes)

    def lanes(self) -> list[tuple[str, Lane]]:
        """Return a copy of the lanes, for those who want to show them; what is taken is in ""."""
        with self._changed:
            return [
                (
                    name,
                    Lane(
                        sorted([*lane.positions, *(() if name else self._taken)]),
                        lane.until,
                        lane.attempts,
                        lane.reason,
                    ),
                )
                for name, lane in self._lanes.items()
            ]
