"""What a restart costs on a tree of many files, and with many uploads that wait."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

from tests.bench.sides import say, start
from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.deadline import eventually
from watchman.uploads.upload import Task

#: Files that stay in a watch, and uploads that wait for a dead broker.
FILES, UPLOADS = 1_000_000, 200_000

INI = """
[broker:b]
url = redis://127.0.0.1:1/0
[watch:in]
path = {tmp}/in
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

SCANNED = re.compile(r"Scanned watch in: \d+ files in ([\d.]+) seconds, 0 of them new")


def main() -> None:
    print("scale")
    measure_restart()
    measure_backlog()


def measure_restart() -> None:
    """A scan of what is all known, beside what nobody can do without."""
    with bulk.roomy_directory(FILES) as directory:
        (directory / "in").mkdir()
        daemon = Daemon(directory, INI)
        _, idle = start(daemon)
        daemon.stop()
        (directory / "spool").rename(directory / "spool without")
        for _ in bulk.create(directory / "in", range(FILES)):
            pass
        for _ in range(2):
            began = time.perf_counter()
            start(daemon)
            eventually(lambda: daemon.status()["watches"]["in"]["last_scan"], timeout=600)
            whole = time.perf_counter() - began
            busy = bulk.peak_memory(daemon) / 1024
            daemon.stop()
        found = SCANNED.search(daemon.log[daemon.begun :])
        assert found is not None
        began = time.perf_counter()
        assert walk(directory / "in") == FILES
        plain = {"scandir() and lstat()": time.perf_counter() - began}
    say(f"to scan {FILES:,} known files", float(found[1]), "s", plain)
    say("from the start to the end of that", whole, "s", plain)
    say("memory with them", busy / 1024, "MiB", {"that without": idle / 1024})


def walk(path: Path) -> int:
    """Look at each file, as plainly as it can be."""
    files, directories = 0, [os.fspath(path)]
    while directories:
        with os.scandir(directories.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
                    files += 1
    return files


def measure_backlog() -> None:
    """A start with uploads that wait, beside reading their records."""
    with bulk.roomy_directory(UPLOADS) as directory:
        daemon = Daemon(directory, INI)
        (directory / "in").mkdir()
        nothing, idle = start(daemon)
        daemon.stop()
        bulk.write_journal(
            directory / "spool",
            bulk.create(directory / "in", range(UPLOADS)),
            lambda path: Task("csv", "b", "tests.record", [path]),
        )
        began = time.perf_counter()
        for segment in sorted((directory / "spool/journal").iterdir()):
            with segment.open("rb") as lines:
                for line in lines:
                    json.loads(line)
        plain = time.perf_counter() - began
        waiting, busy = start(daemon)
        daemon.stop()
    each = 1e6 / UPLOADS
    sides = {"json.loads() alone": each * plain}
    say(f"to take up {UPLOADS:,} uploads", each * (waiting - nothing), "us each", sides)
    say("memory with them", busy / 1024, "MiB", {"that without": idle / 1024})
