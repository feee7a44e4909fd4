"""What a process costs, and the processes that are measured beside the daemon."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.servers.brokers import ROOT, Server
from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.deadline import eventually

#: Units of processor time in /proc/PID/stat.
TICK: float = 1 / os.sysconf("SC_CLK_TCK")

#: Seconds without work after which a process is done with what it had.
QUIET = 0.3


class Script(Server):
    """`python ARGUMENTS...` with our modules at hand; ready as soon as it runs."""

    patience = 2.0

    def __init__(self, directory: Path, *arguments: str) -> None:
        super().__init__(directory)
        self.arguments = [sys.executable, *arguments]

    def command(self) -> list[str]:
        return self.arguments

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PYTHONPATH": str(ROOT)}

    def is_ready(self) -> bool:
        return True


def pid(server: Server) -> int:
    assert server.process is not None
    return server.process.pid


def family(parent: int) -> list[int]:
    """A process and its descendants."""
    found = [parent]
    for process in found:
        for thread in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def processor_time(server: Server) -> float:
    """The seconds of processor time that it and its children have had, see proc(5)."""
    ticks = 0
    for process in family(pid(server)):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * TICK


def memory(server: Server) -> float:
    """What it has in memory, in MB."""
    status = Path(f"/proc/{pid(server)}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000


def settle(*servers: Server) -> None:
    """Return when none of them has worked for a while."""
    since, before = time.monotonic(), -1.0
    while time.monotonic() - since < QUIET:
        time.sleep(0.02)
        now = sum(map(processor_time, servers))
        if now != before:
            since, before = time.monotonic(), now


def start(daemon: Daemon, *, stop: bool = False) -> tuple[float, float]:
    """Start; return the seconds that takes, and the peak of memory in MB."""
    began = time.perf_counter()
    daemon.begin()
    eventually(daemon.is_ready_or_dead, timeout=300)
    found = time.perf_counter() - began, bulk.peak_memory(daemon) / 1e6
    if stop:
        daemon.stop()
    return found


def python(*arguments: str) -> Sequence[str]:
    """An interpreter that starts quickly."""
    return [sys.executable, "-IS", *arguments]
