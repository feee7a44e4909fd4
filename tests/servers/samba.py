"""A real Samba server for the tests, on a free loopback port, with a share that is open to all."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from tests.servers.brokers import Server, free_port
from tests.support.needs import PATH

CONFIG = """
[global]
server role = standalone server
map to guest = Bad User
guest account = nobody
interfaces = lo
bind interfaces only = yes
smb ports = {port}
disable netbios = yes
load printers = no
log level = 0
log file = {directory}/samba.log
private dir = {directory}/private
lock directory = {directory}/lock
state directory = {directory}/state
cache directory = {directory}/cache
pid directory = {directory}/pid
ncalrpc dir = {directory}/ncalrpc
[share]
path = {share}
guest ok = yes
read only = no
force user = root
"""


class SambaServer(Server):
    """Guests may write to the directory `share` as root."""

    def __init__(self, directory: Path, share: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.config = directory / "smb.conf"
        for name in ("private", "lock", "state", "cache", "pid", "ncalrpc"):
            (directory / name).mkdir(mode=0o755)
        self.config.write_text(CONFIG.format(port=self.port, directory=directory, share=share))

    def command(self) -> list[str]:
        program = shutil.which("smbd", path=PATH) or "smbd"
        return [program, "-F", "--no-process-group", "-s", str(self.config)]

    def is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def put(self, file: Path, name: str) -> None:
        command = ["smbclient", "-N", "-p", str(self.port), "-s", str(self.config)]
        command += ["//127.0.0.1/share", "-c", f'put "{file}" "{name}"']
        subprocess.run(command, check=True, capture_output=True, timeout=30)
