"""A ProFTPD and a daemon that is told of uploads by hooks, by the transfer log, or by both."""

from __future__ import annotations

import contextlib
import ftplib
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.daemon import Daemon, published
from tests.servers.proftpd import PASSWORD, USER, Options, ProftpdServer
from tests.support.deadline import eventually

#: `advised` is the log, and hooks for sessions alone.
MODES = ("hooks", "log", "advised", "both")

#: Seconds that watchman waits for ProFTPD's word here.
CONFIRM = 1.5

#: Nanoseconds within which two changes of a directory may have the same time.
SOON = 50_000_000

INI = f"""
[watchman]
spool = {{tmp}}/spool
socket = {{tmp}}/watchman.sock
log_level = DEBUG
[broker:b]
url = filesystem://broker
[broker:away]
url = redis://127.0.0.1:1/0
[watch:ftp]
path = {{tmp}}/home
proftpd = yes
confirm = {CONFIRM}
[task:dele]
pattern = */dele/*
broker = away
task = tests.record
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

LOG_INI = """
[proftpd]
transfer_log = {tmp}/log/uploads.log
token = a-secret
"""


class Winding(ftplib.FTP):
    """A client that names each file by a way that goes through the directory above."""

    through = ""

    def putcmd(self, line: str) -> None:
        command, _, name = line.partition(" ")
        if command in {"STOR", "APPE", "DELE", "RNFR", "RNTO"}:
            line = f"{command} {self.through}{name}"
        super().putcmd(line)


class Broker:
    """The embedded broker's folder, which many look at all the time and few write to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: What it held, by its time (ns).
        self._read: tuple[int, list[dict[str, Any]]] = (0, [])

    def tasks(self) -> list[dict[str, Any]]:
        if not self._folder.exists():
            return []
        changed = self._folder.stat().st_mtime_ns
        if changed != self._read[0]:
            tasks = published(self._folder)
            # So soon another change may have had the same time.
            if time.time_ns() - changed < SOON:
                return tasks
            self._read = changed, tasks
        return self._read[1]


@dataclass
class Scene:
    """A ProFTPD and a daemon in one mode, and a directory there: `name` in a user's home.

    `root` is where the daemon sees that home, with all symlinks that its INI file has. `winding` is
    for a client that says `..`.
    """

    mode: str
    tmp: Path
    server: ProftpdServer
    daemon: Daemon
    broker: Broker
    name: str = ""
    user: str = USER
    root: str = "home"
    winding: bool = False

    @property
    def directory(self) -> Path:
        return self.tmp / self.root / self.name

    def ftp(self) -> ftplib.FTP:
        ftp = Winding(timeout=30, encoding="latin-1")
        ftp.through = f"../{self.name}/" if self.winding else ""
        ftp.connect("127.0.0.1", self.server.port)
        ftp.login(self.user, PASSWORD)
        ftp.cwd(self.name)
        return ftp

    def store(self, name: str, content: str = "12345", command: str = "STOR") -> None:
        with self.ftp() as ftp:
            ftp.storbinary(f"{command} {name}", io.BytesIO(content.encode()))

    def sent(self) -> dict[str, int]:
        """How many tasks there are for each file in the directory."""
        found = Counter(task["args"][0] for task in self.tasks())
        return {os.path.relpath(path, self.directory): count for path, count in found.items()}

    def tasks(self) -> list[dict[str, Any]]:
        prefix = f"{self.directory}/"
        tasks = self.broker.tasks()
        return [task for task in tasks if task["args"][0].startswith(prefix)]

    def failed(self) -> dict[str, str]:
        """The files in the directory that are listed as failed, and why."""
        return {
            os.path.relpath(row["path"], self.directory): row["reason"]
            for row in self.daemon.queue()
            if row["state"] == "failed" and row["path"].startswith(f"{self.directory}/")
        }

    def settle(self) -> None:
        """Wait until nothing more can come of what was done."""
        time.sleep(0.3)
        self.decided()

    def decided(self) -> None:
        """Wait until nothing that was noticed is waited for."""
        eventually(
            lambda: not [row for row in self.daemon.queue() if row["state"] != "failed"],
            timeout=30,
        )


@contextlib.contextmanager
def scene(mode: str, tmp: Path, *, ini: str = INI, **options: Any) -> Iterator[Scene]:
    """ProFTPD and a daemon; `ini` without what the log needs, which is added."""
    (tmp / "home").mkdir(exist_ok=True)
    (tmp / "log").mkdir()
    ini += LOG_INI if mode != "hooks" else ""
    socket_path = tmp / "watchman.sock"
    server = ProftpdServer(
        tmp / "proftpd",
        home=tmp / "home",
        socket=socket_path,
        options=Options(
            hooks=mode != "log",
            log=tmp / "log" / "uploads.log" if mode != "hooks" else None,
            sessions_only=mode == "advised",
            **options,
        ),
    )
    daemon = Daemon(tmp, ini)
    daemon.start()
    try:
        with server:
            yield Scene(mode, tmp, server, daemon, Broker(tmp / "broker"))
    finally:
        sys.stdout.write(daemon.log)  # shown if the test fails
        daemon.kill()
