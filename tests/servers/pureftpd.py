"""A real Pure-FTPd for the tests, unpacked by `make test`: Debian installs none beside ProFTPD."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.servers.brokers import ROOT, Server, free_port
from tests.servers.proftpd import GID, PASSWORD, UID, USER

PROGRAMS = ROOT / "build/debian/usr"
PURE_FTPD, PURE_PW = str(PROGRAMS / "sbin/pure-ftpd"), str(PROGRAMS / "bin/pure-pw")


class PureFtpdServer(Server):
    """With `--autorename`, by which it renames each upload by link(2) and unlink(2)."""

    def __init__(self, directory: Path, home: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.users = directory / "users.pdb"
        made = [PURE_PW, "useradd", USER, "-u", str(UID), "-g", str(GID), "-d", str(home)]
        subprocess.run(
            [*made, "-f", str(directory / "passwd"), "-m", "-F", str(self.users)],
            input=f"{PASSWORD}\n{PASSWORD}\n",
            text=True,
            check=True,
            capture_output=True,
        )

    def command(self) -> list[str]:
        return [
            *(PURE_FTPD, "--autorename", "--noanonymous", "--dontresolve"),
            *("--login", f"puredb:{self.users}", "--bind", f"127.0.0.1,{self.port}"),
            *("--pidfile", str(self.directory / "pid"), "--minuid", "1"),
        ]

    def is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
