"""Lines as ProFTPD writes them to its transfer log, and who reads them in a test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.deadline import eventually
from watchman.sources.transferlog.follower import TransferLog
from watchman.uploads.upload import Kind, Notification

TOKEN = "a-secret"


def line(
    path: str | bytes,
    *,
    at: float | None = None,
    pid: int = 4711,
    command: str = "STOR",
    status: str = "226",
    transfer: str = "success",
    size: int | str = 5,
    token: str = TOKEN,
) -> bytes:
    """A line in our LogFormat."""
    epoch = int(time.time() if at is None else at)
    fields = [token, epoch, pid, command, status, transfer, size, "ftp", "127.0.0.1", "alice"]
    return "|".join(map(str, fields)).encode() + b"|" + os.fsencode(path) + b"\n"


def append(log: Path, *lines: bytes) -> None:
    """Write each line at once, as a session does that opens the log now."""
    with log.open("ab", buffering=0) as file:
        for text in lines:
            file.write(text)


class Reader:
    """A TransferLog on real files, and what it submitted; over its restarts.

    `marks` are durable as soon as they are submitted, but for when `writable` is False.
    """

    def __init__(self, *logs: Path, token: str = TOKEN) -> None:
        self.logs = logs
        self.token = token
        self.marks: dict[str, Any] = {}
        self.heard: list[Notification] = []
        #: Until when all is submitted, as it was told (monotonic).
        self.caught_up: list[float] = []
        self.writable = True
        self.refused = 0
        #: By how much its clock is ahead.
        self.ahead = 0.0
        #: Called with each batch before it is taken.
        self.on_submit: Callable[[Sequence[Notification]], None] = lambda _: None
        self.source: TransferLog | None = None

    def start(self) -> None:
        self.source = TransferLog(
            [str(log) for log in self.logs],
            self.token,
            submit=self._submit,
            marked=lambda: dict(self.marks),
            caught_up=self.caught_up.append,
            clock=lambda: time.monotonic() + self.ahead,
        )
        self.source.start()

    def stop(self) -> None:
        if self.source is not None:
            self.source.stop()
            self.source.join()
            self.source = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def status(self) -> dict[str, Any]:
        """Of the first log."""
        assert self.source is not None
        return self.source.status()[str(self.logs[0])]

    def _submit(self, log: str, notifications: Sequence[Notification], mark: Any) -> bool:
        self.on_submit(notifications)
        if not self.writable:
            self.refused += 1
            return False
        self.heard += notifications
        self.marks[log] = mark
        return True

    @property
    def paths(self) -> list[str]:
        """Of all uploads that are complete, in order."""
        return [n.path for n in self.heard if n.kind is Kind.COMPLETED]

    def hears(self, *paths: str | Path) -> None:
        """It hears of these uploads and of no other, in this order."""
        wanted = [str(path) for path in paths]
        eventually(lambda: len(self.paths) >= len(wanted))
        assert self.paths == wanted, (self.paths, self.marks)
