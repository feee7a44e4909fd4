"""A real daemon for the tests: an INI file, `python -m watchman -c INI run`, and its commands."""

from __future__ import annotations

import base64
import functools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.servers.brokers import ROOT, Server
from watchman.commands.shared import client
from watchman.config import inifile

#: Put before an INI text that has no such section.
WATCHMAN = """\
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
"""

#: Seconds that the daemon may take to end after SIGTERM; it drains for 10.
STOPPING = 20.0


class Daemon(Server):
    """`ini` with `{tmp}` filled in, and the daemon on it. `prefix` goes before the command line.

    `log` is all that the daemon has written to stderr, over its restarts.
    """

    def __init__(self, directory: Path, ini: str, *, prefix: Sequence[str] = ()) -> None:
        super().__init__(directory)
        self.prefix = list(prefix)
        self.ini = directory / "watchman.ini"
        self.output = directory / "output.log"
        self.begun = 0
        self.configure(ini)

    def configure(self, ini: str) -> None:
        """Write the INI file; the daemon reads it when it starts."""
        if "[watchman]" not in ini:
            ini = f"{WATCHMAN}{ini}"
        self.ini.write_text(ini.replace("{tmp}", str(self.directory)))

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PYTHONPATH": str(ROOT)}

    def command(self) -> list[str]:
        return [*self.prefix, *self.watchman("run")]

    def watchman(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "watchman", "-c", str(self.ini), *arguments]

    @property
    def log(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def begin(self) -> None:
        self.begun = len(self.log)
        super().begin()

    def is_ready(self) -> bool:
        return "Started" in self.log[self.begun :]

    def stop(self) -> None:
        """SIGTERM. It must end by itself, with 0; nothing happens when it does not run."""
        if self.process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOPPING)
        finally:
            self.kill()
        assert code == 0, f"ended with {code}\n{self.log}"

    def restart(self) -> None:
        self.stop()
        self.start()

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`watchman -c INI ARGUMENTS...`, whatever its exit code."""
        return self._run("watchman", *arguments, stdin=stdin)

    def send(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """`watchman-send -c INI ARGUMENTS...`, whatever its exit code."""
        return self._run("watchman.commands.send", *arguments, stdin=stdin)

    def _run(self, module: str, *arguments: str, stdin: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, "-c", str(self.ini), *arguments],
            cwd=self.directory,
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ask(self, event: str, **fields: str) -> list[dict[str, Any]]:
        """What the daemon answers on its socket."""
        return list(client.request(inifile.load(str(self.ini)).socket, event, fields, 10.0))

    def status(self) -> dict[str, Any]:
        return self.ask("status")[0]

    def queue(self) -> list[dict[str, Any]]:
        return self.ask("queue")


def published(broker: Path) -> list[dict[str, Any]]:
    """The tasks that wait in the embedded broker's folder, in the order a worker would take them.

    Each as {"id", "task", "args", "kwargs", "queue", "watchman", "headers"}.
    """
    return [_message(file) for file in sorted(broker.glob("*.msg"))]


@functools.lru_cache(maxsize=10_000)
def _message(file: Path) -> dict[str, Any]:
    """What is in a file of the embedded broker; it is never written again."""
    message = json.loads(file.read_text())
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    headers = message["headers"]
    return {
        "id": headers["id"],
        "task": headers["task"],
        "args": args,
        "kwargs": kwargs,
        "queue": file.name.split(".", 1)[1].removesuffix(".msg"),
        "watchman": headers.get("watchman"),
        "headers": headers,
    }
