"""The places where uploads wait: a backlog for each `move:NAME` and each `broker:NAME`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from watchman.sinks.backlog import Backlog, Lane
from watchman.sinks.pauses import ALL
from watchman.uploads.upload import State


@dataclass(frozen=True, slots=True)
class Group:
    """Uploads in the same situation: all failed, or all in one lane of the backlog `place`.

    `positions` are their journal positions, if these were asked for. `count` is how many there are,
    and `oldest` the first of them. `next_try` is in epoch seconds. `paused` names what an
    operator has paused, such as `watch:ftp`.
    """

    place: str
    state: str
    positions: list[int]
    lane: str = ""
    attempts: int = 0
    next_try: float | None = None
    reason: str = ""
    paused: str = ""
    count: int = 0
    oldest: int = -1


class Backlogs(dict[str, Backlog]):
    """The backlogs by place. Each is made when it is first asked for.

    A backlog stays when its section leaves the INI file: its uploads go on waiting.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._monotonic = monotonic
        #: What an operator has paused; replaced as a whole.
        self.pauses: frozenset[str] = frozenset()
        self._closed = False

    def __missing__(self, place: str) -> Backlog:
        # setdefault, because two threads may ask at the same moment: only one backlog may exist.
        backlog = self.setdefault(place, Backlog(self._monotonic))
        self._pause(place, backlog)
        if self._closed:
            backlog.close()
        return backlog

    def close(self) -> None:
        """Give out no more uploads."""
        self._closed = True
        for _, backlog in self.places():
            backlog.close()

    def offer(self) -> None:
        """Wake the threads that wait for uploads, if some were added."""
        for backlog in self.copy().values():
            backlog.offer()

    def wake(self) -> None:
        """Have all threads that wait for uploads ask whether they are to end."""
        for backlog in self.copy().values():
            backlog.wake()

    def pause(self, pauses: Collection[str]) -> None:
        """Hold back the uploads of everything in `pauses`, and no others from now on."""
        self.pauses = frozenset(pauses)
        for place, backlog in self.places():
            self._pause(place, backlog)

    def _pause(self, place: str, backlog: Backlog) -> None:
        backlog.pause(self.pauses, whole=bool(self.pauses & {place, ALL}))

    def places(self) -> list[tuple[str, Backlog]]:
        """Return all backlogs by place, those of moves first. Any thread may call it."""
        return sorted(self.copy().items(), key=lambda item: item[0].startswith("broker:"))

    def groups(self) -> Iterator[Group]:
        """Yield the uploads that wait, in groups. Any thread may call it."""
        for place, backlog in self.places():
            for name, lane in backlog.lanes():
                if positions := lane.positions:
                    yield self._group(place, name, lane, len(positions), min(positions), positions)

    def sizes(self) -> Iterator[Group]:
        """Yield what `groups` does, without positions: that is quick, however many wait."""
        for place, backlog in self.places():
            for name, lane, count, oldest in backlog.sizes():
                yield self._group(place, name, lane, count, oldest, [])

    def _group(
        self, place: str, name: str, lane: Lane, count: int, oldest: int, positions: list[int]
    ) -> Group:
        is_deferred = bool(name) and not lane.paused
        left = max(0.0, lane.until - self._monotonic())
        return Group(
            place,
            State.DEFERRED if is_deferred else "waiting",
            positions,
            lane=name,
            attempts=lane.attempts,
            next_try=time.time() + left if is_deferred else None,
            reason=lane.reason,
            paused=lane.paused or next((p for p in (place, ALL) if p in self.pauses), ""),
            count=count,
            oldest=oldest,
        )
