"""Every way in which a transfer ends, with hooks, with the transfer log, and with both.

What is expected is in the table at the end: how many tasks, in each mode, for each file.
"""

from __future__ import annotations

import contextlib
import ftplib
import io
import os
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, published
from tests.deadline import eventually
from tests.proftpd import PASSWORD, USER, Options, ProftpdServer, public_directory

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

#: `advised` is the log, and hooks for sessions alone.
MODES = ("hooks", "log", "advised", "both")

#: Seconds that watchman waits for ProFTPD's word here.
CONFIRM = 1.5

INI = """
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
log_level = DEBUG
[broker:b]
url = filesystem://broker
[broker:away]
url = redis://127.0.0.1:1/0
[watch:ftp]
path = {tmp}/home
proftpd = yes
confirm = %s
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


@dataclass
class Scene:
    """A ProFTPD and a daemon in one mode, and the directory of one row."""

    mode: str
    tmp: Path
    server: ProftpdServer
    daemon: Daemon
    name: str = ""

    @property
    def directory(self) -> Path:
        return self.tmp / "home" / self.name

    def ftp(self) -> ftplib.FTP:
        ftp = ftplib.FTP(timeout=20, encoding="latin-1")
        ftp.connect("127.0.0.1", self.server.port)
        ftp.login(USER, PASSWORD)
        ftp.cwd(self.name)
        return ftp

    def store(self, name: str, content: str = "12345", command: str = "STOR") -> None:
        with self.ftp() as ftp:
            ftp.storbinary(f"{command} {name}", io.BytesIO(content.encode()))

    def sent(self) -> dict[str, int]:
        """How many tasks there are for each file of this row."""
        found = Counter(task["args"][0] for task in self.tasks())
        return {os.path.relpath(path, self.directory): count for path, count in found.items()}

    def tasks(self) -> list[dict[str, Any]]:
        prefix = f"{self.directory}/"
        tasks = published(self.tmp / "broker")
        return [task for task in tasks if task["args"][0].startswith(prefix)]

    def failed(self) -> set[str]:
        return {
            os.path.relpath(row["path"], self.directory)
            for row in self.daemon.queue()
            if row["state"] == "failed" and row["path"].startswith(f"{self.directory}/")
        }

    def settle(self) -> None:
        """Wait until nothing more can come of what was done."""
        time.sleep(0.3)
        eventually(
            lambda: not [row for row in self.daemon.queue() if row["state"] != "failed"],
            timeout=20,
        )


@contextlib.contextmanager
def scene(mode: str, tmp: Path, *, ini: str = INI % CONFIRM, **options: Any) -> Iterator[Scene]:
    """ProFTPD and a daemon; `ini` without what the log needs, which is added."""
    (tmp / "home").mkdir()
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
            yield Scene(mode, tmp, server, daemon)
    finally:
        daemon.kill()


DIRECTORIES = """\
<Directory {home}/hidden*>
  HiddenStores on
</Directory>
<Directory {home}/toolarge>
  MaxStoreFileSize 10 B
