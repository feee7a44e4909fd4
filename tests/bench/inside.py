"""What parts of the daemon cost: a burst with a move, without syncs; and a backlog that is sent."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.bench.burst import ALONE, INI, Make, Speed, alone, burst, make_daemon
from tests.bench.processes import processor_time, settle
from tests.bench.queues import Broker, broker
from tests.bench.rows import Row, columns, in_turn
from tests.servers.brokers import Server
from tests.servers.daemon import Daemon
from tests.support import bulk
from watchman.uploads.upload import Task

#: Uploads that wait when the broker is resumed.
UPLOADS = 10_000

MOVE = """
[move:archive]
source = {tmp}/in
destination = {tmp}/out
"""

#: Read by Python before the daemon's own modules.
WITHOUT_SYNC = """
import os
os.fdatasync = os.fsync = lambda fd: None
"""

#: What is asked of a backlog, against sending alone.
LIMITS = {"Redis": (1, 3), "RabbitMQ": (1, 1.5)}


class Unsynced(Daemon):
    """A daemon that has nothing written to the disk at once."""

    def environment(self) -> dict[str, str]:
        (self.directory / "sitecustomize.py").write_text(WITHOUT_SYNC)
        environment = super().environment()
        return environment | {"PYTHONPATH": f"{self.directory}:{environment['PYTHONPATH']}"}


def rows() -> Iterator[Row]:
    with broker("Redis") as there, tempfile.TemporaryDirectory() as name:
        # A move is about a disk, and so are syncs.
        on_disk = partial(burst, there, disk=Path(name))
        ini = INI.replace("BROKER", there.url)
        found = in_turn(
            {
                "as it is": lambda: on_disk(make_daemon(there)),
                "[move]": lambda: on_disk(moving(there)),
                "no fdatasync": lambda: on_disk(lambda directory: Unsynced(directory, ini)),
            }
        )
    speeds, _ = columns(found)
    usual = {"without": speeds["as it is"]}
    yield Row("burst with [move]", "files/s", speeds["[move]"], usual, 0.7, 0.95, ["without"])
    others = {"without fdatasync": speeds["no fdatasync"]}
    yield Row("burst, journal on", "files/s", speeds["as it is"], others, 0.9, 0.98, [*others])
    for broker_name, limits in LIMITS.items():
        with broker(broker_name) as there:
            found = in_turn(
                {"watchman": lambda: backlog(there), ALONE: lambda: alone(there, UPLOADS)}
            )
        speeds, costs = columns(found)
        ours = speeds.pop("watchman")
        yield Row(f"backlog to {broker_name}", "files/s", ours, speeds, *limits, [ALONE])
        yield Row(f"CPU, backlog to {broker_name}", "us/file", costs.pop("watchman"), costs)


def moving(there: Broker) -> Make:
    def make(directory: Path) -> Server:
        (directory / "out").mkdir()
        return make_daemon(there, MOVE)(directory)

    return make


def backlog(there: Broker) -> Speed:
    """Resume a broker that many uploads wait for since before the start."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "in").mkdir()
        with Daemon(directory, INI.replace("BROKER", there.url)) as daemon:
            assert daemon.run("pause", "broker:b").returncode == 0
            daemon.stop()
            bulk.write_journal(
                directory / "spool",
                bulk.create(directory / "in", range(UPLOADS)),
                lambda path: Task("csv", "b", "tests.record", [path]),
            )
            there.purge()
            daemon.start()
            settle(daemon)
            busy = processor_time(daemon)
            began = time.monotonic()
            daemon.ask("resume", name="broker:b")
            ended = there.wait_for(UPLOADS)
            settle(daemon)
            busy = processor_time(daemon) - busy
            assert there.length() == UPLOADS
        subprocess.run(["rm", "-rf", directory / "in"], check=True)
    return UPLOADS / (ended - began), 1e6 * busy / UPLOADS
