"""The transfer log through the whole daemon, as a real ProFTPD writes it."""

import contextlib
import ftplib
import io
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.servers.proftpd import PASSWORD, SHIPPED, USER, ProftpdServer
from tests.support.deadline import eventually
from tests.support.needs import PATH, need
from tests.support.translog import append, line
from watchman.sources.transferlog.lines import LONGEST

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

Start = Callable[..., Daemon]

#: Lines that come while the daemon is killed again and again.
LINES = 1500

INI = """
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
[proftpd]
transfer_log = {tmp}/log/uploads.log
token = a-secret
[broker:b]
url = filesystem://broker
[watch:ftp]
path = {tmp}/home
proftpd = yes
confirm = 60s
[task:all]
pattern = *
broker = b
task = tests.record
"""


@pytest.fixture
def home(public_path: Path) -> Path:
    (public_path / "home").mkdir()
    return public_path / "home"


@pytest.fixture
def log(public_path: Path) -> Path:
    """Its directory is there, as the operator makes it."""
    (public_path / "log").mkdir(mode=0o750)
    return public_path / "log" / "uploads.log"


@pytest.fixture
def daemon(public_path: Path, home: Path, log: Path, start_watchman: Start) -> Daemon:
    """One that waits a minute for ProFTPD's word: what it sends before that, the log told it."""
    return start_watchman(INI, directory=public_path)


@pytest.fixture
def server(start_proftpd: Callable[..., ProftpdServer], log: Path) -> ProftpdServer:
    return start_proftpd(hooks=False, log=log)


@pytest.fixture
def connect(server: ProftpdServer) -> Iterator[Callable[[], ftplib.FTP]]:
    """Begins a session."""
    with contextlib.ExitStack() as stack:

        def connect() -> ftplib.FTP:
            client = stack.enter_context(contextlib.closing(ftplib.FTP(encoding="latin-1")))
            client.connect("127.0.0.1", server.port, timeout=20)
            client.login(USER, PASSWORD)
            return client

        yield connect


def store(client: ftplib.FTP, name: str, content: str = "12345") -> None:
    client.storbinary(f"STOR {name}", io.BytesIO(content.encode()))


def sent(daemon: Daemon) -> dict[str, int]:
    """How many tasks there are, by name."""
    tasks = published(daemon.directory / "broker")
    return Counter(os.path.basename(task["args"][0]) for task in tasks)


def sends(daemon: Daemon, *names: str) -> None:
    """There is one task for each of these, and none for another."""
    eventually(lambda: len(sent(daemon)) >= len(names))
    assert sent(daemon) == dict.fromkeys(names, 1)


def refused(daemon: Daemon) -> int:
    (log,) = daemon.status()["transfer_logs"].values()
    return int(log["refused"])


# The log's word.


def test_a_chrooted_session_is_heard(
    start_proftpd: Callable[..., ProftpdServer], daemon: Daemon, log: Path
) -> None:
    server = start_proftpd(log=log, chroot=True)
    with ftplib.FTP() as client:
        client.connect("127.0.0.1", server.port, timeout=20)
        client.login(USER, PASSWORD)
        store(client, "a.csv")
    sends(daemon, "a.csv")


def test_what_came_while_watchman_was_down_is_told_with_its_end(
    daemon: Daemon, connect: Callable[[], ftplib.FTP]
) -> None:
    daemon.kill()
    client = connect()
    store(client, "good.csv")
    client.voidcmd("TYPE I")
    data = client.transfercmd("STOR bad.csv")
    data.sendall(b"x" * 1000)
    data.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: (daemon.directory / "home" / "bad.csv").stat().st_size)
    data.close()
    with contextlib.suppress(ftplib.Error):
        client.voidresp()
    for _ in range(2):
        daemon.start()
        sends(daemon, "good.csv")
        # What has been sent and not yet been written down would be sent again.
        (row,) = eventually(lambda: len(rows := daemon.queue()) == 1 and rows)
        assert (row["state"], os.path.basename(row["path"])) == ("failed", "bad.csv")
        daemon.kill()


def test_a_failure_that_is_known_before_its_file_is_closed_outlives_a_crash(
    daemon: Daemon, home: Path, log: Path
) -> None:
    """As with SFTP, which tells of the failure first."""
    file = home / "a.csv"
    with file.open("w") as writer:
        writer.write("half")
        writer.flush()
        append(log, line(file, status="451", transfer="failed"))
        eventually(daemon.queue)
        daemon.kill()
    daemon.start()
    eventually(lambda: [row["state"] for row in daemon.queue()] == ["failed"])
    assert sent(daemon) == {}


# Names and lines.


def test_any_name_is_believed_and_none_forges_a_line(
    start_proftpd: Callable[..., ProftpdServer], daemon: Daemon, home: Path, log: Path
) -> None:
    """SFTP takes line feeds in names, and the log has them as they are."""
    server = start_proftpd(hooks=False, log=log, sftp=True)
    (home / "victim.csv").write_text("half")
    forged = line("/victim.csv", token="guessed").decode().strip().replace("/", "")
    names = ["a|b.csv", "a\nb.csv", f"x\n{forged}", "victim.csv\nx"]
    source = daemon.directory / "source"
    source.write_text("12345")
    quoted = [name.replace("\n", "\\n") for name in names]
    # OpenSSH's sftp reads commands by line: have it take the names from its own directory.
    local = daemon.directory / "local"
    local.mkdir()
    for name in names:
        shutil.copy(source, local / name)
    done = server.sftp(f"lcd {local}\nput *\n")
    assert done.returncode == 0, (done.stderr, quoted)
    assert {path.name for path in home.iterdir()} == {*names, "victim.csv"}
    sends(daemon, *names)
    assert refused(daemon) == 0


