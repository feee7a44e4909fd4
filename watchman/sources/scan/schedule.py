"""The schedule of scans: what to scan next, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

#: Requests that may wait. There could be one for each directory; instead of more than this, the
#: whole watch is scanned.
MOST = 10_000


class Request(NamedTuple):
    """A subtree to scan, or the whole watch if `subpath` is empty.

    `periodic` says that nobody asked for it and nobody waits.
    """

    watch: str
    subpath: str
    periodic: bool = False


class Schedule:
    """Requests for scans, and the periods at which each watch is scanned anyway.

    Equal requests are served once. `periods` are seconds by watch, 0 for none. Any thread may use
    it.
    """

    def __init__(
        self, periods: Mapping[str, float], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._periods = periods
        self._clock = clock
        #: Guards everything below, and tells `take` of changes.
        self._changed = threading.Condition()
        #: Insertion order is the order of service.
        self._waiting: dict[tuple[str, str], None] = {}
        self._postponed: dict[tuple[str, str], float] = {}
        self._due = {watch: clock() + period for watch, period in periods.items() if period > 0}
        self._closed = False

    def request(self, watch: str, subpath: str = "") -> None:
        """Ask for a scan as soon as possible.

        A scan under way does not do: it may have passed the place before the file came there.
        """
        with self._changed:
            if len(self._waiting) >= MOST:
                subpath = ""
            if not self._is_covered(watch, subpath):
                self._waiting[watch, subpath] = None
                self._changed.notify_all()

    def postpone(self, watch: str, subpath: str, delay: float) -> None:
        """Ask for a scan in `delay` seconds, unless the same was postponed before."""
        with self._changed:
            self._postponed.setdefault((watch, subpath), self._clock() + delay)
            self._changed.notify_all()

    def take(self) -> Request | None:
        """Wait until a scan is due, and return it; None once closed."""
        with self._changed:
            while not self._closed:
                now = self._clock()
                if request := self._next(now):
                    return request
                moments = [*self._postponed.values(), *self._due.values()]
                self._changed.wait(max(0.0, min(moments) - now) if moments else None)
        return None

    def take_subtree(self) -> Request | None:
        """Return a request for a part of a watch, if one waits.

        The scanner asks in the middle of whole scans, so that no subtree waits for their end.
        """
        if not self._waiting:  # without the lock, because this is called often
            return None
        with self._changed:
            for watch, subpath in self._waiting:
                if subpath:
                    del self._waiting[watch, subpath]
                    return Request(watch, subpath)
        return None

    def is_waiting(self, watch: str) -> bool:
        """Whether someone waits for a scan of the whole watch."""
        return (watch, "") in self._waiting

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self, now: float) -> Request | None:
        """Return the scan to do next: requests first, then periodic ones; None if none is due."""
        for key, moment in list(self._postponed.items()):
            if moment <= now:
                del self._postponed[key]
                self._waiting[key] = None
        while self._waiting:
            watch, subpath = next(iter(self._waiting))
            del self._waiting[watch, subpath]
            if not self._is_covered(watch, subpath):  # else a later request includes it
                if not subpath:
                    self._restart(watch, now)
                return Request(watch, subpath)
        for watch, moment in self._due.items():
            if moment <= now:
                self._restart(watch, now)
                return Request(watch, "", periodic=True)
        return None

    def _restart(self, watch: str, now: float) -> None:
        """Note that a scan of the whole watch begins; the next periodic one is a period away."""
        if watch in self._due:
            self._due[watch] = now + self._periods[watch]

    def _is_covered(self, watch: str, subpath: str) -> bool:
        """Whether a scan of the same subtree, or of one around it, is waiting."""
        while True:
            if (watch, subpath) in self._waiting:
                return True
            if not subpath:
                return False
            subpath = subpath.rpartition("/")[0]
