"""A backlog: the uploads that wait for one broker or one move, by owner and in order of arrival."""

from __future__ import annotations

import heapq
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace

from watchman.config.moves import ASIDE
from watchman.uploads.upload import Upload


@dataclass(slots=True)
class Lane:
    """Uploads that are held up for the same reason.

    `shares` has a heap of journal positions for each uid that owns files; a smaller position is an
    older upload. The lane is left alone until `until` (monotonic).
    """

    shares: dict[int | None, list[int]] = field(default_factory=dict)
    until: float = 0.0
    attempts: int = 0
    reason: str = ""
    #: The pause that holds it up, such as `watch:ftp`, "" if none.
    paused: str = ""

    @property
    def positions(self) -> list[int]:
        """All journal positions, in no order."""
        return [position for share in self.shares.values() for position in share]

    def __len__(self) -> int:
        return sum(map(len, self.shares.values()))

    def push(self, position: int, owner: int | None) -> None:
        heapq.heappush(self.shares.setdefault(owner, []), position)

    def pop(self, owner: int | None) -> int:
        """Take away the oldest upload of an owner, who must have one here."""
        share = self.shares[owner]
        position = heapq.heappop(share)
        if not share:
            del self.shares[owner]
        return position

    def remove(self, positions: set[int]) -> dict[int, int | None]:
        """Take away those of `positions` that are here; return them with their owners."""
        removed: dict[int, int | None] = {}
        for owner, share in list(self.shares.items()):
            if found := positions.intersection(share):
                removed |= dict.fromkeys(found, owner)
                share[:] = [position for position in share if position not in found]
                heapq.heapify(share)
            if not share:
                del self.shares[owner]
        return removed


