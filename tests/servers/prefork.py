"""A stock prefork worker on a module of tasks, for tests that kill it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.servers.brokers import ROOT, Server, clean_environment


class PreforkWorker(Server):
    """`celery worker` with two processes on the module `work`, whose text is given."""

    #: All tasks bear a kill, so a stop need not wait for one.
    patience = 0.5

    def __init__(self, directory: Path, module: str) -> None:
        super().__init__(directory)
        self.starts = 0
        (directory / "work.py").write_text(module)

    def environment(self) -> dict[str, str]:
        return clean_environment() | {
            "PYTHONPATH": f"{ROOT}:{self.directory}",
            "PYTHONUNBUFFERED": "1",
            "C_FORCE_ROOT": "1",
        }

    def command(self) -> list[str]:
        self.starts += 1
        name = f"{self.directory.name}-{time.time_ns()}@localhost"
        return [
            *(sys.executable, "-W", "ignore", "-m", "celery", "-A", "work", "worker"),
            *("-c", "2", "-l", "INFO", "-n", name),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]

    @property
    def output(self) -> str:
        return (self.directory / "output.log").read_text(errors="replace")

    def is_ready(self) -> bool:
        return self.output.count("ready.") >= self.starts

    def children(self) -> list[int]:
        """The processes that do the work."""
        assert self.process is not None
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
