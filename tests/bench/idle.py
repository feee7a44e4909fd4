"""What a daemon costs that has nothing to do, on a large tree."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.processes import memory, pid, settle
from tests.bench.rows import ROUNDS, Row
from tests.bench.trees import fewest_watches, many_directories
from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.deadline import eventually
from tests.support.inis import csv_tasks
from watchman.uploads.upload import Task

#: Directories that are watched, and uploads that wait for a dead broker.
WATCHES, UPLOADS = 100_000, 100_000

#: Seconds of each look at a daemon that does nothing.
IDLE = 10.0

INI = csv_tasks("[watch:many]\npath = TREE\n", url="redis://127.0.0.1:1/0")


def rows() -> Iterator[Row]:
    with (
        tempfile.TemporaryDirectory() as name,
        bulk.roomy_directory(WATCHES + UPLOADS) as tree,
        fewest_watches(2 * WATCHES),
    ):
        directory = Path(name)
        many_directories(tree, WATCHES)
        daemon = Daemon(directory, INI.replace("TREE", str(tree)))
        begin(daemon)
        seen = [look(daemon) for _ in range(ROUNDS)]
        size = memory(daemon)
        daemon.stop()
        what = f"idle, {WATCHES:,} watches"
        yield Row(f"{what}: CPU", "%", [cpu for cpu, _ in seen], {}, 0.1, 0)
        yield Row(f"{what}: wake-ups", "1/s", [wakes for _, wakes in seen])
        yield Row(f"{what}: memory", "MB", [size], {}, 100, 60)
        bulk.write_journal(
            directory / "spool",
            bulk.create(tree, range(UPLOADS)),
            lambda path: Task("csv", "b", "tests.record", [path]),
            watch="many",
        )
        begin(daemon)
        size = memory(daemon)
        daemon.stop()
        yield Row(f"{what}: memory with {UPLOADS:,} uploads waiting", "MB", [size], {}, 120, 80)


def begin(daemon: Daemon) -> None:
    """Start it, and return when all is watched and scanned, and it has come to rest."""
    daemon.start()
    eventually(lambda: "Scanned" in daemon.log[daemon.begun :], timeout=600)
    settle(daemon)


def look(daemon: Daemon) -> tuple[float, float]:
    """The processor time in percent, and how often a second any thread of it slept."""
    work, sleeps = spent(daemon)
    time.sleep(IDLE)
    more_work, more_sleeps = spent(daemon)
    return 100 * (more_work - work) / 1e9 / IDLE, (more_sleeps - sleeps) / IDLE


def spent(daemon: Daemon) -> tuple[int, int]:
    """Nanoseconds of work, and how often it slept, of all threads together."""
    work = sleeps = 0
    for thread in Path(f"/proc/{pid(daemon)}/task").iterdir():
        work += int((thread / "schedstat").read_text().split()[0])
        found = re.search(
            r"^voluntary_ctxt_switches:\s+(\d+)", (thread / "status").read_text(), re.M
        )
        sleeps += int(found[1]) if found else 0
    return work, sleeps
