"""A real OpenSSH server for the tests, on a free loopback port, with keys of its own."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import paramiko

from tests.servers.brokers import Server, free_port

CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""


class SshServer(Server):
    """root may log in by the key in `user`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(command, check=True)
        self.config = directory / "sshd_config"
        self.config.write_text(CONFIG.format(port=self.port, directory=directory))
        # Debian's sshd separates its privileges there, and its package makes it at each boot.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)

    def command(self) -> list[str]:
        return ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.config)]

    def is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def connect(self) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        key = paramiko.Ed25519Key.from_private_key_file(str(self.directory / "user"))
        client.connect(
            "127.0.0.1",
            self.port,
            "root",
            pkey=key,
            allow_agent=False,
            look_for_keys=False,
        )
        return client