def test_the_longest_line_that_proftpd_writes_is_as_long_as_we_think(
    daemon: Daemon, server: ProftpdServer, home: Path, log: Path
) -> None:
    """A longer one loses its end and its newline; the next one is believed all the same."""
    # ProFTPD takes a path of 4 KiB at most, and the rest of a line is short: it takes a token that
    # no operator has to get beyond that.
    server.stop()
    token = "a-secret" + "x" * 400
    conf = server.directory / "watchman.conf"
    conf.write_text(conf.read_text().replace('"a-secret|', f'"{token}|'))
    server.process = server.spawn(server.command(), "output")
    eventually(server.is_ready)
    with ftplib.FTP() as client:
        client.connect("127.0.0.1", server.port, timeout=20)
        client.login(USER, PASSWORD)
        for _ in range(18):
            client.mkd("d" * 220)
            client.cwd("d" * 220)
        with contextlib.suppress(ftplib.Error):
            store(client, "a.csv")
        client.cwd("/")
    pieces = [piece for piece in log.read_bytes().split(token.encode()) if b"|STOR|" in piece]
    lengths = {len(token) + len(piece) for piece in pieces if not piece.endswith(b"\n")}
    assert lengths == {LONGEST}


# Rotation.


def test_the_shipped_stanza_rotates_under_running_sessions_and_loses_no_line(
    daemon: Daemon, connect: Callable[[], ftplib.FTP], log: Path, tmp_path: Path
) -> None:
    need("logrotate")
    text = (SHIPPED / "watchman.logrotate").read_text()
    (stanza,) = re.findall(r"^/var/log/proftpd/watchman/\*\.log\n\{.*?^\}", text, re.M | re.S)
    assert stanza.count("su root watchman") == stanza.count("create 0640 watchman watchman") == 1
    file = tmp_path / "stanza"
    # There is no user watchman here; who owns the file is as far from root as can be.
    stanza = stanza.replace("su root watchman", "su root root")
    stanza = stanza.replace("create 0640 watchman watchman", "create 0640 nobody nogroup")
    file.write_text(stanza.replace("/var/log/proftpd/watchman/", f"{log.parent}/"))
    sessions, names = [], []
    for turn in range(4):
        sessions.append(connect())
        for number, session in enumerate(sessions):
            names.append(f"{turn}-{number}.csv")
            store(session, names[-1])
        done = subprocess.run(
            ["logrotate", "--force", "--state", tmp_path / "state", file],
            env={"PATH": PATH},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        sends(daemon, *names)
    assert log.stat().st_uid != 0
    assert log.with_name("uploads.log.1").exists()
    eventually(lambda: daemon.queue() == [])
    daemon.kill()
    # What an older session writes now goes into a file that has been packed and removed.
    for number, session in enumerate([sessions[-1], connect()]):
        names.append(f"down-{number}.csv")
        store(session, names[-1])
    daemon.start()
    sends(daemon, *names)


def test_a_log_that_cannot_be_written_fails_no_upload(
    start_proftpd: Callable[..., ProftpdServer], public_path: Path, home: Path
) -> None:
    """Its directory is missing, or all may write it: ProFTPD says so, and takes the file."""
    (public_path / "public").mkdir()
    (public_path / "public").chmod(0o777)
    for number, name in enumerate(("missing", "public")):
        server = start_proftpd(hooks=False, log=public_path / name / "uploads.log")
        with ftplib.FTP() as client:
            client.connect("127.0.0.1", server.port, timeout=20)
            client.login(USER, PASSWORD)
            store(client, f"{number}.csv")
    assert sorted(os.listdir(home)) == ["0.csv", "1.csv"]
    assert not list(public_path.glob("*/uploads.log"))


# Crashes.


def test_no_line_is_lost_and_none_counts_twice_however_often_the_daemon_is_killed(
    daemon: Daemon, home: Path, log: Path
) -> None:
    """Each third file gets other times at once, as lftp does: its line read twice would show."""
    names = [f"{number}.csv" for number in range(LINES)]
    for name in names:
        (home / name).write_text("12345")
    chance = random.Random(4223)
    while names:
        for _ in range(min(len(names), chance.randrange(100, 500))):
            file = home / names.pop()
            append(log, line(file))
            if chance.randrange(3) == 0:
                os.utime(file, (1_600_000_000, 1_600_000_000))
        time.sleep(chance.uniform(0, 0.9))
        daemon.kill()
        daemon.begin()
    eventually(daemon.is_ready, timeout=60)
    broker = daemon.directory / "broker"
    eventually(lambda: len(os.listdir(broker)) >= LINES, timeout=60)
    eventually(lambda: not daemon.status()["uploads"]["waiting"], timeout=60)
    ids: dict[str, set[str]] = {}
    for task in published(broker):
        ids.setdefault(task["args"][0], set()).add(task["id"])
    assert len(ids) == LINES
    assert {len(found) for found in ids.values()} == {1}
