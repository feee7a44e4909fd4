"""A real ProFTPD for the tests, with the shipped watchman.conf and hook."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.brokers import ROOT, Server, free_port
from tests.support.deadline import eventually
from tests.support.needs import PATH

SHIPPED = ROOT / "proftpd"

#: The state of a listening socket in /proc/net/tcp, see tcp_states.h.
LISTEN = "0A"

#: What an operator would replace in the shipped watchman.conf.
HOOK = "/usr/lib/watchman/watchman-hook "
LOG = "ExtendedLog /var/log/proftpd/watchman/uploads.log "
TOKEN = '"TOKEN|'

#: The numbered parts of it, and how many hooks each has.
TRANSFER_LOG, SESSIONS, TRANSFERS = 1, 2, 3
HOOKS = {TRANSFER_LOG: 0, SESSIONS: 3, TRANSFERS: 3}

#: The FTP user, and the user it is to the system: ourselves, or for root somebody without rights.
USER = "alice"
PASSWORD = "secret"
PRIVILEGED = os.geteuid() == 0
UID = 12345 if PRIVILEGED else os.geteuid()
GID = 12345 if PRIVILEGED else os.getegid()

#: PASSWORD for crypt(3), by `openssl passwd -5`.
PASSWORD_HASH = "$5$watchman$99wL72JzIWjNqMsJ3FuqWc7VB.sYRG4tLN5YqDPfZG3"

CONFIGURATION = """\
ServerName watchman
ServerType standalone
UseIPv6 off
DefaultAddress 127.0.0.1
SocketBindTight on
Port {port}
User {user}
Group {group}
PidFile {directory}/proftpd.pid
ScoreboardFile {directory}/scoreboard
SystemLog {directory}/system.log
TransferLog none
WtmpLog off
UseReverseDNS off
ServerIdent off
ModulePath /usr/lib/proftpd
LoadModule mod_exec.c
LoadModule mod_copy.c
{modules}
DelayEngine off
ControlsEngine off
<Global>
  AuthOrder mod_auth_file.c
  AuthUserFile {directory}/passwd
  AuthGroupFile {directory}/group
  RequireValidShell off
  AllowOverwrite on
  AllowStoreRestart on
  AllowRetrieveRestart on
  Umask 022
  ExecLog {directory}/exec.log
  {directives}
</Global>
Include {directory}/watchman.conf
{outside}
{tls}
{sftp}
"""

#: Not in Global: a virtual host with SFTPEngine refuses it.
TLS = """\
<IfModule mod_tls.c>
  TLSEngine on
  TLSRequired off
  TLSRSACertificateFile {directory}/certificate.pem
  TLSRSACertificateKeyFile {directory}/key.pem
  TLSOptions NoSessionReuseRequired
  TLSLog {directory}/tls.log
</IfModule>
"""

SFTP = """\
<VirtualHost 127.0.0.1>
  ServerName sftp
  Port {port}
  SFTPEngine on
  SFTPLog {directory}/sftp.log
  SFTPHostKey {directory}/host_key
  SFTPAuthMethods publickey password
  SFTPAuthorizedUserKeys file:{directory}/authorized_keys
