"""The daemon is killed at each system call in turn; nothing is lost, and no task has two ids."""

import contextlib
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.daemon import Daemon, published
from tests.deadline import eventually
from tests.needs import need

#: What touches a file or a socket and may leave something half done.
CALLS = (
    "read,write,pwrite64,pread64,openat,close,newfstatat,fstat,fcntl,getdents64,fdatasync,fsync,"
    "ftruncate,rename,unlink,unlinkat,mkdir,link,flock,mmap,sendto,recvfrom,sendmsg,recvmsg,connect,"
    "inotify_add_watch"
)

#: Of these only, for a start: an interpreter's start reads a thousand files.
WRITES = "write,pwrite64,fdatasync,fsync,ftruncate,rename,unlink,inotify_add_watch,flock"

INI = """
[broker:b]
url = filesystem://broker
[watch:in]
path = in
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""


def upload(directory: Path) -> set[str]:
    """Write a file, and another into a directory made for it."""
    inner = directory / "in" / "d"
    inner.mkdir()
    files = [directory / "in" / "a.csv", inner / "b.csv"]
    for file in files:
        file.write_text("1,2,3")
    return {str(file) for file in files}


def attach(daemon: Daemon, threads: list[int], *options: str) -> subprocess.Popen[bytes]:
    """Run strace on threads of the daemon; return once it is attached to them."""
    assert daemon.process is not None
    log = daemon.directory / "strace.log"
    targets = [word for thread in threads for word in ("-p", str(thread))]
    tracer = subprocess.Popen(
        ["strace", "-o", str(log), *options, *targets], stderr=subprocess.DEVNULL
    )

    def traced() -> bool:
        try:
            states = [Path(f"/proc/{thread}/status").read_text() for thread in threads]
        except (FileNotFoundError, ProcessLookupError):
            return True  # hit at once
        return all(f"TracerPid:\t{tracer.pid}\n" in state for state in states)

    eventually(traced)
    return tracer


def threads_of(daemon: Daemon) -> list[int]:
    """The daemon's threads, which it always starts in the same order."""
    assert daemon.process is not None
    tasks = f"/proc/{daemon.process.pid}/task"
    # The name resolver and the like may use one for a moment.
    steady = eventually(
        lambda: (t := os.listdir(tasks)) and not time.sleep(0.05) and t == os.listdir(tasks) and t
    )
    return sorted(int(thread) for thread in steady)


def calls(log: Path) -> Counter[tuple[int, str]]:
    """How often each thread made each call: that is how strace counts for an injection."""
    lines = log.read_text(errors="replace").splitlines()
    found = [match for line in lines if (match := re.match(r"(\d+) +(\w+)\(", line))]
    return Counter((int(match[1]), match[2]) for match in found)


def settled(directory: Path) -> int:
    """How many uploads the journal says are done, without asking the daemon, which would count."""
    segments = (directory / "spool" / "journal").iterdir()
    return sum(segment.read_text().count('{"event":"done"') for segment in segments)


def check(directory: Path, uploaded: set[str]) -> None:
    """Every upload has a task; what is there twice bears one id; nothing half is left behind."""
    ids: dict[str, set[str]] = {path: set() for path in uploaded}
    for task in published(directory / "broker"):
        ids[task["args"][0]].add(task["id"])
    assert {path: len(found) for path, found in ids.items()} == dict.fromkeys(uploaded, 1)
    assert [name for name in os.listdir(directory / "broker") if name.endswith(".new")] == []


def fresh(directory: Path) -> Daemon:
    (directory / "in").mkdir(parents=True)
    return Daemon(directory, INI)


def killed(daemon: Daemon, patience: float) -> bool:
    """Wait until the injection has hit, and clear up behind it."""
    assert daemon.process is not None
    with contextlib.suppress(subprocess.TimeoutExpired):
        daemon.process.wait(patience)
    hit = daemon.process.poll() is not None
    daemon.kill()
    return hit


def recover(daemon: Daemon, uploaded: set[str]) -> None:
    """Start it again, undisturbed, and see that it makes everything good."""
    daemon.prefix = []
    daemon.start()
    eventually(lambda: {t["args"][0] for t in published(daemon.directory / "broker")} == uploaded)
    eventually(lambda: daemon.queue() == [])
    daemon.stop()
    assert "Traceback" not in daemon.log
    check(daemon.directory, uploaded)


def in_parallel(work: Callable[[int], bool], count: int) -> int:
    """Do numbered pieces of work, a few at once; return how many said yes."""
    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(work, range(count)))


@pytest.mark.timeout(600)
def test_killed_at_every_call_between_upload_and_task(tmp_path: Path) -> None:
    need("strace")
    daemon = fresh(tmp_path / "counted")
    daemon.start()
    threads = threads_of(daemon)
    tracer = attach(daemon, threads, "-e", f"trace={CALLS}")
    uploaded = upload(daemon.directory)
    eventually(lambda: settled(daemon.directory) == len(uploaded))
    daemon.kill()
    tracer.wait(10)
    counted = calls(daemon.directory / "strace.log")
    kills = [
        (threads.index(thread), call, n)
        for (thread, call), count in counted.items()
        for n in range(1, count + 1)
    ]
    assert len(kills) > 50

    def kill_and_recover(number: int) -> bool:
        daemon = fresh(tmp_path / str(number))
        daemon.start()
        thread, call, when = kills[number]
        inject = f"inject={call}:signal=SIGKILL:when={when}"
        tracer = attach(daemon, [threads_of(daemon)[thread]], "-e", inject)
        uploaded = upload(daemon.directory)
        hit = killed(daemon, patience=2.0)
        tracer.wait(10)
        recover(daemon, uploaded)
        return hit

    # A batch may hold one notification or two, so that fewer calls than counted may be made.
    assert in_parallel(kill_and_recover, len(kills)) > len(kills) * 0.5


@pytest.mark.timeout(600)
def test_killed_at_every_write_of_a_start_with_uploads_waiting(tmp_path: Path) -> None:
    need("strace")
    daemon = fresh(tmp_path / "counted")
    log = daemon.directory / "strace.log"
    waiting(daemon)
    daemon.prefix = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={WRITES}"]
    daemon.start()
    eventually(lambda: settled(daemon.directory) == 2)
    daemon.kill()
    # Whichever thread makes a call for the n-th time first.
    most: dict[str, int] = {}
    for (_, call), count in calls(log).items():
        most[call] = max(count, most.get(call, 0))
    kills = [(call, n) for call, count in most.items() for n in range(1, count + 1)]
    assert len(kills) > 20

    def kill_and_recover(number: int) -> bool:
        daemon = fresh(tmp_path / str(number))
        uploaded = waiting(daemon)
        call, when = kills[number]
        inject = f"inject={call}:signal=SIGKILL:when={when}"
        log = str(daemon.directory / "strace.log")
        daemon.prefix = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={call}", "-e", inject]
        daemon.begin()
        hit = killed(daemon, patience=5.0)
        recover(daemon, uploaded)
        return hit

    assert in_parallel(kill_and_recover, len(kills)) > len(kills) * 0.5


def waiting(daemon: Daemon) -> set[str]:
    """Let a daemon know of its watch, end it, and upload."""
    daemon.start()
    daemon.stop()
    return upload(daemon.directory)
