"""A real backlog for one publisher without journal and disk: what it took and reported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from watchman.sinks.backlog import Backlog
from watchman.uploads.upload import FileState, Report, Source, State, Task, Upload


class Uploads:
    """Uploads that wait, and the reports about them."""

    def __init__(self) -> None:
        self._backlog = Backlog()
        #: Guards all below.
        self._changed = threading.Lock()
        self._all: list[Upload] = []
        self.taken = 0
        self.reports: list[Report] = []

    def add(self, *uploads: Upload) -> None:
        for upload in uploads:
            with self._changed:
                position = len(self._all)
                self._all.append(upload.at(position))
            self._backlog.add(position)
        self._backlog.offer()

    def take(
        self, limit: int, timeout: float, ended: Callable[[], bool] = lambda: False
    ) -> Sequence[Upload]:
        positions = self._backlog.take(limit, min(timeout, 0.05), ended=ended)
        with self._changed:
            self.taken += len(positions)
            return [self._all[position] for position in positions]

    def report(self, reports: Sequence[Report]) -> None:
        for report in reports:
            position = report.upload.position
            if report.state is State.DEFERRED:
                self._backlog.put_back(position, report.lane, report.delay, report.reason)
            else:
                self._backlog.settle(position)
        with self._changed:
            self.taken -= len(reports)
            self.reports += reports

    def drop(self, position: int) -> None:
        """Take one away from the publisher, as if its file were gone when it is looked at."""
        while position not in self._backlog.take(1, 0.05):
            pass
        self._backlog.settle(position)

    def ids(self, state: State) -> list[str]:
        """Ids in the order in which they were reported."""
        with self._changed:
            return [report.upload.id for report in self.reports if report.state is state]

    def reported(self) -> set[str]:
        with self._changed:
            return {report.upload.id for report in self.reports}

    def open_lane(self, name: str) -> bool:
        """Whether what was held up by `name` may be taken again."""
        return dict(self._backlog.lanes())[name].until < time.monotonic()

    def reasons(self, state: State) -> dict[str, str]:
        with self._changed:
            return {
                report.upload.id: report.reason for report in self.reports if report.state is state
            }

    def lanes(self) -> set[str]:
        with self._changed:
            return {report.lane for report in self.reports if report.state is State.DEFERRED}

    @property
    def unsettled(self) -> int:
        return len(self._backlog)


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
