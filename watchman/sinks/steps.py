"""The steps of uploads: counted for `metrics`, and told to those who look on by `watchman tail`."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from watchman.uploads.upload import Source, State, Upload

#: Upper bounds of the histogram of delays, in seconds. What took longer is in one more bucket.
BOUNDS = (
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0),
)

#: What is told of an upload that has failed and was tried again, and of one whose task of
#: `on_failed` was sent.
RETRIED, TOLD = "retried", "told"


class Origin(NamedTuple):
    """By what uploads are counted. `task` is the `[task:...]` section, "" for none."""

    source: str
    watch: str
    task: str

    @classmethod
    def of(cls, upload: Upload) -> Origin:
        return cls(upload.source, upload.watch, upload.task.section if upload.task else "")


class Step(NamedTuple):
    """What has become of an upload at a moment. `event` is as in the journal, `at` epoch.

    `path` is where its file is, `original` as what it was uploaded.
    """

    event: str
    at: float
    id: str
    path: str
    original: str
    origin: Origin
    user: str = ""
    broker: str = ""
    reason: str = ""


class Delays:
    """The delays of one broker's tasks: by bucket how many there were, and their sum in seconds."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Steps:
    """Counts steps since the start, and hands each to whoever looks on.

    The dispatcher's thread counts, once the step is durable; that needs no lock. Any thread may
    look on or read the counts.
    """

    def __init__(self) -> None:
        #: By event and origin, and by event.
        self.counts: Counter[tuple[str, Origin]] = Counter()
        self.sums: Counter[str] = Counter()
        #: By broker, from when a file was closed until its task was sent.
        self.delays: dict[str, Delays] = {}
        #: Who looks on; replaced as a whole, guarded by `_changing`. They must not block.
        self.lookers: tuple[Callable[[Step], None], ...] = ()
        self._changing = threading.Lock()

    # In the dispatcher's thread.

    def count(self, state: State, upload: Upload, at: float, reason: str = "") -> None:
        """Count a step of an upload, and tell of it."""
        self.counts[state, Origin.of(upload)] += 1
        self.sums[state] += 1
        # What is sent again by hand was closed long ago.
        if state is State.DONE and upload.task and upload.source is not Source.RESUBMIT:
            self._delays(upload.task.broker).add(max(0.0, at - closed(upload)))
        if self.lookers:
            self.tell(state, upload, at, reason)

    def count_known(self, step: Step) -> None:
        """As `count`, of an upload of which only this is in memory."""
        self.counts[step.event, step.origin] += 1
        self.sums[step.event] += 1
        for look in self.lookers:
            look(step)

    def _delays(self, broker: str) -> Delays:
        delays = self.delays.get(broker)
        if delays is None:
            delays = self.delays[broker] = Delays()
        return delays

    # In any thread.

    def look_on(self, look: Callable[[Step], None]) -> None:
        """Have `look` called with each step from now on, in whatever thread that is taken."""
        with self._changing:
            self.lookers = (*self.lookers, look)

    def look_away(self, look: Callable[[Step], None]) -> None:
        """End a `look_on`."""
        with self._changing:
            self.lookers = tuple(one for one in self.lookers if one != look)

    def tell(self, event: str, upload: Upload, at: float, reason: str = "") -> None:
        """Tell of a step that is not counted."""
        for look in self.lookers:
            look(step_of(event, upload, at, reason))


def step_of(event: str, upload: Upload, at: float, reason: str = "") -> Step:
    """Return a step of an upload."""
    broker = upload.task.broker if upload.task else ""
    origin = Origin.of(upload)
    path, original = upload.path, upload.original
    return Step(event, at, upload.id, path, original, origin, upload.user, broker, reason)


def closed(upload: Upload) -> float:
    """Return when an upload's file was closed (epoch), as far as its filesystem tells.

    That is its ctime when it was accepted: a client may set the mtime to any time.
    """
    return (upload.source_state or upload.state).ctime / 1e9
