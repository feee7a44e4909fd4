"""`tests.support.moving` as a program that a test traces, hurts and kills."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from tests.servers.brokers import ROOT
from tests.support.deadline import eventually
from tests.support.moving import files

#: Seconds that moving a few files may take.
PATIENCE = 20.0

WHOLE = "1,2,3\n" * 20_000


class Process:
    """`tests.support.moving` as a program: its mover and dispatcher can be traced."""

    def __init__(self, directory: Path, destination: Path) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.moving",
                str(directory),
                str(destination),
                "collision",
            ],
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
        """Run strace on the mover (0) or the dispatcher (1)."""
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
        """Wait for tasks, its end, or until it has to be killed; return ids and paths."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        found = []
        while len(found) < count and (line := self._process.stdout.readline()):
            _, upload_id, path = line.rstrip("\n").split(" ", 2)
            found.append((upload_id, path))
        watchdog.cancel()
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
