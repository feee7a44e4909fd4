"""One user floods the socket, and another one's words are answered all the same."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, published
from tests.deadline import eventually
from tests.users import ALICE, BOB, speak

pytestmark = pytest.mark.root

INI = """
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
[broker:b]
url = filesystem://broker
[watch:in]
path = {tmp}/in
proftpd = yes
confirm = 1h
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

#: Each is a program of Bob's that goes on until it is killed, and says `ready` once it floods.
FLOODS = {
    "silent": """
peers = [connect() for _ in range(900)]
ready()
time.sleep(100)
""",
    "large": """
import threading
def talk():
    while True:
        with contextlib.suppress(OSError):
            peer = connect()
            while True:
                peer.sendall(b"event=started\\0" + b"x=y\\0" * 16000 + b"\\0")
                peer.recv(65536)
for _ in range(100):
    threading.Thread(target=talk).start()
ready()
""",
    "onefile": """
request = f"event=completed\\0path={directory}/bob.csv\\0\\0".encode()
peers = [connect() for _ in range(450)]
for peer in peers:
    peer.setblocking(False)
ready()
while True:
    for peer in peers:
        with contextlib.suppress(BlockingIOError):
            peer.send(request * 50)
        with contextlib.suppress(BlockingIOError):
            peer.recv(65536)
""",
    "started": """
peer = connect()
peer.setblocking(False)
ready()
n = 0
while True:
    requests = b"".join(
        f"event=started\\0path={directory}/{n + i}.dat\\0\\0".encode() for i in range(50)
    )
    n += 50
    while requests:
        with contextlib.suppress(BlockingIOError):
            requests = requests[peer.send(requests):]
        with contextlib.suppress(BlockingIOError):
            peer.recv(65536)
""",
    "processes": """
for n in range(600):
    if os.fork() == 0:
        hook = os.fork()
        if hook == 0:
            peer = connect()
            peer.sendall(f"event=started\\0path={directory}/{n}.dat\\0\\0".encode())
            peer.recv(100)
            os._exit(0)
        os.waitpid(hook, 0)
        time.sleep(100)
        os._exit(0)
ready()
time.sleep(100)
""",
    "hanging": """
request = f"event=completed\\0path={directory}/../hanging/a/b.csv\\0\\0".encode()
peer = connect()
peer.sendall(request * 100)
ready()
time.sleep(100)
""",
}

HEAD = """
import contextlib, os, socket, sys, time
path, directory = sys.argv[1:]
def connect():
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    return peer
def ready():
    print("ready", flush=True)
"""

#: Answers of Alice's that are timed, and the seconds that nine in ten of them may take. Hooks give
#: up after 0.2; `make bench` measures the rest.
TIMED, LIMIT = 40, 0.2

TIME = """
import socket, sys, time
path, directory, count = sys.argv[1:]
for n in range(int(count)):
    began = time.monotonic()
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    peer.sendall(f"event=completed\\0path={directory}/alice{n}.csv\\0\\0".encode())
    answer = peer.recv(1000).decode().split()[0]
    print(answer, time.monotonic() - began, flush=True)
    peer.close()
    time.sleep(0.02)
"""


@pytest.fixture
def daemon(public_path: Path, start_watchman: Callable[..., Daemon]) -> Daemon:
    (public_path / "in").mkdir()
    (public_path / "in").chmod(0o1777)
    for name, uid in [("bob.csv", BOB), *((f"alice{n}.csv", ALICE) for n in range(TIMED))]:
        (public_path / "in" / name).write_text("1")
        os.chown(public_path / "in" / name, uid, uid)
    return start_watchman(
        INI.replace("path = {tmp}/in", "path = {tmp}/in\nexisting = no"), directory=public_path
    )


@contextlib.contextmanager
def flooded(name: str, directory: Path) -> Iterator[None]:
    command = ["prlimit", "--nofile=4096", "/usr/bin/python3", "-IS", "-c", HEAD + FLOODS[name]]
    flood = subprocess.Popen(
        [*command, directory / "watchman.sock", directory / "in"],
        user=BOB,
        group=BOB,
        extra_groups=[],
        cwd="/",
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert flood.stdout is not None
        assert flood.stdout.readline() == b"ready\n"
        yield
    finally:
        os.killpg(flood.pid, 9)
        flood.wait()
        assert flood.stdout is not None
        flood.stdout.close()


@contextlib.contextmanager
def hanging(directory: Path) -> Iterator[None]:
    """A FUSE mount whose process is stopped."""
    (directory / "hanging").mkdir()
    (directory / "behind/a").mkdir(parents=True)
    mounted = [directory / "behind", directory / "hanging"]
    server = subprocess.Popen(["bindfs", "-f", "-o", "attr_timeout=0,entry_timeout=0", *mounted])
    try:
        eventually(lambda: os.path.ismount(mounted[1]))
        server.send_signal(19)
        yield
    finally:
        server.kill()
        server.wait()
        subprocess.run(["umount", "--lazy", mounted[1]], check=True)


@pytest.mark.parametrize("name", FLOODS)
def test_another_users_words_are_answered_meanwhile(
    name: str, public_path: Path, daemon: Daemon
) -> None:
    with contextlib.ExitStack() as stack:
        if name == "hanging":
            stack.enter_context(hanging(public_path))
        stack.enter_context(flooded(name, public_path))
        timed = ["/usr/bin/python3", "-IS", "-c", TIME]
        done = subprocess.run(
            [*timed, public_path / "watchman.sock", public_path / "in", str(TIMED)],
            user=ALICE,
            group=ALICE,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        answers = [line.split() for line in done.stdout.splitlines()]
        times = sorted(float(seconds) for _, seconds in answers)
        assert {word for word, _ in answers} == {"OK"}
        assert times[TIMED * 9 // 10] < LIMIT, times
        assert daemon.run("status").returncode in (0, 1)
    began = time.monotonic()
    assert speak(ALICE, public_path / "watchman.sock", b"event=ended\0\0") == ["OK"]
    assert time.monotonic() - began < 1.0
    eventually(lambda: len(published(public_path / "broker")) >= TIMED)
    assert len(daemon.log) < 100_000
