"""How long a user's word waits for its answer while another user floods the socket."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from tests.daemon import Daemon
from tests.floods import FLOODS, INI, answered, flooded, furnish, hanging
from tests.proftpd import public_directory

#: Words that are timed under each flood.
COUNT = 300


def main() -> None:
    """Print a table: what another's `completed` waits at the median and at p99, and the daemon."""
    print("Flood by one user         another's completed: median     p99    daemon's RSS     log")
    for name in ("none", *FLOODS):
        with public_directory() as directory, contextlib.ExitStack() as stack:
            furnish(directory, COUNT)
            daemon = stack.enter_context(Daemon(directory, INI))
            if name == "hanging":
                stack.enter_context(hanging(directory))
            if name != "none":
                stack.enter_context(flooded(name, directory))
                time.sleep(1)
            times = answered(directory, COUNT)
            assert daemon.process is not None
            memory = rss(daemon.process.pid)
            log = (directory / "output.log").stat().st_size
            median, late = times[COUNT // 2], times[COUNT * 99 // 100]
            print(
                f"{name:<25} {1000 * median:27.1f} ms {1000 * late:7.1f} ms"
                f" {memory:9.0f} MB {log / 1000:6.0f} kB"
            )


def rss(pid: int) -> float:
    """The memory of a process in MB, see proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000
