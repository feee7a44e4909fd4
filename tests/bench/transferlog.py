"""What the transfer log costs: from a line to its task, and many lines that wait at a start."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.sides import say, scaled, start
from tests.servers.daemon import Daemon
from tests.support.translog import Reader, append, line
from watchman.sources.socket import wire

#: Uploads of which the median is taken, and seconds between two.
UPLOADS, PAUSE = 200, 0.02

#: Lines that wait: for the source alone, and for the daemon.
LINES, UPLOADED = 100_000, 20_000

INI = """
[broker:b]
url = {broker}
[watch:ftp]
path = {{tmp}}/home
proftpd = {proftpd}
confirm = 60s
existing = yes
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

LOG = """
[proftpd]
transfer_log = {tmp}/uploads.log
token = a-secret
"""


def ini(*, proftpd: bool = True, log: bool = True, broker: str = "filesystem://broker") -> str:
    text = INI.format(broker=broker, proftpd="yes" if proftpd else "no")
    return text + LOG * log


def main() -> None:
    print("transfer log")
    measure_latency()
    measure_reading()
    measure_start()


# From the word to the task.


def latency(text: str, speak: Callable[[Path, Path], None]) -> float:
    """The median of seconds from a source's word to the task in the embedded broker's folder."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        home, broker = directory / "home", directory / "broker"
        home.mkdir()
        broker.mkdir()
        (directory / "uploads.log").touch()
        daemon = Daemon(directory, text)
        daemon.start()
        times = []
        for number in range(UPLOADS):
            file = home / f"{number}.csv"
            if speak is not close:
                close(directory, file)
                time.sleep(PAUSE)
            began = time.perf_counter()
            speak(directory, file)
            while sum(entry.endswith(".msg") for entry in os.listdir(broker)) <= number:
                time.sleep(0.0002)
            times.append(time.perf_counter() - began)
            time.sleep(PAUSE)
        daemon.stop()
    return statistics.median(times)


def close(directory: Path, file: Path) -> None:
    file.write_text("12345")


def log(directory: Path, file: Path) -> None:
    append(directory / "uploads.log", line(file))


def hook(directory: Path, file: Path) -> None:
    """What the hook says, without the start of its interpreter."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(directory / "watchman.sock"))
        connection.sendall(wire.encode("completed", {"path": str(file)}))
        assert connection.recv(100).startswith(b"OK")


def measure_latency() -> None:
    ours = latency(ini(), log)
    others = {
        "a hook's word": latency(ini(log=False), hook),
        "a close seen by inotify": latency(ini(log=False, proftpd=False), close),
    }
    say("from the line to the task, median", 1000 * ours, "ms", scaled(others, 1000))


# Many lines.


def measure_reading() -> None:
    """The source alone, without decisions."""
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "uploads.log")
        for count in (LINES // 10, LINES):
            path.write_bytes(b"")
            reader = Reader(path)
            reader.start()
            reader.stop()
            append(path, b"".join(line(f"/srv/ftp/alice/{n}.csv") for n in range(count)))
            began = time.perf_counter()
            reader.start()
            seconds[count] = time.perf_counter() - began
            reader.stop()
            assert len(reader.heard) == count
        began = time.perf_counter()
        with path.open("rb") as file:
            fields = sum(len(text.split(b"|", 10)) for text in file)
        plain = time.perf_counter() - began
        assert fields == 11 * LINES
    tenth = 10 * seconds[LINES // 10]
    say(
        f"to read {LINES:,} lines",
        1e6 * seconds[LINES] / LINES,
        "us each",
        scaled({"ten times a tenth of them": tenth, "split() alone": plain}, 1e6 / LINES),
    )


def measure_start() -> None:
    """The daemon's start, with all that waits decided about and in the journal."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "home").mkdir()
        path = directory / "uploads.log"
        path.touch()
        away = "redis://127.0.0.1:1/0"
        daemon = Daemon(directory, ini(broker=away))
        daemon.start()
        daemon.stop()
        plain, idle = start(daemon)
        daemon.stop()
        lines = []
        for number in range(UPLOADED):
            file = directory / "home" / f"{number}.csv"
            file.touch()
            lines.append(line(file, size=0))
        append(path, b"".join(lines))
        waiting, busy = start(daemon)
        daemon.stop()
    say(f"to start with {UPLOADED:,} lines", waiting, "s", {"a start without": plain})
    say("memory with them", busy / 1024, "MiB", {"those without": idle / 1024})
