"""What many lines of the transfer log cost that wait at a start."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.processes import start
from tests.bench.rows import Row, in_turn
from tests.servers.daemon import Daemon
from tests.support.translog import Reader, append, line

#: Lines that wait: for the source alone, and for the daemon.
LINES, UPLOADED = 100_000, 20_000

INI = """
[broker:b]
url = redis://127.0.0.1:1/0
[watch:ftp]
path = {tmp}/home
proftpd = yes
confirm = 60s
existing = yes
[task:csv]
pattern = *.csv
broker = b
task = tests.record
[proftpd]
transfer_log = {tmp}/uploads.log
token = a-secret
"""


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "uploads.log")
        found = in_turn(
            {
                "ours": lambda: read(path, LINES),
                "a tenth of them": lambda: read(path, LINES // 10),
                "split() alone": lambda: split(path),
            }
        )
    yield Row(f"to read {LINES:,} lines of the log", "us/line", found.pop("ours"), found)
    yield from start_rows()


def read(path: Path, count: int) -> float:
    """The microseconds that the source alone takes for a line, without decisions."""
    path.write_bytes(b"")
    reader = Reader(path)
    reader.start()
    reader.stop()
    append(path, b"".join(line(f"/srv/ftp/alice/{n}.csv") for n in range(count)))
    began = time.perf_counter()
    reader.start()
    seconds = time.perf_counter() - began
    reader.stop()
    assert len(reader.heard) == count
    return 1e6 * seconds / count


def split(path: Path) -> float:
    began = time.perf_counter()
    with path.open("rb") as file:
        lines = sum(len(text.split(b"|", 10)) == 11 for text in file)
    return 1e6 * (time.perf_counter() - began) / lines


def start_rows() -> Iterator[Row]:
    """The daemon's start, with all that waits decided about and in the journal."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "home").mkdir()
        path = directory / "uploads.log"
        path.touch()
        daemon = Daemon(directory, INI)
        start(daemon, stop=True)
        plain, idle = start(daemon, stop=True)
        lines = []
        for number in range(UPLOADED):
            file = directory / "home" / f"{number}.csv"
            file.touch()
            lines.append(line(str(file), size=0))
        append(path, b"".join(lines))
        waiting, busy = start(daemon, stop=True)
    yield Row(f"to start with {UPLOADED:,} lines of the log", "s", [waiting], {"without": [plain]})
    yield Row("memory with them", "MB", [busy], {"without": [idle]})
