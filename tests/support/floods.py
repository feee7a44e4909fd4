"""Users who say or bring as much as they can, and how long another one waits then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.deadline import eventually
from tests.support.inis import csv_tasks
from tests.support.users import ALICE, BOB

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
    "burst": """
bulk = os.path.join(os.path.dirname(directory), "bulk")
ready()
for n in range(100_000):
    with open(f"{bulk}/{n}.csv", "w"):
        pass
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


@contextlib.contextmanager
def flooded(name: str, directory: Path) -> Iterator[None]:
    """Have Bob flood the daemon on `directory` meanwhile, with no end."""
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
    assert flood.stdout is not None
    with flood, contextlib.ExitStack() as stack:
        stack.callback(os.killpg, flood.pid, signal.SIGKILL)
        assert flood.stdout.readline() == b"ready\n"
        yield


@contextlib.contextmanager
def hanging(directory: Path) -> Iterator[None]:
    """A FUSE mount whose process is stopped."""
    (directory / "hanging").mkdir()
    (directory / "behind/a").mkdir(parents=True)
    mounted = [directory / "behind", directory / "hanging"]
    server = subprocess.Popen(["bindfs", "-f", "-o", "attr_timeout=0,entry_timeout=0", *mounted])
    try:
        eventually(lambda: os.path.ismount(mounted[1]))
        server.send_signal(signal.SIGSTOP)
        yield
    finally:
        server.kill()
        server.wait()
        subprocess.run(["umount", "--lazy", mounted[1]], check=True)


def answered(directory: Path, count: int) -> list[float]:
    """Have Alice say that her files are complete, one after the other; return how many seconds each
    answer took, the shortest first.
    """
    told = [str(directory / "watchman.sock"), str(directory / "in"), str(count)]
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", TIME, *told],
        user=ALICE,
        group=ALICE,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answers = [line.split() for line in done.stdout.splitlines()]
    assert {word for word, _ in answers} == {"OK"}, answers
    return sorted(float(seconds) for _, seconds in answers)


def furnish(directory: Path, count: int) -> None:
    """Make the directories that are watched, drop boxes, with a file of Bob's and Alice's files."""
    for name in ("in", "bulk"):
        (directory / name).mkdir()
        (directory / name).chmod(0o1777)
    names = {"bob.csv": BOB} | {f"alice{n}.csv": ALICE for n in range(count)}
    for name, uid in names.items():
        (directory / "in" / name).write_text("1")
        os.chown(directory / "in" / name, uid, uid)


#: Of a daemon for it, on `directory`.
INI = csv_tasks("""
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
[watch:in]
path = {tmp}/in
proftpd = yes
existing = no
confirm = 1h
[watch:bulk]
path = {tmp}/bulk
existing = no
""")
