"""What moves on a terminal: `status --watch`, and how far send, retry and drop are."""

import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.inis import AWAY
from watchman.commands.screens.status import _progress
from watchman.sources.socket.listener import Listener
from watchman.uploads.outcome import Outcome
from watchman.uploads.upload import Answer

MANY = 250


class Terminal:
    """A terminal of 80 columns, and all that was shown on it."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self.output = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.output += os.read(self._ours, 65536)
            except OSError:
                return

    @property
    def text(self) -> str:
        """What was shown, without colours and other orders."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.output.decode())

    def close(self) -> None:
        os.close(self.theirs)
        self._reader.join(5)
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def environment(daemon: Daemon) -> dict[str, str]:
    return daemon.environment() | {"COLUMNS": "80", "LINES": "40", "TERM": "xterm-256color"}


@pytest.fixture
def daemon(tmp_path: Path, start_watchman: Callable[..., Daemon]) -> Daemon:
    (tmp_path / "in").mkdir()
    return start_watchman(AWAY)


def test_status_is_shown_again_and_again_until_ctrl_c(
    tmp_path: Path, daemon: Daemon, terminal: Terminal
) -> None:
    done = daemon.run("status", "--watch")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("--watch is for a terminal\n")
    process = subprocess.Popen(
        daemon.watchman("status", "--watch"), env=environment(daemon), stdout=terminal.theirs
    )
    eventually(lambda: "healthy since" in terminal.text)
    # Another screen than the one with all that was typed before, see console_codes(4).
    assert b"\x1b[?1049h" in terminal.output
    assert "1 deferred" not in terminal.text
    (tmp_path / "in/a.csv").write_text("1")
    eventually(lambda: "1 deferred" in terminal.text)
    assert "NOT HEALTHY" in terminal.text
    daemon.stop()
    eventually(lambda: "no daemon answers" in terminal.text)
    daemon.start()
    shown = len(terminal.text)
    eventually(lambda: "watchman 0" in terminal.text[shown:])
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    eventually(lambda: b"\x1b[?1049l" in terminal.output)


@pytest.fixture
def slow_daemon(tmp_path: Path) -> Iterator[str]:
    """A socket where each of many uploads takes a moment to be sent or retried."""

    def submit(_: object, answer: Callable[[Answer], None]) -> None:
        time.sleep(0.005)
        answer(Answer(Outcome.OK, "an-id"))

    def query(event: str, _: dict[str, str]) -> Iterator[dict[str, Any]]:
        if event == "status":
            yield {"uploads": {"failed": MANY - 50, "deferred": 50}}
            return
        for number in range(MANY):
            time.sleep(0.005)
            yield {"id": f"id-{number}", "path": "/a", "state": "waiting", "refused": None}

    path = str(tmp_path / "slow.sock")
    listener = Listener(path, submit=submit, query=query)
    listener.start()
    yield path
    listener.stop()
    listener.join()


@pytest.mark.parametrize(
    "command",
    [
        ["watchman", "retry", "--all"],
        ["watchman", "drop", "--failed", "--deferred"],
        ["watchman.commands.send", "-"],
    ],
)
def test_a_terminal_sees_how_much_of_all_is_done(
    command: list[str], slow_daemon: str, daemon: Daemon, terminal: Terminal, tmp_path: Path
) -> None:
    paths = tmp_path / "paths"
    paths.write_text("".join(f"/srv/{number}\n" for number in range(MANY)))
    program, *arguments = daemon.watchman()[:2] + command
    with paths.open() as named:
        done = subprocess.run(
            [program, *arguments, "--socket", slow_daemon],
            env=environment(daemon),
            cwd=tmp_path,
            stdin=named,
            stdout=subprocess.PIPE,
            stderr=terminal.theirs,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0
    # What is done goes where it was asked to go, whole and alone.
    assert done.stdout.count(b"\n") == MANY
    assert b"\x1b" not in done.stdout
    seen = [int(n) for n in re.findall(rf"(\d+)/{MANY}", terminal.text)]
    assert seen, terminal.text
    assert seen == sorted(seen)


def test_elsewhere_nobody_is_told_how_far_it_is(slow_daemon: str, daemon: Daemon) -> None:
    done = daemon.run("retry", "--all", "--socket", slow_daemon)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == MANY


def test_a_scan_tells_how_many_of_the_directories_it_has_seen(
    tmp_path: Path, daemon: Daemon
) -> None:
    for number in range(5):
        (tmp_path / "in" / str(number)).mkdir()
    daemon.restart()
    watch = eventually(lambda: (w := daemon.status()["watches"]["in"])["last_scan"] and w)
    assert (watch["walked"], watch["directories"]) == (6, 6)
    assert json.loads(daemon.run("status", "--json").stdout)["watches"]["in"]["walked"] == 6
    half = watch | {"scanning": True, "walked": 3, "files": 1200}
    assert _progress(half) == "scanning, 1,200 files in 3 of 6 directories, 50 %"
    assert _progress(half | {"directories": 0}) == "scanning, 1,200 files in 3 directories so far"
