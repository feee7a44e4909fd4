"""Whoever logs never waits: not for a reader, a disk, or a file system that hangs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.needs import need
from watchman.operate.logs import WAITING

#: Logs `lines` numbered lines, then waits to be told to end.
SCRIPT = """
import logging, sys, time
from tests.support.house import Inside
from pathlib import Path
from dataclasses import replace
from watchman.operate.logs import log_to
file, form, lines = sys.argv[1:]
inside = Inside(Path.cwd())
inside.open()
inside.close()
log_to(replace(inside.settings, log_file=file, log_format=form))
began = time.monotonic()
for number in range(int(lines)):
    logging.getLogger("watchman.test").info("line %d of %r", number, "a\\udce9")
print(time.monotonic() - began, flush=True)
sys.stdin.readline()
logging.getLogger("watchman.test").info("the last line")
"""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a program that logs; its stderr is a pipe."""
    started: list[subprocess.Popen[str]] = []

    def start(lines: int, file: Path | str = "", form: str = "text") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(file), form, str(lines)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"line (\d+) of 'a\\udce9'\n", text)]


def test_a_pipe_that_nobody_reads_makes_nobody_wait_and_what_it_lost_is_counted(
    log: Callable[..., subprocess.Popen[str]],
) -> None:
    process = log(3 * WAITING)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdin is not None
    assert float(process.stdout.readline()) < 10
    # A reader comes after all, as when supervisor goes on.
    text = "".join(process.stderr.readline() for _ in range(WAITING // 2))
    process.stdin.write("end\n")
    process.stdin.flush()
    text += process.stderr.read()
    assert process.wait(10) == 0
    found = numbers(text)
    assert found == sorted(set(found))
    (lost,) = map(int, re.findall(r"Log is written again; (\d+) lines were lost", text))
    assert lost > WAITING
    assert len(found) + lost == 3 * WAITING
    assert text.endswith("the last line\n")


@pytest.mark.parametrize("reader", ["silent", "gone"])
def test_an_end_waits_for_no_reader(log: Callable[..., subprocess.Popen[str]], reader: str) -> None:
    process = log(2_000)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    if reader == "gone":
        process.stderr.close()
    began = time.monotonic()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_file_has_every_line_in_order_also_when_logrotate_renames_it(
    log: Callable[..., subprocess.Popen[str]], tmp_path: Path, form: str
) -> None:
    file = tmp_path / "watchman.log"
    process = log(WAITING // 2, file, form)
    eventually(lambda: file.exists() and file.stat().st_size > 100_000)
    renamed = file.rename(tmp_path / "watchman.log.1")
    process.communicate("end\n", timeout=20)
    text = renamed.read_text() + (file.read_text() if file.exists() else "")
    if form == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        text = "".join(f"{line['message']}\n" for line in lines)
    assert numbers(text) == list(range(WAITING // 2))
    assert text.endswith("the last line\n")


def test_a_log_file_that_is_a_fifo_makes_nobody_wait(
    log: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = log(20_000, fifo)
    _, errors = process.communicate("end\n", timeout=20)
    os.close(reader)
    assert process.returncode == 0
    assert errors.count("lines are lost until it can") == 1


def test_what_cannot_be_formatted_ends_nothing(tmp_path: Path) -> None:
    script = SCRIPT.replace('info("line %d of %r", number', 'info("line %d", "no number"')
    ended = subprocess.run(
        [sys.executable, "-c", script, "", "text", "3"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input="end\n",
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert ended.stderr.count("cannot be formatted") == 3
    assert ended.stderr.endswith("the last line\n")


INI = """
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
log_level = DEBUG
drain = 1s
[broker:b]
url = filesystem://broker
[watch:in]
path = {tmp}/in
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""


def test_stderr_that_nobody_reads_holds_up_no_upload_no_command_and_no_stop(
    tmp_path: Path,
) -> None:
    incoming = tmp_path / "in"
    incoming.mkdir()
    daemon = Daemon(tmp_path, INI)
    process = subprocess.Popen(
        daemon.command(), env=daemon.environment(), cwd=tmp_path, stderr=subprocess.PIPE
    )
    try:
        eventually(lambda: (tmp_path / "watchman.sock").exists())
        for number in range(600):
            (incoming / f"{number}.csv").write_text("1")
        eventually(lambda: len(published(tmp_path / "broker")) == 600, timeout=30)
        # What was sent is written down a moment later.
        eventually(lambda: daemon.status()["uploads"].get("done") == 600)
        status = daemon.status()
        assert status["healthy"], status["problems"]
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert time.monotonic() - began < 8
    finally:
        process.kill()
        process.communicate()


def waits_for_fuse(pid: int) -> bool:
    """Whether a thread of a process waits in the kernel for a FUSE file system, see proc(5)."""
    waits = Path(f"/proc/{pid}/task").glob("*/wchan")
    return any("fuse" in wait.read_text() or "request_wait" in wait.read_text() for wait in waits)


@pytest.mark.root
def test_a_file_system_that_hangs_holds_up_no_stop(tmp_path: Path) -> None:
    """As a file server that is away: whoever looks there waits for ever."""
    need("bindfs")
    backing, incoming = tmp_path / "backing", tmp_path / "in"
    backing.mkdir()
    incoming.mkdir()
    bindfs = subprocess.Popen(["bindfs", "-f", str(backing), str(incoming)])
    try:
        eventually(lambda: os.path.ismount(incoming))
        with Daemon(tmp_path, INI) as daemon:
            eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
            (incoming / "a.csv").write_text("1")
            eventually(lambda: len(published(tmp_path / "broker")) == 1)
            bindfs.send_signal(signal.SIGSTOP)
            # Whoever looks at it waits from now on, as the watcher does each second.
            assert daemon.process is not None
            eventually(lambda: waits_for_fuse(daemon.process.pid))
            began = time.monotonic()
            daemon.signal(signal.SIGTERM)
            code = daemon.process.wait(25)
            took = time.monotonic() - began
            assert took < 20
            assert (
                "hangs" in daemon.log if code == 0 else "Ending watchman all the same" in daemon.log
            )
            daemon.process = None
    finally:
        subprocess.run(["umount", "--lazy", str(incoming)], check=False)
        bindfs.kill()
        bindfs.wait()
