"""What systemd is told, on a socket as it makes one, and the unit that is shipped."""

import configparser
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.needs import need
from watchman.commands.shared.keeper import KEEPERS
from watchman.commands.shared.shell import USAGE
from watchman.daemon import _dead
from watchman.operate.systemd import Systemd, text
from watchman.operate.watchdog import GRACE
from watchman.sources.socket.listener import Listener

UNIT = ROOT / "docs/share/systemd/watchman.service"

#: Ten times the exposure that `systemd-analyze security` may find.
THRESHOLD = 20

INI = """\
[broker:demo]
url = filesystem://{tmp}/broker
[watch:in]
path = {tmp}/in
[task:csv]
pattern = *.csv
broker = demo
task = tasks.csv
"""

STATUS = {"problems": [], "uploads": {"noticed": 1, "waiting": 2, "deferred": 3, "failed": 4}}


class Manager:
    """The end of the socket that systemd has."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(0)
        self.told: list[str] = []

    def hears(self, text: str) -> str:
        """The first message from now on that holds it; those before it are forgotten."""

        def read() -> str:
            self._read()
            while self.told:
                if text in (message := self.told.pop(0)):
                    return message
            return ""

        return eventually(read, timeout=20)

    def forget(self, but: str = "\0") -> None:
        """What was told until now, but for messages that hold this."""
        self._read()
        self.told = [message for message in self.told if but in message]

    def _read(self) -> None:
        while True:
            try:
                self.told.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"{tmp_path}/notify"
    found = Manager(name if request.param == "path" else f"@{name}")
    with found.socket:
        yield found


def test_systemd_hears_of_start_reload_and_stop(
    manager: Manager, tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    (tmp_path / "in").mkdir()
    before = time.monotonic_ns() // 1000
    daemon = start_watchman(INI, prefix=["env", f"NOTIFY_SOCKET={manager.address}"])
    assert "STATUS=Starting." in manager.hears("STATUS=")
    assert manager.hears("READY=1") == "READY=1\nSTATUS=Healthy. 0 uploads in hand, 0 failed."

    assert daemon.run("reload").returncode == 0
    begun = manager.hears("RELOADING=1")
    [microseconds] = re.findall(r"^MONOTONIC_USEC=(\d+)$", begun, re.M)
    assert before < int(microseconds) < time.monotonic_ns() // 1000
    manager.hears("READY=1")

    daemon.configure(INI.replace("demo", "other", 1))
    assert daemon.run("reload").returncode == USAGE
    manager.hears("RELOADING=1")
    manager.hears("READY=1")

    daemon.stop()
    stopping = manager.hears("STOPPING=1")
    assert f"EXTEND_TIMEOUT_USEC={int((10 + GRACE) * 1e6)}" in stopping.split("\n")


def test_the_status_names_the_first_problem(
    manager: Manager, tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    start_watchman(INI, prefix=["env", f"NOTIFY_SOCKET={manager.address}", "WATCHDOG_USEC=200000"])
    manager.hears("READY=1")
    assert "Not healthy: watch in (" in manager.hears("is missing")
    manager.hears("WATCHDOG=1")
    (tmp_path / "in").mkdir()
    manager.hears("STATUS=Healthy.")


def started(monkeypatch: pytest.MonkeyPatch, manager: Manager, dead: list[str]) -> Systemd:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    systemd = Systemd()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & os.environ.keys()
    systemd.ready(lambda: dead, lambda: STATUS)
    return systemd


def test_the_watchdog_is_fed_only_while_all_parts_live(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dead: list[str] = []
    systemd = started(monkeypatch, manager, dead)
    assert manager.hears("READY=1") == "READY=1\nSTATUS=Healthy. 6 uploads in hand, 4 failed."
    manager.hears("WATCHDOG=1")
    dead.append("listener")
    eventually(lambda: "Listener ended by itself" in caplog.text)
    manager.forget()
    time.sleep(0.2)
    manager.forget(but="WATCHDOG=1")
    assert manager.told == []
    # A reload stops parts and starts others.
    systemd.reloading()
    manager.hears("WATCHDOG=1")
    systemd.reloaded()
    systemd.stopping(1.0)
    assert caplog.text.count("ended by itself") == 1


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd = Systemd()
    systemd.ready(list, lambda: pytest.fail("nobody asks"))
    systemd.stopping(1.0)


def test_a_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    assert not Systemd()._has_watchdog


def test_systemd_that_does_not_listen_is_only_logged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/nowhere")
    Systemd().starting()
    assert "systemd was not told" in caplog.text


def test_a_part_whose_thread_has_ended_is_dead(tmp_path: Path) -> None:
    listener = Listener(f"{tmp_path}/socket", submit=lambda *_: None, query=lambda *_: [])
    assert _dead([listener]) == ["listener"]
    listener.start()
    assert _dead([listener]) == []
    listener.stop()
    listener.join()
    assert _dead([listener]) == ["listener"]


def test_a_problem_cannot_forge_a_message() -> None:
    said = text({**STATUS, "problems": [f"a\nMAINPID=1{'x' * 500}", "b", "c"]})
    assert "\n" not in said
    assert said.startswith("Not healthy: a MAINPID=1xxx")
    assert said.endswith("... (and 2 more problems). 6 uploads in hand, 4 failed.")


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.read(UNIT)
    return parser


def analyze(*arguments: str | Path) -> str:
    need("systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_unit_leaves_little_exposed() -> None:
    analyze("security", "--offline=yes", f"--threshold={THRESHOLD}", UNIT)


def test_the_unit_is_understood(tmp_path: Path) -> None:
    """With a program that is here."""
    other = tmp_path / "watchman.service"
    other.write_text(UNIT.read_text().replace("/opt/watchman/bin/watchman", "/bin/true"))
    said = analyze("verify", "--man=no", other)
    assert [line for line in said.splitlines() if str(other) in line] == []


def test_the_unit_fits_to_the_daemon() -> None:
    service = unit()["Service"]
    assert service["restartpreventexitstatus"] == str(USAGE)
    assert f"etc/systemd/system/{UNIT.name}" in KEEPERS
    # Longer than a stop takes at most where systemd is not told so.
    assert int(service["timeoutstopsec"]) > 10 + GRACE
    tmpfiles = (ROOT / "proftpd/watchman.tmpfiles").read_text()
    assert f"/run/{service['runtimedirectory']} {service['runtimedirectorymode']} " in tmpfiles
