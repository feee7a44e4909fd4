"""How long a user's words and files wait while another user floods the daemon."""

from __future__ import annotations

import contextlib
import os
import re
import time
from datetime import datetime

from tests.bench.processes import memory
from tests.servers.daemon import Daemon
from tests.servers.proftpd import public_directory
from tests.support.floods import FLOODS, INI, answered, flooded, furnish, hanging
from tests.support.users import ALICE

#: Words that are timed under each flood.
COUNT = 300

#: A line of the log: when one of her files has become an upload.
ACCEPTED = re.compile(r"(\S+ \S+) .* Accepted upload .*/alice(\d+)\.csv")


def main() -> None:
    """Print what another's words and files wait at the median and at p99, and the daemon."""
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
            size = memory(daemon)
            log = (directory / "output.log").stat().st_size
            median, late = times[COUNT // 2], times[COUNT * 99 // 100]
            print(
                f"{name:<25} {1000 * median:27.1f} ms {1000 * late:7.1f} ms"
                f" {size:9.0f} MB {log / 1000:6.0f} kB"
            )

    print("\nBurst by one user          another's file to its upload: median     p99")
    for name in ("none", "burst"):
        times = found(name)
        median, late = times[COUNT // 2], times[COUNT * 99 // 100]
        print(f"{name:<25} {1000 * median:31.1f} ms {1000 * late:7.1f} ms")


def found(name: str) -> list[float]:
    """Have Alice make files that inotify alone tells of; return the seconds from the end of each
    to its upload, the shortest first.
    """
    with public_directory() as directory, contextlib.ExitStack() as stack:
        furnish(directory, 0)
        daemon = stack.enter_context(Daemon(directory, INI))
        if name != "none":
            stack.enter_context(flooded(name, directory))
        ended = {}
        for number in range(COUNT):
            time.sleep(0.02)
            with (directory / f"bulk/alice{number}.csv").open("w") as file:
                os.fchown(file.fileno(), ALICE, ALICE)
            ended[number] = time.time()
        accepted: dict[int, float] = {}
        while accepted.keys() != ended.keys():
            time.sleep(1)
            for line in daemon.log.splitlines():
                if match := ACCEPTED.match(line):
                    moment = datetime.fromisoformat(match[1])
                    accepted[int(match[2])] = moment.timestamp()
        return sorted(accepted[number] - ended[number] for number in ended)
