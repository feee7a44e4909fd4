"""Daemons forked off a process that has imported everything: one starts in a twentieth of a second.

Run as a program it reads orders, one JSON object a line, and says who started and who ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from tests.servers.brokers import ROOT, clean_environment
from tests.servers.daemon import Daemon

#: Imported beforehand; Celery and kombu load most of themselves only when it is asked for.
MODULES = (
    *(
        "watchman.commands.main",
        "watchman.commands.run",
        "watchman.sinks.publishing.publisher",
        "watchman.sinks.moving.mover",
    ),
    *(
        "watchman.sinks.publishing.filesystem",
        "celery.app.amqp",
        "celery.app.log",
        "celery.app.events",
    ),
    *("celery.backends.base", "kombu.transport.filesystem", "kombu.transport.redis", "redis"),
    *("kombu.transport.pyamqp", "kombu.serialization", "encodings.idna", "uuid", "ctypes"),
)


class Forked:
    """A process of the nursery's, with those methods of a Popen that the tests use."""

    def __init__(
        self, number: int, pid: int, ended: threading.Condition, codes: dict[int, int]
    ) -> None:
        self.pid = pid
        #: Of the order: a pid is soon given to another process.
        self._number = number
        self._ended = ended
        self._codes = codes

    @property
    def returncode(self) -> int | None:
        return self._codes.get(self._number)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self._ended:
            if not self._ended.wait_for(lambda: self._number in self._codes, timeout):
                raise subprocess.TimeoutExpired("a daemon of the nursery", timeout or 0.0)
            return self._codes[self._number]


class Nursery:
    """Starts daemons; several threads may ask it to."""

    def __init__(self) -> None:
        #: That of all daemons: much of it counts only when Python starts.
        self.environment = clean_environment()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.support.nursery"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        #: Guards what follows, and tells of every process that starts or ends.
        self._changed = threading.Condition()
        self._codes: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._orders = 0
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def fork(self, **order: Any) -> Forked:
        assert self._process.stdin is not None
        with self._changed:
            self._orders += 1
            number = self._orders
            self._process.stdin.write(json.dumps({"number": number, **order}) + "\n")
            self._process.stdin.flush()
            assert self._changed.wait_for(lambda: number in self._pids, 30), "the nursery is dead"
            return Forked(number, self._pids.pop(number), self._changed, self._codes)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, number, value = line.split()
            with self._changed:
                table = self._pids if word == "started" else self._codes
                table[int(number)] = int(value)
                self._changed.notify_all()


class NurseryDaemon(Daemon):
    """A Daemon from a nursery, or one as any other where its environment is not the nursery's.

    `segment` and `delta` are the journal's bytes per segment and the ledger's decisions in memory,
    as small as a test wants them. With `halted` it stops itself before it does anything.
    """

    def __init__(
        self, nursery: Nursery, directory: Path, ini: str, *, segment: int = 0, delta: int = 0
    ) -> None:
        super().__init__(directory, ini)
        self.nursery = nursery
        self.limits = {"segment": segment, "delta": delta}
        self.halted = False

    def spawn(self, command: list[str], name: str) -> Any:
        if clean_environment() != self.nursery.environment:
            return super().spawn(command, name)
        return self.nursery.fork(
            arguments=["-c", str(self.ini), "run"],
            directory=str(self.directory),
            output=str(self.directory / f"{name}.log"),
            halted=self.halted,
            **self.limits,
        )


def main() -> None:
    for module in MODULES:
        importlib.import_module(module)
    wakeup, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    orders = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    children: dict[int, int] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == wakeup:
                os.read(wakeup, 4096)
                continue
            read = os.read(0, 65536)
            if not read:
                for child in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child, signal.SIGKILL)
                return
            *lines, orders = (orders + read).split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = _fork(order)
                children[pid] = order["number"]
                os.write(1, b"started %d %d\n" % (order["number"], pid))
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                code = os.waitstatus_to_exitcode(ended[1])
                os.write(1, b"ended %d %d\n" % (children.pop(ended[0]), code))


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        # Here too: it is to be had at once, whoever runs first.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    try:
        _run(order)
    finally:
        os._exit(99)


def _run(order: dict[str, Any]) -> NoReturn:
    """Become a daemon."""
    from watchman.commands.main import main as watchman
    from watchman.store import journal, ledger

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(order["directory"])
    sys.path[:1] = [order["directory"], str(ROOT)]  # as `python -m` and PYTHONPATH have it
    null = os.open(os.devnull, os.O_RDWR)
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for fd, number in ((null, 0), (output, 1), (output, 2)):
        os.dup2(fd, number)
    os.close(null)
    os.close(output)
    if order["segment"]:
        assert journal.Journal.__init__.__kwdefaults__ is not None
        journal.Journal.__init__.__kwdefaults__["segment_size"] = order["segment"]
    if order["delta"]:
        ledger.DELTA = order["delta"]
    if order["halted"]:
        os.kill(os.getpid(), signal.SIGSTOP)
    code = 0
    try:
        watchman(order["arguments"])
    except SystemExit as e:
        code = int(e.code or 0)
    logging.shutdown()  # as at the end of any other
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
