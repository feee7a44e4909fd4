"""A dispatcher and its movers between what a test uploads and what a publisher would take.

Run as a program, with a directory, a destination and `unique`, it moves what it is told of on
standard input, one path a line, and prints each task's id and path: to be killed by a tracer.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.deadline import eventually
from tests.support.house import Inside
from watchman.config.settings import MoveSettings, TaskSettings, WatchSettings
from watchman.sinks.moving.mover import Mover
from watchman.uploads.upload import Kind, Notification, Outcome, Report, Source, State, Upload

TASKS = (TaskSettings("csv", ("*.csv",), "b", "import", kwargs={"was": "{original}"}),)


@dataclass
class Yard(Inside):
    """`tmp_path/ftp` is watched and moved to `destination`; *.csv has a task, *.dat has none."""

    destination: Path
    options: dict[str, Any] = field(default_factory=dict)
    moving: bool = True
    watch: str = "ftp"

    @property
    def ftp(self) -> Path:
        return self.tmp_path / "ftp"

    def open(self) -> None:
        self.watches = (WatchSettings(self.watch, str(self.ftp)),)
        self.tasks = TASKS
        if not self.moves:
            move = MoveSettings("storage", str(self.ftp), str(self.destination), **self.options)
            self.moves = {"storage": move}
        super().open()
        self.movers = {
            name: Mover(
                move,
                self.settings.watches,
                take=partial(self.pipeline.take_at, f"move:{name}"),
                take_aside=partial(self.pipeline.take_at, f"move:{name}", aside=True),
                look=self.pipeline.file_tracker.look,
                write=self.pipeline.write,
                report=self.pipeline.report_move,
            )
            for name, move in self.moves.items()
        }
        if self.moving:
            self.start_movers()

    def start_movers(self) -> None:
        for mover in self.movers.values():
            mover.start()

    def close(self) -> None:
        self.pipeline.close()
        for mover in self.movers.values():
            mover.stop()
        for mover in self.movers.values():
            mover.join()
        super().close()

    def upload(self, name: str, content: str = "1,2,3\n") -> str:
        """Write a file, have it accepted, and return its id."""
        answer = self.say(self.write(name, content))
        assert answer.outcome is Outcome.OK, answer
        return answer.detail

    def resubmit(self, path: Path, resubmit_as: Path) -> None:
        notification = Notification(
            Kind.COMPLETED, str(path), Source.RESUBMIT, resubmit_as=str(resubmit_as)
        )
        answer = self.hear(notification)
        assert answer.outcome is Outcome.OK, answer

    def places(self) -> list[str]:
        """Where uploads wait."""
        return [group.place for group in self.pipeline.groups()]

    def take(self, count: int = 1, patience: float = 10.0) -> list[Upload]:
        """Take uploads as a publisher does."""
        taken: list[Upload] = []
        deadline = time.monotonic() + patience
        while len(taken) < count and time.monotonic() < deadline:
            taken += self.pipeline.take("b", count - len(taken), 0.1)
        return taken

    def settle(self, *uploads: Upload) -> None:
        for upload in uploads:
            self.pipeline.report([Report(upload, State.DONE)])

    def moved(self, name: str, content: str = "1,2,3\n") -> Path:
        """Upload a file, wait for its task, and return where it lies."""
        upload_id = self.upload(name, content)
        (upload,) = self.take()
        assert upload.id == upload_id
        self.settle(upload)
        eventually(lambda: not self.pipeline.waiting())
        return Path(upload.path)

    def deferred(self, reason: str) -> dict[str, Any]:
        """Wait until the only upload is deferred for a reason, and return its row."""

        def is_so() -> dict[str, Any] | None:
            (row,) = self.rows()
            return row if row["state"] == "deferred" and reason in row["reason"] else None

        return eventually(is_so)


def files(*directories: Path) -> dict[str, str]:
    """What lies below directories: every file, hidden ones too, by its path below them."""
    return {
        str(path.relative_to(directory)): path.read_text()
        for directory in directories
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def main(directory: str, destination: str, unique: str, step: Callable[[str], object]) -> None:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    yard = Yard(Path(directory), Path(destination), {"unique": unique})
    yard.moving = False
    yard.open()
    yard.start_movers()
    names = {thread.name: thread.native_id for thread in threading.enumerate()}
    step(f"ready {names['mover:storage']} {names['dispatcher']}")
    threading.Thread(target=_publish, args=(yard, step), daemon=True).start()
    for line in sys.stdin:
        yard.say(Path(line.rstrip("\n")), Source.SCAN)
    yard.close()


def _publish(yard: Yard, step: Callable[[str], object]) -> None:
    while True:
        for upload in yard.take(patience=0.2):
            step(f"task {upload.id} {upload.path}")
            yard.settle(upload)


if __name__ == "__main__":
    main(*sys.argv[1:4], step=lambda line: os.write(1, os.fsencode(f"{line}\n")))
    os._exit(0)
