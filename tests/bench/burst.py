"""Many small files at once: how fast watchman and the loops have a task for each in the broker."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.loops import LOOPS
from tests.bench.processes import Script, processor_time, python, settle
from tests.bench.queues import Broker, broker
from tests.bench.rows import Row, in_turn
from tests.servers.brokers import ROOT, Server, clean_environment
from tests.servers.daemon import Daemon

#: Files, and the directories that they are spread over.
FILES, DIRECTORIES = 3_000, 20

INI = """
[watchman]
spool = {{tmp}}/spool
socket = {{tmp}}/watchman.sock
log_file = {{tmp}}/output.log
[broker:b]
url = {url}
[watch:in]
path = {{tmp}}/in
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

#: Writes the files, and prints when it began.
WRITE = """
import os, sys, time
directory, files, directories = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print(time.monotonic())
for n in range(files):
    fd = os.open(f"{directory}/{n % directories}/{n}.csv", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"1,2,3")
    os.close(fd)
"""

#: What is asked for: files per second, against the best loop, and microseconds of processor time.
LIMITS = {"Redis": ((2, 4), (250, 120)), "RabbitMQ": ((1, 1.5), (300, 150))}

#: Files per second, and microseconds of processor time for each.
Speed = tuple[float, float]


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        for broker_name, (speed, cpu) in LIMITS.items():
            with broker(broker_name, Path(name)) as there:
                found = in_turn(sides(there))
            for column, (what, unit, (least, aim)) in enumerate(
                [("burst", "files/s", speed), ("CPU in a burst", "us/file", cpu)]
            ):
                others = {side: [one[column] for one in all_] for side, all_ in found.items()}
                yield Row(
                    f"{what} to {broker_name}",
                    unit,
                    others.pop("watchman"),
                    others,
                    least,
                    aim,
                    list(LOOPS) if what == "burst" else [],
                )


def sides(there: Broker) -> dict[str, Callable[[], Speed]]:
    def daemon() -> Speed:
        return burst(there, lambda directory: Daemon(directory, INI.format(url=there.url)))

    def loop(name: str) -> Callable[[], Speed]:
        arguments = "tests.bench.loops", name, there.url
        return lambda: burst(there, lambda d: Script(d, *arguments, str(d / "in")))

    return {
        "watchman": daemon,
        **{name: loop(name) for name in LOOPS},
        "sending alone": lambda: alone(there, FILES),
    }


def burst(there: Broker, make: Callable[[Path], Server]) -> Speed:
    """Write the files below a watch of a server's that is made for them."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for number in range(DIRECTORIES):
            (directory / f"in/{number}").mkdir(parents=True)
        with make(directory) as server:
            warm_up(there, server, directory / "in")
            busy = processor_time(server)
            writer = subprocess.Popen(
                python("-c", WRITE, str(directory / "in"), str(FILES), str(DIRECTORIES)),
                stdout=subprocess.PIPE,
            )
            ended = there.wait_for(FILES)
            began = float(writer.communicate()[0])
            settle(server)
            busy = processor_time(server) - busy
            assert there.length() == FILES
    return FILES / (ended - began), 1e6 * busy / FILES


def warm_up(there: Broker, server: Server, directory: Path) -> None:
    """Return when it has sent what it has seen, and its connection stands."""
    there.purge()
    deadline = time.monotonic() + 30
    number = 0
    while not there.length():
        assert time.monotonic() < deadline, server.log
        (directory / f"0/first{number}.csv").write_text("1")
        number += 1
        time.sleep(0.2)
    settle(server)
    there.purge()


def alone(there: Broker, count: int) -> Speed:
    there.purge()
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.alone", there.url, str(count)],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, busy = map(float, done.stdout.split())
    assert there.length() >= count
    return count / seconds, 1e6 * busy / count
