"""The mover is killed at each call that changes anything; each file is moved once all the same."""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.brokers import ROOT
from tests.deadline import eventually
from tests.moving import files
from tests.needs import need

#: What changes a file, a name or a descriptor's lease. Between two of them all is as before.
CALLS = (
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdirat,openat,write,pwrite64,sendfile,"
    "copy_file_range,ftruncate,fchown,fchmod,utimensat,fsync,fdatasync,fcntl"
)

WHOLE = "1,2,3\n" * 20_000


class Process:
    """`tests.moving` as a program: its mover and dispatcher can be traced."""

    def __init__(self, directory: Path, destination: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.moving", str(directory), str(destination), "collision"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.threads = [int(word) for word in self._process.stdout.readline().split()[1:]]

        self._tracer: subprocess.Popen[bytes] | None = None

    def trace(self, thread: int, log: Path, *options: str) -> None:
        self._tracer = tracer = subprocess.Popen(
            ["strace", "-qq", "-o", str(log), "-p", str(self.threads[thread]), *options],
            stderr=subprocess.DEVNULL,
        )
        status = Path(f"/proc/{self.threads[thread]}/status")
        eventually(lambda: f"TracerPid:\t{tracer.pid}\n" in status.read_text())

    def upload(self, *paths: Path) -> None:
        assert self._process.stdin is not None
        try:
            for path in paths:
                self._process.stdin.write(f"{path}\n")
                self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is dead already

    def tasks(self, count: int) -> list[tuple[str, str]]:
        """Wait for tasks or for its end; return ids and paths."""
        assert self._process.stdout is not None
        found = []
        while len(found) < count and (line := self._process.stdout.readline()):
            _, upload_id, path = line.rstrip("\n").split(" ", 2)
            found.append((upload_id, path))
        return found

    def end(self) -> int:
        """Let it end by itself; return its code."""
        _, errors = self._process.communicate(timeout=30)
        assert "Traceback" not in errors, errors
        if self._tracer is not None:
            self._tracer.wait(10)
        return self._process.returncode


class Scene:
    """A new file in a new directory, and one whose name is taken at the destination."""

    def __init__(self, directory: Path, destination: Path) -> None:
        self.directory = directory
        self.destination = destination
        (directory / "ftp" / "d").mkdir(parents=True)
        destination.mkdir(exist_ok=True)
        (destination / "b.csv").write_text("precious")
        self.paths = [directory / "ftp" / "d" / "a.csv", directory / "ftp" / "b.csv"]
        for path in self.paths:
            path.write_text(WHOLE)

    def start(self) -> Process:
        return Process(self.directory, self.destination)

    def check(self, tasks: list[tuple[str, str]]) -> None:
        """Each file is there once, whole, under the name its task tells; nothing else is."""
        found = files(self.destination)
        assert found.pop("b.csv") == "precious"
        assert list(found.values()) == [WHOLE, WHOLE], {n: len(c) for n, c in found.items()}
        assert {str(self.destination / name) for name in found} == {path for _, path in tasks}
        assert sum(name.startswith("b@") for name in found) == 1
        assert "d/a.csv" in found
        assert files(self.directory / "ftp") == {}
        assert len({upload_id for upload_id, _ in tasks}) == 2


@pytest.fixture(params=["rename", "copy"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where destinations are made."""
    if request.param == "rename":
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def counted(log: Path) -> Counter[str]:
    lines = log.read_text(errors="replace").splitlines()
    return Counter(match[1] for line in lines if (match := re.match(r"(\w+)\(", line)))


def kills(tmp_path: Path, place: Path) -> list[tuple[int, str, int]]:
    """Run undisturbed; return thread, call and number of all that could be the last one."""
    found = []
    for thread in (0, 1):
        scene = Scene(tmp_path / f"counted{thread}", place / f"to-counted{thread}")
        process = scene.start()
        log = tmp_path / f"strace{thread}.log"
        process.trace(thread, log, "-e", f"trace={CALLS}")
        process.upload(*scene.paths)
        scene.check(process.tasks(2))
        assert process.end() == 0
        for call, count in counted(log).items():
            found += [(thread, call, n) for n in range(1, count + 1)]
    return found


@pytest.mark.timeout(900)
def test_killed_at_every_change_it_makes(tmp_path: Path, place: Path) -> None:
    need("strace")
    points = kills(tmp_path, place)
    assert len(points) > 40

    def kill_and_recover(number: int) -> bool:
        thread, call, when = points[number]
        scene = Scene(tmp_path / str(number), place / f"to-{number}")
        process = scene.start()
        inject = f"inject={call}:signal=SIGKILL:when={when}"
        process.trace(thread, tmp_path / f"{number}.log", "-e", f"trace={call}", "-e", inject)
        process.upload(*scene.paths)
        tasks = process.tasks(2)
        hit = process.end() == -signal.SIGKILL
        process = scene.start()
        process.upload(*scene.paths)
        paths = {path for _, path in tasks}
        while len(paths) < 2:
            more = process.tasks(1)
            assert more, (points[number], files(scene.destination).keys(), tasks)
            tasks += more
            paths |= {path for _, path in more}
        assert process.end() == 0
        try:
            scene.check(tasks)
        except AssertionError as e:
            raise AssertionError(f"killed at {points[number]}") from e
        return hit

    with ThreadPoolExecutor(4) as pool:
        hits = sum(pool.map(kill_and_recover, range(len(points))))
    # Batches differ from run to run, so that the last calls may not come.
    assert hits > len(points) * 0.7
