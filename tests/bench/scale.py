"""What a restart costs on a tree of many files, and with many uploads that wait."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.processes import start
from tests.bench.rows import Row, columns, in_turn
from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.deadline import eventually
from tests.support.inis import AWAY
from watchman.uploads.upload import Task

#: Files that stay in a watch, and uploads that wait for a dead broker.
FILES, UPLOADS = 1_000_000, 200_000

SCANNED = re.compile(r"Scanned watch in: \d+ files in ([\d.]+) seconds, 0 of them new")

WALK = "scandir and lstat"


def rows() -> Iterator[Row]:
    yield from restart_rows()
    yield from backlog_rows()


def restart_rows() -> Iterator[Row]:
    """A scan of what is all known, beside what nobody can do without."""
    with bulk.roomy_directory(FILES) as directory:
        for _ in bulk.create(directory / "in", range(FILES)):
            pass
        daemon = Daemon(directory, AWAY)
        restart(daemon)
        found = in_turn(
            {"watchman": lambda: restart(daemon), WALK: lambda: (walk(directory / "in"),) * 2}
        )
    for what, times in zip(("restart on", "its scan of"), columns(found), strict=True):
        ours = times.pop("watchman")
        least, aim = (2, 1.2) if what == "restart on" else (None, None)
        yield Row(f"{what} {FILES:,} known files", "s", ours, times, least, aim, [WALK])


def restart(daemon: Daemon) -> tuple[float, float]:
    """The seconds from the start to the end of the scan, and those of the scan."""
    began = time.perf_counter()
    start(daemon)
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"], timeout=600)
    whole = time.perf_counter() - began
    daemon.stop()
    scanned = SCANNED.search(daemon.log[daemon.begun :])
    return whole, float(scanned[1]) if scanned else whole


def walk(path: Path) -> float:
    """Look at each file, as plainly as it can be; return the seconds that takes."""
    began = time.perf_counter()
    files, directories = 0, [os.fspath(path)]
    while directories:
        with os.scandir(directories.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
                    files += 1
    assert files == FILES
    return time.perf_counter() - began


def backlog_rows() -> Iterator[Row]:
    """A start with uploads that wait, beside reading their records."""
    with bulk.roomy_directory(UPLOADS) as directory:
        daemon = Daemon(directory, AWAY)
        (directory / "in").mkdir()
        nothing = in_turn({"nothing": lambda: start(daemon, stop=True)})
        bulk.write_journal(
            directory / "spool",
            bulk.create(directory / "in", range(UPLOADS)),
            lambda path: Task("csv", "b", "tests.record", [path]),
        )
        plain = in_turn({"json.loads alone": lambda: read(directory / "spool/journal")})
        waiting = in_turn({"all": lambda: start(daemon, stop=True)})
    seconds, memory = columns(nothing | waiting)
    others = {"without": seconds["nothing"], **plain}
    yield Row(f"start with {UPLOADS:,} uploads waiting", "s", seconds["all"], others)
    yield Row("memory with them", "MB", memory["all"], {"without": memory["nothing"]})


def read(journal: Path) -> float:
    """The seconds to read its records, as plainly as it can be."""
    began = time.perf_counter()
    for segment in sorted(journal.iterdir()):
        with segment.open("rb") as lines:
            for line in lines:
                json.loads(line)
    return time.perf_counter() - began