class Backlog:
    """A queue of journal positions, which take 8 bytes and an integer for each upload.

    Uploads wait in the common lane "". An upload that was taken and is put back goes into the lane
    of what held it up, which is left alone for a while. Owners of files take turns, so that one who
    uploads many files does not delay the others. The uploads of each owner are taken oldest first,
    out of all lanes that are open. The class is long because one lock guards all of it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By position, uploads that need not be read from the journal; any thread, each of its own.
        self.kept: dict[int, Upload] = {}
        #: Guards everything below. Notified when an upload may be taken or was given back.
        self._changed = threading.Condition()
        self._lanes: dict[str, Lane] = {"": Lane()}
        #: By position of each upload that is taken, the lane that it came from, and its owner.
        self._taken: dict[int, tuple[str, int | None]] = {}
        #: By owner of uploads that wait, the number of his last turn.
        self._turns: dict[int | None, int] = {}
        self._turn = 0
        #: Taken uploads that `withdraw` waits for. When one is given back, `withdraw` has taken it.
        self._wanted: set[int] = set()
        #: The pauses that are in force, and whether one of them is for the whole backlog.
        self._pauses: Collection[str] = ()
        self._paused = False
        #: When an upload last went on, or came into the empty backlog.
        self._moved = clock()
        self._closed = False
        #: Whether an upload may be taken of which the waiting threads were not told yet.
        self._untold = False
        #: Whether a `take` found that `most` uploads are taken.
        self._is_full = False

    def add(self, position: int, owner: int | None = None) -> None:
        """Add an upload. `owner` is the uid of its file's owner.

        Threads that wait are not woken. `offer` does that, once for many uploads.
        """
        with self._changed:
            common = self._lanes[""]
            if not common.shares and not self._taken:
                self._moved = self._clock()
            common.push(position, owner)
            self._untold = True

    def offer(self) -> None:
        """Wake the threads that wait, if more uploads may be taken than before.

        That is after some were added, or were settled when `most` were taken.
        """
        if self._untold:
            with self._changed:
                self._untold = self._is_full = False
                self._changed.notify_all()

    def take(
        self,
        limit: int,
        timeout: float,
        *,
        most: int = sys.maxsize,
        aside: bool = False,
        ended: Callable[[], bool] = lambda: False,
    ) -> list[int]:
        """Wait at most `timeout` seconds, and take at most `limit` uploads; [] once closed.

        It waits no longer than until `ended` returns true, which is asked again after each `wake`.
        At any time no more than `most` uploads are taken and not settled. With `aside` only those
        in the lane ASIDE are taken, else only those in other lanes.
        """
        deadline = self._clock() + timeout
        with self._changed:
            while not self._closed:
                now = self._clock()
                limit_now = min(limit, most - len(self._taken))
                self._is_full = limit_now <= 0
                taken = [] if self._paused else list(self._pop(limit_now, now, aside))
                if taken or now >= deadline or ended():
                    self._taken.update(taken)
                    return [position for position, _ in taken]
                lanes = [] if self._paused else self._filled(aside)
                # A lane that is open has nothing for us while `most` are taken.
                shut = [lane.until for lane, _ in lanes if lane.until > now]
                self._changed.wait(min([deadline, *shut]) - now)
            return []

    def _filled(self, aside: bool) -> Iterator[tuple[Lane, str]]:
        for name, lane in self._lanes.items():
            if lane.shares and (name == ASIDE) is aside:
                yield lane, name

    def _pop(
        self, limit: int, now: float, aside: bool
    ) -> Iterator[tuple[int, tuple[str, int | None]]]:
        """Yield positions with their lane and owner: one of each owner in turn, oldest first.

        The owner whose last turn is longest ago comes first.
        """
        by_owner: dict[int | None, list[tuple[Lane, str]]] = {}
        for lane, name in self._filled(aside):
            for owner in lane.shares if lane.until <= now else ():
                by_owner.setdefault(owner, []).append((lane, name))
        self._turns = {owner: self._turns.get(owner, 0) for owner in by_owner}
        owners = deque(sorted(by_owner, key=self._turns.__getitem__))
        while owners and limit > 0:
            owner = owners.popleft()
            lanes = by_owner[owner]
            oldest, name = min(lanes, key=lambda lane: lane[0].shares[owner][0])
            yield oldest.pop(owner), (name, owner)
            if owner not in oldest.shares:
                lanes.remove((oldest, name))
            if lanes:
                owners.append(owner)
            self._turn += 1
            self._turns[owner] = self._turn
            limit -= 1

    def put_back(self, position: int, lane: str = "", delay: float = 0.0, reason: str = "") -> None:
        """Let an upload that was taken wait again, in a lane that is shut for `delay` seconds.

        The common lane is never shut: if a broker is down, its publisher takes nothing meanwhile.
        """
        with self._changed:
            held = self._lanes.setdefault(lane, Lane())
            if lane:
                now = self._clock()
                if delay and held.until <= now:
                    held.attempts += 1
                held.until, held.reason = max(held.until, now + delay), reason
            self._give_back(position, held)

    def hold_back(self, position: int, pause: str) -> None:
        """Let an upload that was taken wait until `pause` is over. It may be over already."""
        with self._changed:
            held = self._lanes[""]
            if pause in self._pauses:
                shut = Lane(until=math.inf, paused=pause)
                held = self._lanes.setdefault(f"paused {pause}", shut)
            self._give_back(position, held)

    def _give_back(self, position: int, lane: Lane) -> None:
        self._moved = self._clock()
        if position in self._wanted:
            self._wanted.discard(position)
        else:
            before, owner = self._taken.pop(position, ("", None))
            lane.push(position, owner)
            self._forget(before)
        self._changed.notify_all()

    def replace(self, position: int, new: int) -> None:
        """Note that an upload that was taken has another position from now on."""
        with self._changed:
            self._moved = self._clock()
            self._taken[new] = self._taken.pop(position, ("", None))
            self._wanted.discard(position)
            self._changed.notify_all()

    def settle(self, position: int) -> None:
        """Note that an upload that was taken is settled, and does not come back."""
        with self._changed:
            self._moved = self._clock()
            self._forget(self._taken.pop(position, ("", None))[0])
            self.kept.pop(position, None)
            self._untold |= self._is_full
            if position in self._wanted:
                self._wanted.discard(position)
                self._changed.notify_all()

    def has_taken(self, position: int) -> bool:
        """Whether an upload was taken, and has neither come back nor been settled."""
        with self._changed:
            return position in self._taken

    def _forget(self, name: str) -> None:
        """Drop a lane that its last upload has left, for there may be one for each upload."""
        lane = self._lanes.get(name)
        if not name or lane is None or lane.shares:
            return
        if all(taken_from != name for taken_from, _ in self._taken.values()):
            del self._lanes[name]

    def pause(self, pauses: Collection[str], *, whole: bool) -> None:
        """Replace the pauses that are in force. `whole` says that one is for the whole backlog.

        Uploads that a pause held back may be taken again once it is over.
        """
        with self._changed:
            self._moved = self._clock()
            self._pauses, self._paused = pauses, whole
            for name, lane in list(self._lanes.items()):
                if lane.paused and lane.paused not in pauses:
                    del self._lanes[name]
                    for owner, share in lane.shares.items():
                        for position in share:
                            self._lanes[""].push(position, owner)
            self._changed.notify_all()

    def open(self, lane: str) -> None:
        """Let the uploads of a lane be taken at once, unless they are paused."""
        with self._changed:
            held = self._lanes.get(lane)
            if held is not None and not held.paused:
                held.until = 0.0
                self._changed.notify_all()

    def withdraw(self, positions: Collection[int], timeout: float) -> set[int]:
        """Take the uploads at `positions`, even out of shut lanes; return those that were taken.

        Uploads that another thread has taken are waited for, at most `timeout` seconds.
        """
        with self._changed:
            in_hand = self._taken.keys() & positions
            mine: dict[int, int | None] = {}
            for lane in self._lanes.values():
                mine |= lane.remove(set(positions) - in_hand)
            self._taken |= {position: ("", owner) for position, owner in mine.items()}
            self._wanted |= in_hand
            self._changed.wait_for(lambda: not in_hand & self._wanted, timeout)
            late = in_hand & self._wanted
            self._wanted -= late
            return mine.keys() | ((in_hand - late) & self._taken.keys())

    def wake(self) -> None:
        """Have the threads that wait in `take` ask whether they are to end."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Give out no more uploads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        """Return how many uploads wait or are taken."""
        with self._changed:
            return len(self._taken) + sum(map(len, self._lanes.values()))

    def in_hand(self) -> int:
        """Return how many uploads are taken or could be taken now."""
        with self._changed:
            now = self._clock()
            lanes = [] if self._paused else self._lanes.values()
            waiting = sum(len(lane) for lane in lanes if lane.until <= now)
            return len(self._taken) + waiting

    def stalled(self) -> float:
        """Return for how many seconds no upload went on though one could; 0 if none could."""
        if not self.in_hand():
            return 0.0
        return max(0.0, self._clock() - self._moved)

    def sizes(self) -> list[tuple[str, Lane, int, int]]:
        """Return the lanes as `lanes` does, each with how many positions it has, and the oldest.

        Those are not copied: there may be a million, and everybody would wait for that.
        """
        with self._changed:
            sizes = []
            for name, lane in self._lanes.items():
                taken = () if name else tuple(self._taken)
                heads = [share[0] for share in lane.shares.values()]
                if heads or taken:
                    copy = replace(lane, shares={})
                    count = len(lane) + len(taken)
                    known = "" if name == ASIDE else name
                    sizes.append((known, copy, count, min((*heads, *taken))))
            return sizes

    def lanes(self) -> list[tuple[str, Lane]]:
        """Return a copy of the lanes, to be shown.

        Uploads that are taken, and those in the lane ASIDE, are shown in the common lane: nothing
        holds them up. Owners are left out.
        """
        with self._changed:
            lanes = []
            for name, lane in self._lanes.items():
                positions = lane.positions if name else [*lane.positions, *self._taken]
                copy = replace(lane, shares={None: positions})
                lanes.append(("" if name == ASIDE else name, copy))
            return lanes
