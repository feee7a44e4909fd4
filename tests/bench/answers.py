"""How fast the daemon answers: on its socket, where an answer is durable, and to commands."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.burst import INI
from tests.bench.processes import Script, python
from tests.bench.queues import Broker, broker
from tests.bench.rows import Row, in_turn
from tests.servers.brokers import Server
from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.inis import INI as EMBEDDED

#: Clients at the same time, and files that each says are complete, on a connection each.
CLIENTS, FILES = 8, 500

#: Commands of which the mean is taken.
COMMANDS = 5

#: A client: says that it is there, begins when it is told to, and prints when it did so and when it
#: ended.
CLIENT = """
import socket, sys, time
path, directory, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("there", flush=True)
sys.stdin.readline()
began = time.monotonic()
for n in range(first, first + count):
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        peer.sendall(f"event=completed\\0path={directory}/{n}.csv\\0\\0".encode())
        assert peer.recv(1000).startswith(b"OK"), n
print(began, time.monotonic())
"""

#: Answers at once, whatever it is told.
BARE = """
import socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(65536)
        self.request.sendall(b"OK 0\\n")
class Server(socketserver.UnixStreamServer):
    request_queue_size = 128
Server(sys.argv[1], Handler).serve_forever()
"""


def rows() -> Iterator[Row]:
    with broker("Redis") as there:
        rates = in_turn({"ours": lambda: durable(there), "bare UnixStreamServer": bare})
    what = f"durable answers to {CLIENTS} clients"
    yield Row(what, "1/s", rates.pop("ours"), rates, 0.5, 1, [*rates])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for folder in ("in", "broker"):
            (directory / folder).mkdir()
        (directory / "in/a.csv").touch()
        with Daemon(directory, EMBEDDED) as daemon:
            ini, file = str(daemon.ini), f"{directory}/in/a.csv"
            times = in_turn(
                {
                    "watchman status": lambda: run("watchman", "-c", ini, "status"),
                    "watchman-send": lambda: run("watchman.commands.send", "-c", ini, file),
                    "Python alone": lambda: run("this"),
                }
            )
    nothing = {name: times.pop(name) for name in ("Python alone",)}
    for name, ours in times.items():
        yield Row(f"{name}, start to answer", "ms", ours, nothing, 120, 60)


def durable(there: Broker) -> float:
    ini = INI.replace("BROKER", there.url).replace("/in\n", "/in\nproftpd = yes\nconfirm = 1h\n")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "in").mkdir()
        for number in range(CLIENTS * FILES):
            (directory / f"in/{number}.csv").touch()
        return answered(Daemon(directory, ini), directory)


def bare() -> float:
    with tempfile.TemporaryDirectory() as name:
        socket = f"{name}/watchman.sock"
        return answered(Script(Path(name), "-IS", "-c", BARE, socket), Path(name))


def answered(server: Server, directory: Path) -> float:
    """Have all clients speak; return how many answers there were in a second."""
    socket = directory / "watchman.sock"
    with server:
        eventually(socket.exists)
        clients = []
        for number in range(CLIENTS):
            numbers = str(number * FILES), str(FILES)
            command = python("-c", CLIENT, str(socket), str(directory / "in"), *numbers)
            clients.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "there\n"
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("\n")
        said = [client.communicate()[0].split() for client in clients]
    began = min(float(one[0]) for one in said)
    return CLIENTS * FILES / (max(float(one[1]) for one in said) - began)


def run(module: str, *arguments: str) -> float:
    """The milliseconds that a command takes."""
    began = time.perf_counter()
    for _ in range(COMMANDS):
        subprocess.run(
            [sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL
        )
    return 1000 * (time.perf_counter() - began) / COMMANDS
