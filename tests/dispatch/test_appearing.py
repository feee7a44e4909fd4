"""A file that appears by any call is one upload, once nobody has it open for writing."""

from __future__ import annotations

import ftplib
import io
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.servers.proftpd import PASSWORD, USER
from tests.servers.pureftpd import PURE_FTPD, PureFtpdServer
from tests.servers.sshd import SshServer
from tests.support.deadline import eventually
from tests.support.needs import need

INI = """
[broker:b]
url = filesystem://broker
[watch:in]
path = {tmp}/in
rescan = 0
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

#: As who the daemon runs: with leases, or as one to whom the files do not belong.
USERS = {
    "root": (),
    "nobody": ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
}

pytestmark = pytest.mark.root


@pytest.fixture(params=USERS)
def daemon(request: pytest.FixtureRequest, public_path: Path) -> Iterator[Daemon]:
    for name in ("in", "broker"):
        (public_path / name).mkdir()
    prefix = USERS[request.param]
    if prefix:
        (public_path / "in").chmod(0o755)
        os.chown(public_path / "broker", 65534, 65534)
        os.chown(public_path, 65534, 65534)
    with Daemon(public_path, INI, prefix=prefix) as daemon:
        yield daemon


def sent(daemon: Daemon) -> Counter[str]:
    """How many tasks were sent for each file, by its name below the watch."""
    tasks = published(daemon.directory / "broker")
    return Counter(os.path.relpath(t["args"][0], daemon.directory / "in") for t in tasks)


def each_once(daemon: Daemon, names: set[str]) -> None:
    """Wait for one task for each name; and for a second one, which must not come."""
    eventually(lambda: len(sent(daemon)) >= len(names), timeout=60)
    (daemon.directory / "in/last.csv").write_text("1")
    eventually(lambda: sent(daemon)["last.csv"], timeout=30)
    assert sent(daemon) == Counter(dict.fromkeys(names | {"last.csv"}, 1))


def test_a_thousand_files_that_are_renamed_by_link_and_unlink(daemon: Daemon) -> None:
    incoming, names = daemon.directory / "in", {f"{n}.csv" for n in range(1000)}
    for name in names:
        part = incoming / f"{name}.part"
        part.write_text("1,2,3\n")
        (incoming / name).hardlink_to(part)
        part.unlink()
    each_once(daemon, names)


#: By name without its suffix, what makes `$f`.
WAYS = {
    "cp": "cp ../source $f",
    "cp-p-chmod": "cp -p ../source $f; chmod 600 $f; chmod 644 $f",
    "install": "install -m 644 ../source $f",
    "mv": "cp ../source ../other; mv ../other $f",
    "ln": "cp ../source ../other; ln ../other $f; rm ../other",
    "rsync": "rsync -a ../source $f",
    "rsync-inplace": "rsync --inplace -a ../source $f",
    "touch": "touch $f",
    "touch-d": "touch -d 2001-01-01 $f",
    "from-a-directory": "mkdir d; cp ../source d/b; ln d/b $f",
}


def test_one_task_by_whichever_call_it_appears(daemon: Daemon) -> None:
    incoming = daemon.directory / "in"
    (daemon.directory / "source").write_text("1,2,3\n")
    for name, script in WAYS.items():
        command = ["sh", "-uec", f"umask 022; f={name}.csv; {script}"]
        subprocess.run(command, cwd=incoming, check=True)
    fd = os.open(incoming, os.O_TMPFILE | os.O_WRONLY, 0o644)
    os.write(fd, b"1")
    os.link(f"/proc/self/fd/{fd}", incoming / "unnamed.csv", src_dir_fd=fd)
    os.close(fd)
    each_once(daemon, {f"{name}.csv" for name in (*WAYS, "unnamed")})


def test_a_file_that_a_program_holds_open_is_seen_and_waits_for_its_end(daemon: Daemon) -> None:
    path = daemon.directory / "in/a.csv"
    with path.open("w") as file:
        for _ in range(4):
            file.write("1,2,3\n")
            file.flush()
            until = time.monotonic() + 1.5
            eventually(lambda until=until: time.monotonic() > until)
        assert sent(daemon) == Counter()
        (row,) = daemon.queue()
        assert row["path"] == str(path)
        assert row["reason"] in ("it is being written", "the kernel does not say who writes it")
    each_once(daemon, {"a.csv"})
    (task, _) = sorted(published(daemon.directory / "broker"), key=lambda task: task["args"])
    assert task["watchman"]["size"] == path.stat().st_size


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[SshServer]:
    need("sshd", "ssh-keygen")
    with SshServer(tmp_path / "sshd") as server:
        yield server


def test_uploads_that_openssh_renames_are_one_task_each(daemon: Daemon, sshd: SshServer) -> None:
    """SSH_FXP_RENAME is link(2) and unlink(2) there, see process_rename() in sftp-server.c."""
    incoming, names = daemon.directory / "in", {f"{n}.csv" for n in range(150)}
    with sshd.connect() as client, client.open_sftp() as sftp:
        for name in sorted(names):
            with sftp.open(f"{incoming}/{name}.part", "w") as file:
                file.write("1,2,3\n")
            sftp.rename(f"{incoming}/{name}.part", f"{incoming}/{name}")
    each_once(daemon, names)


def test_curl_and_lftp_rename_over_openssh(daemon: Daemon, sshd: SshServer, tmp_path: Path) -> None:
    need("curl", "lftp")
    incoming, key = daemon.directory / "in", sshd.directory / "user"
    source = tmp_path / "source"
    source.write_text("1,2,3\n")
    place = f"sftp://root@127.0.0.1:{sshd.port}{incoming}"
    rename = f"-rename {incoming}/a.part {incoming}/a.csv"
    curl = ["curl", "-sSk", "--key", str(key), "--pubkey", f"{key}.pub", "-T", str(source)]
    subprocess.run([*curl, "-Q", rename, f"{place}/a.part"], check=True, timeout=30)
    ssh = f"ssh -a -x -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    script = f"set sftp:connect-program '{ssh}'; set xfer:use-temp-file yes;"
    script += " set xfer:temp-file-name .in.*;"
    script += f" open -u root, -p {sshd.port} sftp://127.0.0.1; put {source} -o {incoming}/b.csv"
    subprocess.run(["lftp", "-c", script], check=True, timeout=30)
    each_once(daemon, {"a.csv", "b.csv"})


def test_uploads_that_pure_ftpd_renames_are_one_task_each(daemon: Daemon) -> None:
    need(PURE_FTPD)
    incoming = daemon.directory / "in"
    incoming.chmod(0o777)
    names = {f"{n}.csv" for n in range(50)}
    with PureFtpdServer(daemon.directory / "pureftpd", incoming) as server, ftplib.FTP() as ftp:
        ftp.connect("127.0.0.1", server.port, timeout=30)
        ftp.login(USER, PASSWORD)
        for name in sorted(names):
            ftp.storbinary(f"STOR {name}", io.BytesIO(name.encode()))
            # Nothing is overwritten: it gets a name that is none of ours.
            ftp.storbinary(f"STOR {name}", io.BytesIO(b"another"))
    each_once(daemon, names)