</Directory>
TimeoutStalled 2
"""


@pytest.fixture(scope="module", params=MODES)
def shared(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """One server and daemon for all rows of a mode."""
    with (
        public_directory() as tmp,
        scene(
            request.param,
            tmp,
            tls=True,
            sftp=True,
            directives=DIRECTORIES.format(home=tmp / "home"),
        ) as scene_,
    ):
        yield scene_


# How transfers end.


def half(s: Scene, name: str = "a.csv") -> tuple[ftplib.FTP, socket.socket]:
    """Send the first half of a file."""
    ftp = s.ftp()
    ftp.voidcmd("TYPE I")
    data = ftp.transfercmd(f"STOR {name}")
    data.sendall(b"x" * 1000)
    eventually(lambda: [f for f in s.directory.iterdir() if f.stat().st_size >= 1000])
    return ftp, data


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def stor(s: Scene) -> None:
    s.store("a.csv")


def empty(s: Scene) -> None:
    s.store("a.csv", "")


def overwrite(s: Scene) -> None:
    s.store("a.csv", "1")
    eventually(lambda: s.sent() == {"a.csv": 1})
    s.store("a.csv", "12")


def overwrite_same_size_at_once(s: Scene) -> None:
    with s.ftp() as ftp:
        for content in (b"12345", b"54321"):
            ftp.storbinary("STOR a.csv", io.BytesIO(content))


def overwrite_same_size_later(s: Scene) -> None:
    s.store("a.csv", "12345")
    eventually(lambda: s.sent() == {"a.csv": 1})
    time.sleep(0.9)
    s.store("a.csv", "54321")


def append(s: Scene) -> None:
    s.store("a.csv", "12345")
    eventually(lambda: s.sent() == {"a.csv": 1})
    s.store("a.csv", "67890", "APPE")


def resume(s: Scene) -> None:
    s.store("a.csv", "12345")
    eventually(lambda: s.sent() == {"a.csv": 1})
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"67890"), rest=5)


def unique(s: Scene) -> None:
    with s.ftp() as ftp:
        # ProFTPD names the file ftpXXXXXX, which no pattern matches: rename it into one that does.
        answer = []
        ftp.storbinary("STOU", io.BytesIO(b"12345"), callback=answer.append)
        (made,) = os.listdir(s.directory)
        ftp.rename(made, "a.csv")


def reset_data(s: Scene) -> None:
    ftp, data = half(s)
    reset(data)
    with contextlib.suppress(ftplib.Error):
        ftp.voidresp()
    ftp.close()


def abort(s: Scene) -> None:
    ftp, data = half(s)
    ftp.putline("ABOR")
    with contextlib.suppress(ftplib.Error, EOFError, OSError):
        ftp.getmultiline()
        ftp.getmultiline()
    data.close()
    ftp.close()


def control_lost(s: Scene) -> None:
    ftp, data = half(s)
    assert ftp.sock is not None
    reset(ftp.sock)
    time.sleep(0.2)
    reset(data)


def stall(s: Scene) -> None:
    ftp, data = half(s)
    with contextlib.suppress(ftplib.Error, EOFError, OSError):
        ftp.voidresp()
    data.close()
    ftp.close()


def vanish(s: Scene) -> None:
    ftp, data = half(s)
    data.close()
    ftp.close()


def killed(s: Scene) -> None:
    ftp, data = half(s)
    assert ftp.sock is not None
    os.kill(s.server.session(ftp.sock), 9)
    data.close()
    ftp.close()


def denied(s: Scene) -> None:
    s.store("a.csv")
    eventually(lambda: s.sent() == {"a.csv": 1})
    os.chown(s.directory / "a.csv", 0, 0)
    (s.directory / "a.csv").chmod(0o444)
    with s.ftp() as ftp, pytest.raises(ftplib.error_perm):
        ftp.storbinary("STOR a.csv", io.BytesIO(b"1"))


def no_directory(s: Scene) -> None:
    with s.ftp() as ftp, pytest.raises(ftplib.error_perm):
        ftp.storbinary("STOR none/a.csv", io.BytesIO(b"1"))


def too_large(s: Scene) -> None:
    with contextlib.suppress(ftplib.Error, OSError), s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"x" * 100_000))


def disk_full(s: Scene) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "full", s.directory], check=True
    )
    try:
        with contextlib.suppress(ftplib.Error, OSError), s.ftp() as ftp:
            ftp.storbinary("STOR a.csv", io.BytesIO(b"x" * 1_000_000))
        s.settle()
        assert s.failed() == {"a.csv"}
    finally:
        subprocess.run(["umount", "-l", s.directory], check=True)


def rename_excluded(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv.part", io.BytesIO(b"12345"))
        ftp.rename("a.csv.part", "a.csv")


def rename_unmatched(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.dat", io.BytesIO(b"12345"))
        ftp.rename("a.dat", "a.csv")


def rename_matched(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        eventually(lambda: s.sent() == {"a.csv": 1})
        ftp.rename("a.csv", "b.csv")


def mfmt_at_once(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        ftp.sendcmd("MFMT 20200101000000 a.csv")


def mfmt_late(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        s.settle()
        ftp.sendcmd("MFMT 20200101000000 a.csv")


def site_copy(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        ftp.sendcmd(f"SITE CPFR {s.directory}/a.csv")
        ftp.sendcmd(f"SITE CPTO {s.directory}/b.csv")


def hidden_killed(s: Scene) -> None:
    killed(s)
    assert [name for name in os.listdir(s.directory) if name.startswith(".in.")]


def ftps(s: Scene) -> None:
    url = f"ftp://{USER}:{PASSWORD}@127.0.0.1:{s.server.port}/{s.name}/a.csv"
    subprocess.run(
        ["curl", "-sS", "--ssl-reqd", "-k", "-T", "-", url], input=b"12345", check=True, timeout=20
    )


def lftp(s: Scene, script: str) -> subprocess.Popen[bytes]:
    settings = "set ftp:ssl-force yes; set ftp:ssl-protect-data yes; set ssl:verify-certificate no"
    login = f"open -u {USER},{PASSWORD} ftp://127.0.0.1:{s.server.port}; cd {s.name}"
    return subprocess.Popen(["lftp", "-c", f"{settings}; {login}; {script}"])


def ftps_killed(s: Scene) -> None:
    """By lftp; a killed curl leaves ProFTPD with a clean end, which nobody can tell."""
    big = s.tmp / "big"
    big.write_bytes(b"x" * 2_000_000)
    client = lftp(s, f"set net:limit-rate 0:50000; put {big} -o a.csv")
    eventually(lambda: (f := s.directory / "a.csv").exists() and f.stat().st_size > 1000)
    client.kill()
    client.wait()


def sftp_put(s: Scene) -> None:
    source(s, "12345")
    done = s.server.sftp(f"put {s.tmp}/source {s.name}/a.csv\n")
    assert done.returncode == 0, done.stderr


def source(s: Scene, content: str) -> None:
    (s.tmp / "source").write_text(content)
    os.utime(s.tmp / "source", (1_600_000_000, 1_600_000_000))


def sftp_put_twice_with_times(s: Scene) -> None:
    source(s, "12345")
    for _ in range(2):
        done = s.server.sftp(f"put -p {s.tmp}/source {s.name}/a.csv\n")
        assert done.returncode == 0, done.stderr
        s.settle()


def sftp_rename(s: Scene) -> None:
    sftp_put(s)
    eventually(lambda: s.sent() == {"a.csv": 1})
    s.server.sftp(f"rename {s.name}/a.csv {s.name}/b.csv\n")


def dele(s: Scene) -> None:
    with s.ftp() as ftp:
        ftp.storbinary("STOR a.csv", io.BytesIO(b"12345"))
        ftp.delete("a.csv")


def odd_names(s: Scene) -> None:
    with s.ftp() as ftp:
        for name in ODD:
            ftp.storbinary(f"STOR {name}", io.BytesIO(b"12345"))


#: latin-1 goes over the wire as it is: the last but one is no UTF-8.
ODD = ("a b.csv", "'\"`$(x).csv", "\xe9\xff.csv", "x" * 251 + ".csv")


def percent_names(s: Scene) -> None:
    """mod_exec would expand them once more, so the shipped file has ProFTPD refuse them."""
    with s.ftp() as ftp:
        for name in PERCENT:
            with contextlib.ExitStack() as stack:
                if s.mode != "log":
                    stack.enter_context(pytest.raises(ftplib.error_perm))
                ftp.storbinary(f"STOR {name}", io.BytesIO(b"12345"))


PERCENT = ("%u.csv", "%{x}.csv")


@dataclass(frozen=True)
class Row:
    """What is done, how many tasks come of it by mode, and which files are listed as failed."""

    do: Callable[[Scene], None]
    tasks: dict[str, dict[str, int]]
    failed: dict[str, set[str]]
    #: ProFTPD takes the same end now for a good one and now for a failed one.
    either: bool = False


def row(do: Callable[[Scene], None], *, failed: tuple[str, ...] = (), **tasks: int) -> Row:
    """The same in every mode."""
    files = {f"{name}.csv": count for name, count in tasks.items()}
    names = {f"{name}.csv" for name in failed}
    return Row(do, dict.fromkeys(MODES, files), dict.fromkeys(MODES, names))


ONE: dict[str, int] = {"a.csv": 1}
FAILED = {"a.csv"}

ROWS: dict[str, Row] = {
    "stor": row(stor, a=1),
    "empty": row(empty, a=1),
    "overwrite": row(overwrite, a=2),
    "overwritelater": row(overwrite_same_size_later, a=2),
    "append": row(append, a=2),
    "resume": row(resume, a=2),
    "stou": row(unique, a=1),
    "reset": row(reset_data, failed=("a",)),
    "abort": row(abort, failed=("a",)),
    "controllost": row(control_lost, failed=("a",)),
    "stall": row(stall, failed=("a",)),
    # Nobody can know: ProFTPD answers 226.
    "vanish": row(vanish, a=1),
    # ProFTPD logs nothing: `unconfirmed` decides.
    "killed": Row(
        killed,
        {"hooks": {}, "log": ONE, "advised": {}, "both": {}},
        {"hooks": FAILED, "log": set(), "advised": FAILED, "both": FAILED},
    ),
    "denied": row(denied, a=1),
    "nodirectory": row(no_directory),
    "toolarge": row(too_large, failed=("a",)),
    "diskfull": row(disk_full, failed=("a",)),
    "renameexcluded": row(rename_excluded, a=1),
    "renameunmatched": row(rename_unmatched, a=1),
    "renamematched": row(rename_matched, a=1),
    "mfmt": row(mfmt_at_once, a=1),
    "mfmtlate": row(mfmt_late, a=1),
    "sitecopy": row(site_copy, a=1, b=1),
    "hidden": row(stor, a=1),
    "hiddenabort": row(abort),
    "hiddenkilled": row(hidden_killed),
    "ftps": row(ftps, a=1),
    # ProFTPD sees a reset where the client left bytes unread, else a clean end.
    "ftpskilled": Row(
        ftps_killed, dict.fromkeys(MODES, ONE), dict.fromkeys(MODES, FAILED), either=True
    ),
    "sftp": row(sftp_put, a=1),
    "sftptimes": row(sftp_put_twice_with_times, a=2),
    "sftprename": row(sftp_rename, a=1),
    "dele": row(dele),
    "odd": Row(
        odd_names,
        dict.fromkeys(
            MODES, dict.fromkeys([os.fsdecode(name.encode("latin-1")) for name in ODD], 1)
        ),
        {mode: set() for mode in MODES},
    ),
    "percent": Row(
        percent_names,
        {"hooks": {}, "log": dict.fromkeys(PERCENT, 1), "advised": {}, "both": {}},
        {mode: set() for mode in MODES},
    ),
}


@pytest.fixture
def place(shared: Scene, request: pytest.FixtureRequest) -> Scene:
    """The scene with a directory of the row's name."""
    shared.name = request.node.callspec.params["name"]
    shared.directory.mkdir()
    shared.server.own(shared.directory)
    return shared


@pytest.mark.parametrize("name", ROWS)
def test_one_task_for_each_finished_upload(place: Scene, name: str) -> None:
    expected = ROWS[name]
    expected.do(place)
    place.settle()
    if expected.either:
        assert bool(place.sent()) != bool(place.failed())
        assert place.sent() in ({}, expected.tasks[place.mode])
        assert place.failed() in (set(), expected.failed[place.mode])
        return
    assert place.sent() == expected.tasks[place.mode]
    assert place.failed() == expected.failed[place.mode]
    for task in place.tasks():
        path = Path(task["args"][0])
        if expected.tasks[place.mode].get(path.name) == 1 and path.exists():
            assert task["watchman"]["size"] == path.stat().st_size
