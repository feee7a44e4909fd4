"""What a file costs where there is little, and where there is much: both should be the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench.burst import INI, Make, Speed, burst, make_daemon
from tests.bench.queues import Broker, broker
from tests.bench.rows import Row, columns, in_turn
from tests.bench.trees import fewest_watches, many_directories
from tests.servers.brokers import Server
from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.floods import flooded
from watchman.uploads.upload import Task

FEW, MANY = 1_000, 100_000

#: Task sections, and users who own the files.
FEW_TASKS, MANY_TASKS = 10, 1_000
FEW_USERS, MANY_USERS = 1, 1_000

#: Beside the watch with the burst.
MORE = """
[watch:more]
path = {path}
[broker:away]
url = redis://127.0.0.1:1/0
[task:old]
pattern = *.old
broker = away
task = tests.record
"""

TASK = """
[task:csv{number}]
pattern = */project{number}/*.csv
broker = b
task = tests.record
"""


class Busy(Daemon):
    """A daemon with 600 sessions, each in the middle of a transfer."""

    def start(self) -> None:
        super().start()
        for directory in (self.directory, self.directory / "in"):
            directory.chmod(0o1777)
        self.sessions = contextlib.ExitStack()
        self.sessions.enter_context(flooded("processes", self.directory))

    def stop(self) -> None:
        self.sessions.close()
        super().stop()


def rows() -> Iterator[Row]:
    with (
        bulk.roomy_directory(2 * MANY) as trees,
        broker("Redis") as there,
        fewest_watches(2 * MANY),
    ):
        for count in (FEW, MANY):
            many_directories(trees / f"directories{count}", count)
            for _ in bulk.create(trees / f"files{count}", range(count)):
                pass
        for what, few, many, measure in measurements(there, trees):
            sides = {f"{count:,}": partial(measure, count) for count in (few, many)}
            _, costs = columns(in_turn(sides))
            ours = costs.pop(f"{many:,}")
            yield Row(f"a file, {many:,} {what}", "us CPU", ours, costs, against=[*costs])


Measure = Callable[[int], Speed]


def measurements(there: Broker, trees: Path) -> Iterator[tuple[str, int, int, Measure]]:
    """What there is, little and much of it, and what a burst costs then."""

    def more(path: str) -> Make:
        return make_daemon(there, MORE.replace("{path}", f"{trees}/{path}"))

    def watches(count: int) -> Speed:
        return burst(there, more(f"directories{count}"))

    def files(count: int) -> Speed:
        return burst(there, full(there, count), directories=1)

    def waiting(count: int) -> Speed:
        return burst(there, late(more(f"files{count}"), trees / f"files{count}"))

    def tasks(count: int) -> Speed:
        head, _, csv = INI.partition("[task:csv]")
        sections = "".join(TASK.format(number=number) for number in range(count))
        ini = f"{head}{sections}[task:csv]{csv}".replace("BROKER", there.url)
        return burst(there, lambda directory: Daemon(directory, ini))

    def users(count: int) -> Speed:
        return burst(there, make_daemon(there), owners=count)

    def sessions(count: int) -> Speed:
        ini = INI.replace("BROKER", there.url)
        return burst(there, lambda directory: (Busy if count else Daemon)(directory, ini))

    yield "watches", FEW, MANY, watches
    yield "files in its directory", FEW, MANY, files
    yield "uploads waiting", FEW, MANY, waiting
    yield "task sections", FEW_TASKS, MANY_TASKS, tasks
    yield "users", FEW_USERS, MANY_USERS, users
    yield "sessions", 0, 600, sessions


def full(there: Broker, count: int) -> Make:
    """A daemon below whose watch many files are already."""

    def make(directory: Path) -> Server:
        for number in range(count):
            (directory / f"in/0/{number}.old").touch()
        return make_daemon(there)(directory)

    return make


def late(make: Make, files: Path) -> Make:
    """A daemon in whose journal uploads of all those files wait for a dead broker."""

    def make_late(directory: Path) -> Server:
        bulk.write_journal(
            directory / "spool",
            (str(path) for path in files.rglob("*.csv")),
            lambda path: Task("old", "away", "tests.record", [path]),
            watch="more",
        )
        return make(directory)

    return make_late