</VirtualHost>
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What a test wants of ProFTPD; `directives` go into Global, `outside` to the outermost level.

    Durations in seconds; `max_store_file_size` as ProFTPD spells it ("10 Kb"). DefaultRoot works
    for root only, and with `locked` for these users alone; with `vroot` it is mod_vroot's. `log` is
    the transfer log in a directory that is there, `token` its secret; with it hooks may be told to
    tell of sessions alone. `users` are others beside USER, the same to the system, and their homes.
    """

    hooks: bool = True
    log: Path | None = None
    token: str = "a-secret"
    sessions_only: bool = False
    chroot: bool = False
    locked: Collection[str] = ()
    vroot: bool = False
    hidden_stores: bool = False
    max_store_file_size: str = ""
    timeout_stalled: int = 0
    tls: bool = False
    sftp: bool = False
    directives: str = ""
    outside: str = ""
    users: Mapping[str, Path] = field(default_factory=dict)


class ProftpdServer(Server):
    """ProFTPD with one user, `USER`, whose files are in `home`; hooks tell `socket` of them.

    `directory` and `home` must be in reach of that user: see `public_directory`.
    """

    def __init__(
        self, directory: Path, *, home: Path, socket: Path, options: Options | None = None
    ) -> None:
        super().__init__(directory)
        directory.chmod(0o755)
        self.home = home
        self.socket = socket
        self.options = options or Options()
        self.port = free_port()
        self.sftp_port = free_port()
        self.hook = directory / "watchman-hook"
        self.user_key = directory / "user_key"
        self.configuration = directory / "proftpd.conf"

    def begin(self) -> None:
        self.prepare()
        super().begin()

    def command(self) -> list[str]:
        program = shutil.which("proftpd", path=PATH) or "proftpd"
        return [program, "--nodaemon", "--quiet", "--config", str(self.configuration)]

    def is_ready(self) -> bool:
        """Whether it listens. A connection to find out would be a session, and run a hook."""
        ports = {self.port, self.sftp_port} if self.options.sftp else {self.port}
        listening = {int(row[1].partition(":")[2], 16) for row in _sockets() if row[3] == LISTEN}
        return ports <= listening

    def prepare(self) -> None:
        """Write all that ProFTPD reads."""
        self.own(self.home)
        shutil.copy(SHIPPED / "watchman-hook", self.hook)
        self.hook.chmod(0o755)
        users = {USER: self.home, **self.options.users}
        passwd = [
            f"{u}:{PASSWORD_HASH}:{UID}:{GID}::{home}:/bin/false\n" for u, home in users.items()
        ]
        self.write("passwd", "".join(passwd), mode=0o600)
        locked = f"locked:x:{GID + 1}:{','.join(self.options.locked)}\n"
        self.write("group", f"{USER}:x:{GID}:\n{locked}", mode=0o600)
        self.write("watchman.conf", self.included())
        if self.options.tls:
            self.make_certificate()
        if self.options.sftp:
            self.make_keys()
        self.write(
            "proftpd.conf",
            CONFIGURATION.format(
                port=self.port,
                directory=self.directory,
                user="nobody" if PRIVILEGED else pwd.getpwuid(UID).pw_name,
                group="nogroup" if PRIVILEGED else grp.getgrgid(GID).gr_name,
                modules="\n".join(f"LoadModule {module}" for module in self.modules()),
                directives="\n  ".join(self.directives()),
                outside=self.options.outside,
                tls=TLS.format(directory=self.directory) * self.options.tls,
                sftp=SFTP.format(port=self.sftp_port, directory=self.directory) * self.options.sftp,
            ),
        )

    def included(self) -> str:
        """The shipped file as an operator with other places would edit it."""
        options, parts = self.options, []
        if options.log is not None:
            parts.append(TRANSFER_LOG)
        if options.hooks:
            parts.append(SESSIONS)
            if not options.sessions_only:
                parts.append(TRANSFERS)
        return shipped(
            *parts,
            hook=f"{self.hook} --socket {self.socket}",
            log=options.log or "",
            token=options.token,
        )

    def modules(self) -> list[str]:
        options = self.options
        modules = {
            "mod_tls.c": options.tls,
            "mod_sftp.c": options.sftp,
            "mod_vroot.c": options.vroot,
        }
        return [module for module, wanted in modules.items() if wanted]

    def directives(self) -> list[str]:
        options = self.options
        lines = []
        if options.chroot or options.vroot:
            lines.append(f"DefaultRoot ~{' locked' * bool(options.locked)}")
        if options.vroot:
            lines.append("VRootEngine on")
        if options.hidden_stores:
            lines.append("HiddenStores on")
        if options.max_store_file_size:
            lines.append(f"MaxStoreFileSize {options.max_store_file_size}")
        if options.timeout_stalled:
            lines.append(f"TimeoutStalled {options.timeout_stalled}")
        return lines + options.directives.splitlines()

    def own(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        os.chown(directory, UID, GID)

    def write(self, name: str, text: str, *, mode: int = 0o644) -> None:
        path = self.directory / name
        path.write_text(text)
        path.chmod(mode)

    def make_certificate(self) -> None:
        self.call(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
            " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out certificate.pem"
        )
        (self.directory / "key.pem").chmod(0o600)

    def make_keys(self) -> None:
        """A host key and a user's key; mod_sftp reads public keys in RFC 4716's form."""
        for name in ("host_key", "user_key"):
            if not (self.directory / name).exists():
                self.call(f"ssh-keygen -q -t rsa -b 2048 -m PEM -N  -f {name}")
        self.write("authorized_keys", self.call("ssh-keygen -e -m RFC4716 -f user_key.pub"))

    def call(self, command: str) -> str:
        done = subprocess.run(
            command.split(" "),  # an empty word is the empty passphrase
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def sftp(self, batch: str, user: str = USER) -> subprocess.CompletedProcess[str]:
        """OpenSSH's sftp with the user's key, on the commands in `batch`."""
        return subprocess.run(
            [*self.openssh("sftp"), "-b", "-", f"{user}@127.0.0.1"],
            input=batch,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def openssh(self, program: str) -> list[str]:
        """The command line of its sftp or scp with the user's key, up to what is to be done."""
        options = {
            "IdentityFile": self.user_key,
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "PubkeyAcceptedAlgorithms": "+ssh-rsa",
            "HostKeyAlgorithms": "+ssh-rsa",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return [program, "-F", "none", "-q", "-P", str(self.sftp_port), *words]

    def sessions(self) -> list[int]:
        """The processes of the sessions there are."""
        assert self.process is not None
        master = self.process.pid
        children = Path(f"/proc/{master}/task/{master}/children").read_text()
        return [int(pid) for pid in children.split()]

    def session(self, client: socket.socket) -> int:
        """The process that serves a client's control connection.

        Of several, only root may see which, as ProFTPD's processes are not dumpable.
        """
        if len(sessions := self.sessions()) == 1:
            return sessions[0]
        host, port = client.getsockname()[:2]
        server_port = client.getpeername()[1]
        local, remote = _hexadecimal(host, server_port), _hexadecimal(host, port)
        # A row may be read twice, where others come and go meanwhile. Of a connection before it,
        # in TIME_WAIT, the inode is 0.
        names = {f"socket:[{row[9]}]" for row in _sockets() if row[1:3] == [local, remote]}

        def having() -> list[int]:
            return [pid for pid in sessions if names & _open_files(pid)]

        # For a moment what it has just forked may have it open, too.
        return eventually(lambda: found if len(found := having()) == 1 else [])[0]


def shipped(*parts: int, hook: Path | str, log: Path | str, token: str) -> str:
    """These parts of the shipped watchman.conf, with what an operator would replace."""
    text = (SHIPPED / "watchman.conf").read_text()
    found = dict(enumerate(re.split(r"^(?=# [1-9]\. )", text, flags=re.MULTILINE)))
    assert list(found) == [0, *HOOKS]
    directives = re.sub(r"^ *#.*", "", text, flags=re.MULTILINE)
    assert (directives.count(LOG), directives.count(TOKEN)) == (1, 1)
    for part, hooks in HOOKS.items():
        assert found[part].count(HOOK) == hooks
    text = "".join(found[part] for part in (0, *parts))
    text = text.replace(HOOK, f"{hook} ").replace(LOG, f"ExtendedLog {log} ")
    return text.replace(TOKEN, f'"{token}|')


def _sockets() -> list[list[str]]:
    """The rows of /proc/net/tcp: 1 is the local address, 2 the other, 3 the state, 9 the inode."""
    return [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]


def _hexadecimal(host: str, port: int) -> str:
    """An address as /proc/net/tcp has it."""
    [number] = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"


def _open_files(pid: int) -> set[str]:
    """Nothing where the process has ended meanwhile."""
    names = set()
    with contextlib.suppress(FileNotFoundError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                names.add(os.readlink(descriptor))
    return names


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    """A directory that every user can reach: pytest's own are closed to all but ourselves."""
    directory = Path(tempfile.mkdtemp(prefix="watchman-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
