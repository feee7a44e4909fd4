"""How long a file waits for its task at 50 files a second, whoever tells of it."""

from __future__ import annotations

import contextlib
import ftplib
import io
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles

from tests.bench.burst import INI, Make, make_daemon, make_loop, warm_up
from tests.bench.loops import LOOPS
from tests.bench.queues import Broker, broker
from tests.bench.rows import Row, columns, in_turn
from tests.servers.daemon import Daemon
from tests.servers.proftpd import PASSWORD, USER, Options, ProftpdServer, public_directory
from tests.support.translog import TOKEN, append, line
from watchman.sources.socket import wire

#: Files of which median and p99 are taken, and seconds between two.
FILES, PAUSE = 250, 0.02

#: Uploads of one client, in one session.
UPLOADS = 200

PROFTPD = "proftpd = yes\nconfirm = 60s\n"

LOG = f"""
[proftpd]
transfer_log = {{tmp}}/uploads.log
token = {TOKEN}
"""

#: Writes a file and tells of it, and returns when it began to.
Tell = Callable[[Path], float]

#: Median and p99, in milliseconds.
Times = tuple[float, float]


def rows() -> Iterator[Row]:
    with broker("Redis") as there:
        loops = {loop: lambda loop=loop: wait(there, make_loop(loop, there)) for loop in LOOPS}
        found = in_turn(
            {
                "watchman": lambda: wait(there, make_daemon(there)),
                "log": lambda: wait(there, make_told(there, LOG), write_line),
                "hook": lambda: wait(there, make_told(there), say_completed),
                **loops,
            }
        )
    ways = {name: found.pop(name) for name in ("log", "hook")}
    for what, times, told in zip(("median", "p99"), columns(found), columns(ways), strict=True):
        close = times.pop("watchman")
        yield Row(f"close to broker, {what}", "ms", close, times, 1.2, 0.8, ["inotifywait"])
        for name, way in told.items():
            usual = {"from a close": close}
            yield Row(f"{name} to broker, {what}", "ms", way, usual, 1.5, 1, [*usual])


def upload_rows() -> Iterator[Row]:
    with broker("Redis") as there:
        times = in_turn(
            {"ours": lambda: upload(make_told(there, LOG)), "ProFTPD alone": lambda: upload()}
        )
    ours = times.pop("ours")
    yield Row("upload with the transfer log", "ms", ours, times, 1.5, 1.1, [*times])


def make_told(there: Broker, sections: str = "") -> Make:
    """A daemon that waits for ProFTPD's word."""
    ini = INI.replace("BROKER", there.url).replace("/in\n", f"/in\n{PROFTPD}") + sections

    def make(directory: Path) -> Daemon:
        (directory / "uploads.log").touch()
        return Daemon(directory, ini)

    return make


# Who tells of a file.


def close(file: Path) -> float:
    """Write it; return when it was closed, as `time.monotonic()` tells it."""
    fd = os.open(file, os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"1,2,3")
    began = time.monotonic()
    os.close(fd)
    return began


def write_line(file: Path) -> float:
    close(file)
    time.sleep(PAUSE)
    began = time.monotonic()
    append(file.parents[2] / "uploads.log", line(str(file)))
    return began


def say_completed(file: Path) -> float:
    """What the hook says, without the start of its interpreter."""
    close(file)
    time.sleep(PAUSE)
    began = time.monotonic()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(file.parents[2] / "watchman.sock"))
        connection.sendall(wire.encode("completed", {"path": str(file)}))
        assert connection.recv(100).startswith(b"OK")
    return began


def wait(there: Broker, make: Make, tell: Tell = close) -> Times:
    """One file after the other, and how long its message takes."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "in/0").mkdir(parents=True)
        with make(directory) as server:
            warm_up(there, server, directory / "in", tell)
            times = []
            for number in range(FILES):
                file = directory / f"in/0/{number}.csv"
                began = tell(file)
                assert there.take() == str(file)
                times.append(1000 * (time.monotonic() - began))
                time.sleep(max(0, began + PAUSE - time.monotonic()))
    return median(times), quantiles(times, n=100)[98]


def upload(make: Make | None = None) -> float:
    """The median of milliseconds that a client waits for ProFTPD's answer to a small file."""
    with public_directory() as directory, contextlib.ExitStack() as stack:
        log = None
        if make is not None:
            (directory / "in").mkdir()
            log = directory / "uploads.log"
            stack.enter_context(make(directory))
        server = ProftpdServer(
            directory / "proftpd",
            home=directory / "in",
            socket=directory / "none",
            options=Options(hooks=False, log=log),
        )
        stack.enter_context(server)
        client = stack.enter_context(ftplib.FTP())
        client.connect("127.0.0.1", server.port, timeout=30)
        client.login(USER, PASSWORD)
        times = []
        for number in range(UPLOADS):
            began = time.perf_counter()
            client.storbinary(f"STOR {number}.csv", io.BytesIO(bytes(1024)))
            times.append(1000 * (time.perf_counter() - began))
    return median(times)
