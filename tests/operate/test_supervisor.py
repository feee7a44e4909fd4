"""supervisord.conf as it is shipped, under a real supervisord in a copy of the checkout."""

import configparser
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.support.checkout import copy, environment
from tests.support.deadline import eventually
from watchman.commands.shared.shell import LOCKED, REFUSED, USAGE
from watchman.config import inifile

SHIPPED = ROOT / "supervisord.conf"

#: As an installation makes it, but with this environment's packages and the copy's modules.
WATCHMAN = f"""\
#!/bin/sh
exec {sys.executable} -m watchman "$@"
"""


class Supervisor:
    """A checkout, and what is typed in it."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.ini = checkout / "watchman.ini.example"
        self.incoming = checkout / "var/incoming"
        self.pidfile = checkout / "var/supervisord.pid"
        watchman = checkout / ".venv/bin/watchman"
        watchman.parent.mkdir(parents=True)
        watchman.write_text(WATCHMAN)
        watchman.chmod(0o755)

    def call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name(program), "-c", "supervisord.conf", *arguments],
            cwd=self.checkout,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self) -> None:
        done = self.call("supervisord")
        # Run by root, it tells root to think twice; that is root's own matter here.
        assert done.returncode == 0, done.stdout
        eventually(self.pid)

    def ctl(self, *arguments: str) -> str:
        return self.call("supervisorctl", *arguments).stdout

    def pid(self) -> int:
        """The daemon's pid, 0 if there is none."""
        found = re.search(r"RUNNING +pid (\d+)", self.ctl("status"))
        return int(found[1]) if found else 0

    def started(self, times: int = 1) -> bool:
        return self.log.count("Started watchman") >= times

    @property
    def log(self) -> str:
        file = self.checkout / "var/watchman.log"
        return file.read_text() if file.exists() else ""

    @property
    def events(self) -> str:
        """What supervisord says of itself."""
        return (self.checkout / "var/supervisord.log").read_text()

    def shut_down(self) -> None:
        if self.pidfile.exists():
            pid = int(self.pidfile.read_text())
            assert "Shut down" in self.ctl("shutdown")
            eventually(lambda: not Path(f"/proc/{pid}").exists(), timeout=40)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(copy(tmp_path))
    yield made
    made.shut_down()


def test_supervisord_in_a_fresh_checkout_turns_files_into_tasks(supervisor: Supervisor) -> None:
    supervisor.start()
    eventually(supervisor.started)
    supervisor.incoming.mkdir()
    (supervisor.incoming / "a.csv").write_text("1\n")
    eventually(lambda: "Sent upload" in supervisor.log)
    tasks = list((supervisor.checkout / "var/broker").glob("*.msg"))
    assert len(tasks) == 1
    supervisor.shut_down()
    assert "Stopped." in supervisor.log
    assert "waiting for watchman to die" in supervisor.events
    assert "SIGKILL" not in supervisor.events


def test_a_daemon_that_is_killed_is_started_again_each_time(supervisor: Supervisor) -> None:
    supervisor.start()
    pids = set()
    for times in (1, 2, 3):
        eventually(lambda times=times: supervisor.started(times))
        pid = supervisor.pid()
        pids.add(pid)
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: supervisor.started(4))
    assert len(pids | {supervisor.pid()}) == 4


def test_a_wrong_ini_file_is_not_tried_again(supervisor: Supervisor) -> None:
    right = supervisor.ini.read_text()
    supervisor.ini.write_text(right.replace("pattern =", "patern ="))
    assert supervisor.call("supervisord").returncode == 0
    eventually(lambda: "EXITED" in supervisor.ctl("status"))
    assert f"exit status {USAGE}; expected" in supervisor.events
    assert "patern" in supervisor.log
    told = supervisor.log
    time.sleep(0.9)
    assert supervisor.log == told
    assert supervisor.events.count("spawned") == 1

    supervisor.ini.write_text(right)
    assert supervisor.ctl("start", "watchman") == "watchman: started\n"
    eventually(supervisor.started)


def test_a_second_daemon_on_the_same_spool_is_not_tried_again(supervisor: Supervisor) -> None:
    run = [supervisor.checkout / ".venv/bin/watchman", "-c", supervisor.ini, "run"]
    with subprocess.Popen(run, cwd=supervisor.checkout, stderr=subprocess.PIPE) as first:
        socket = inifile.load(str(supervisor.ini)).socket
        eventually(Path(socket).exists)
        assert supervisor.call("supervisord").returncode == 0
        eventually(lambda: "EXITED" in supervisor.ctl("status"))
        assert f"exit status {LOCKED}; expected" in supervisor.events
        assert f"pid {first.pid} holds the spool" in supervisor.log
        first.terminate()
        first.communicate(timeout=20)
    assert supervisor.ctl("start", "watchman") == "watchman: started\n"
    eventually(supervisor.started)


def test_what_may_pass_by_itself_is_tried_until_it_has(supervisor: Supervisor) -> None:
    obstacle = supervisor.checkout / "var/watchman.sock"
    obstacle.write_text("")
    assert supervisor.call("supervisord").returncode == 0
    tries = f"exit status {REFUSED}; not expected"
    # More often than supervisord's startretries, after which it would give up.
    eventually(lambda: supervisor.events.count(tries) > 4, timeout=30)
    obstacle.unlink()
    eventually(supervisor.started)


def test_a_stop_ends_in_order_and_a_start_goes_on(supervisor: Supervisor) -> None:
    supervisor.start()
    eventually(supervisor.started)
    assert supervisor.ctl("stop", "watchman") == "watchman: stopped\n"
    assert "Stopped." in supervisor.log
    assert "exit status 0" in supervisor.events
    assert supervisor.ctl("start", "watchman") == "watchman: started\n"
    eventually(lambda: supervisor.started(2))


def test_a_hang_up_reaches_the_daemon_and_leaves_it_running(supervisor: Supervisor) -> None:
    supervisor.start()
    eventually(supervisor.started)
    pid = supervisor.pid()
    assert supervisor.ctl("signal", "HUP", "watchman") == "watchman: signalled\n"
    eventually(lambda: "Reloaded" in supervisor.log)
    assert supervisor.pid() == pid


def test_it_waits_longer_for_the_end_than_the_daemon_waits_for_work() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(SHIPPED)
    program = parser["program:watchman"]
    assert program.getint("stopwaitsecs") > inifile.load(str(ROOT / "watchman.ini.example")).drain
    assert program["exitcodes"] == f"0,{USAGE},{LOCKED}"
