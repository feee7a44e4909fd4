"""Many small files at once: how fast watchman and the loops have a task for each in the broker."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench.loops import LOOPS
from tests.bench.processes import Script, processor_time, python, settle
from tests.bench.queues import Broker, broker
from tests.bench.rows import Row, columns, in_turn
from tests.servers.brokers import ROOT, Server, clean_environment
from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.inis import WATCH, csv_tasks

#: Files, and the directories that they are spread over.
FILES, DIRECTORIES = 3_000, 20

INI = """
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
log_file = {tmp}/output.log
""" + csv_tasks(WATCH, url="BROKER")

#: What is asked for: files per second, against the best loop, and microseconds of processor time.
LIMITS = {"Redis": ((2, 4), (250, 120)), "RabbitMQ": ((1, 1.5), (300, 150))}

ALONE = "sending alone"

#: Writes the files, and prints when it began.
WRITE = """
import os, sys, time
directory, (files, directories, owners) = sys.argv[1], map(int, sys.argv[2:])
print(time.monotonic())
for n in range(files):
    fd = os.open(f"{directory}/{n % directories}/{n}.csv", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"1,2,3")
    if owners:
        os.fchown(fd, 100_000 + n % owners, 100_000 + n % owners)
    os.close(fd)
"""

#: Files per second, and microseconds of processor time for each.
Speed = tuple[float, float]

#: Makes a server on a directory, whose watch is `in` below it, and starts nothing yet.
Make = Callable[[Path], Server]


def rows() -> Iterator[Row]:
    for broker_name, (speed, cost) in LIMITS.items():
        with broker(broker_name) as there:
            speeds, costs = columns(in_turn(sides(there)))
        what, ours = f"burst to {broker_name}", speeds.pop("watchman")
        yield Row(what, "files/s", ours, speeds, *speed, against=list(LOOPS))
        yield Row(f"CPU, {what}", "us/file", costs.pop("watchman"), costs, *cost)


def sides(there: Broker) -> dict[str, Callable[[], Speed]]:
    def loop(name: str) -> Callable[[], Speed]:
        return lambda: burst(there, make_loop(name, there))

    return {
        "watchman": lambda: burst(there, make_daemon(there)),
        **{name: loop(name) for name in LOOPS},
        ALONE: lambda: alone(there, FILES),
        "writing alone": writing,
    }


def make_daemon(there: Broker, sections: str = "") -> Make:
    ini = INI.replace("BROKER", there.url) + sections
    return lambda directory: Daemon(directory, ini)


def make_loop(name: str, there: Broker) -> Make:
    return lambda d: Script(d, "-m", "tests.bench.loops", name, there.url, str(d / "in"))


@contextlib.contextmanager
def fresh(disk: Path | None = None) -> Iterator[Path]:
    """A directory in memory with a spool on a disk; or all of it on that disk, where it is left.

    ext4 looks at every inode that was deleted in the last seconds before it makes another one, see
    recently_deleted() there: files of one round would slow down those of the next.
    """
    if disk is not None:
        yield Path(tempfile.mkdtemp(dir=disk))
        return
    with bulk.roomy_directory(FILES) as directory, tempfile.TemporaryDirectory() as spool:
        (directory / "spool").symlink_to(spool)
        yield directory


def burst(
    there: Broker,
    make: Make,
    *,
    disk: Path | None = None,
    directories: int = DIRECTORIES,
    owners: int = 0,
) -> Speed:
    """Write the files below the watch of a server that is made for them."""
    with fresh(disk) as directory:
        make_directories(directory / "in", directories)
        with make(directory) as server:
            warm_up(there, server, directory / "in")
            busy = processor_time(server)
            writer = subprocess.Popen(
                write_files(directory / "in", FILES, directories, owners), stdout=subprocess.PIPE
            )
            ended = there.wait_for(FILES)
            began = float(writer.communicate()[0])
            settle(server)
            busy = processor_time(server) - busy
            assert there.length() == FILES
    return FILES / (ended - began), 1e6 * busy / FILES


def writing() -> Speed:
    """Only write the files: nobody can be faster."""
    with fresh() as directory:
        make_directories(directory, DIRECTORIES)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(write_files(directory, FILES), stdout=subprocess.PIPE, check=True)
        seconds = time.monotonic() - float(done.stdout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return FILES / seconds, 1e6 * busy / FILES


def write_files(
    directory: Path, files: int, directories: int = DIRECTORIES, owners: int = 0
) -> Sequence[str]:
    """The command that does, spread over directories that are there; of so many users, if any."""
    return python("-c", WRITE, str(directory), *map(str, (files, directories, owners)))


def make_directories(directory: Path, count: int) -> None:
    for number in range(count):
        (directory / f"{number}").mkdir(parents=True)


def write(file: Path) -> object:
    return file.write_text("1")


def warm_up(
    there: Broker, server: Server, directory: Path, tell: Callable[[Path], object] = write
) -> None:
    """Return when it has sent what it has seen, and its connection stands."""
    there.purge()
    deadline = time.monotonic() + 60
    number = 0
    while not there.length():
        assert time.monotonic() < deadline, server.log
        tell(directory / f"0/first{number}.csv")
        number += 1
        time.sleep(0.2)
    settle(server)
    there.purge()


def alone(there: Broker, count: int) -> Speed:
    """Send messages about paths that are ready."""
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
