"""A set of positions in one segment of the journal, nine bytes each: there may be a million."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator


class Positions:
    """A sorted set, quick for what grows at its end. For one thread."""

    __slots__ = ("_count", "_here", "_positions")

    def __init__(self) -> None:
        self._positions = array("q")
        #: Whether each of them is in the set, or was.
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
