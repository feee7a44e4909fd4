"""A small backlog for one publisher, in memory: what it takes, and what it reported."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence
from typing import Any

from watchman.upload import FileState, Report, Source, State, Task, Upload


class Uploads:
    """Uploads that wait, in order; a lane that a report names is not given before its time."""

    def __init__(self) -> None:
        #: Guards all below.
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, str]] = []
        self._closed_until: dict[str, float] = {}
        self._lane: dict[int, str] = {}
        self._all: list[Upload] = []
        self._held = 0
        self.reports: list[Report] = []

    def add(self, *uploads: Upload) -> None:
        with self._changed:
            for upload in uploads:
                self._all.append(upload.at(len(self._all)))
                heapq.heappush(self._waiting, (len(self._all) - 1, ""))
            self._changed.notify_all()

    def take(self, limit: int, timeout: float) -> Sequence[Upload]:
        with self._changed:
            self._changed.wait_for(self._open, min(timeout, 0.05))
            taken = self._open()[:limit]
            for entry in taken:
                self._waiting.remove(entry)
            self._held += len(taken)
            return [self._all[position] for position, _ in taken]

    def _open(self) -> list[tuple[int, str]]:
        now = time.monotonic()
        return [
            entry for entry in sorted(self._waiting) if self._closed_until.get(entry[1], 0) <= now
        ]

    def report(self, report: Report) -> None:
        with self._changed:
            self.reports.append(report)
            self._held -= 1
            if report.state is State.DEFERRED:
                heapq.heappush(self._waiting, (report.upload.position, report.lane))
                if report.lane:
                    self._closed_until[report.lane] = time.monotonic() + report.delay

    def ids(self, state: State) -> list[str]:
        """Ids in the order in which they were reported."""
        with self._changed:
            return [report.upload.id for report in self.reports if report.state is state]

    def reasons(self, state: State) -> dict[str, str]:
        with self._changed:
            return {
                report.upload.id: report.reason for report in self.reports if report.state is state
            }

    def lanes(self) -> set[str]:
        with self._changed:
            return {report.lane for report in self.reports if report.state is State.DEFERRED}

    @property
    def taken(self) -> int:
        """How many the publisher has in hand."""
        with self._changed:
            return self._held

    @property
    def unsettled(self) -> int:
        with self._changed:
            return len(self._waiting) + self._held


def upload(
    name: str,
    *,
    task: str = "tests.record",
    args: list[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Upload:
    """An accepted upload whose task carries its path."""
    path = f"/srv/ftp/{name}"
    return Upload(
        id=f"id-{name}".encode(errors="replace").decode(),
        watch="ftp",
        path=path,
        original=path,
        state=FileState(1, 2, 1234, 5, 6),
        source=Source.HOOK,
        accepted=1.0,
        task=Task(
            "task:test", "test", task, [path] if args is None else args, kwargs or {}, options
        ),
        user="alice",
        client="192.0.2.7",
    )
