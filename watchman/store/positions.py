"""A set of positions in one segment of the journal. Each takes 9 bytes: there may be a million."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator


class Positions:
    """A sorted set of positions. Adding the highest one is quick. Only one thread may use it."""

    __slots__ = ("_count", "_here", "_positions")

    def __init__(self) -> None:
        self._positions = array("q")
        #: By index, 1 if the position is in the set, 0 if it was discarded.
        self._here = bytearray()
        self._count = 0

    def add(self, position: int) -> None:
        at = len(self._positions)
        if at and position <= self._positions[-1]:
            at = bisect_left(self._positions, position)
            if self._positions[at] == position:
                self._count += not self._here[at]
                self._here[at] = True
                return
        self._positions.insert(at, position)
        self._here.insert(at, True)
        self._count += 1

    def discard(self, position: int) -> None:
        at = bisect_left(self._positions, position)
        if at < len(self._positions) and self._positions[at] == position:
            self._count -= self._here[at]
            self._here[at] = False

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for position, here in zip(self._positions, self._here, strict=True):
            if here:
                yield position
