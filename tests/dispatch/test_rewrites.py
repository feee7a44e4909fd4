"""A rewrite that keeps size and mtime is an upload: by file servers and tools that keep them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.servers.samba import SambaServer
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

#: Time of each version of the file that is uploaded (seconds since 1970).
KEPT = 1_000_000_000

pytestmark = pytest.mark.root

Put = Callable[[Path, Path], None]


@pytest.fixture
def samba(tmp_path: Path) -> Iterator[Put]:
    need("smbd", "smbclient")
    with SambaServer(tmp_path / "samba", tmp_path / "in") as server:
        yield lambda file, target: server.put(file, target.name)


@pytest.fixture
def sftp(tmp_path: Path) -> Iterator[Put]:
    """As `sftp put -p`: written, then given its times by FSETSTAT before it is closed, or after."""
    need("/usr/sbin/sshd", "sftp")
    with SshServer(tmp_path / "sshd") as server:

        def put(file: Path, target: Path) -> None:
            options = ["-b", "-", "-P", str(server.port), "-i", str(server.directory / "user")]
            options += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
            subprocess.run(
                ["sftp", "-q", *options, "root@127.0.0.1"],
                input=f"put -p {file} {target}\n",
                text=True,
                check=True,
                capture_output=True,
                timeout=30,
            )

        yield put


def tool(*command: str) -> Put:
    def put(file: Path, target: Path) -> None:
        subprocess.run([*command, file, target], check=True)

    return put


@pytest.fixture
def rsync() -> Put:
    need("rsync")
    # It would pass over a file of the same size and time.
    return tool("rsync", "--inplace", "--ignore-times", "-t")


@pytest.fixture
def cp() -> Put:
    return tool("cp", "-p")


@pytest.fixture
def logger() -> Put:
    """A camera or a logger with records of a fixed length, that sets back the time."""

    def put(file: Path, target: Path) -> None:
        with target.open("r+b" if target.exists() else "wb") as written:
            written.write(file.read_bytes())
            os.utime(written.fileno(), (KEPT, KEPT))

    return put


WAYS = ("samba", "sftp", "rsync", "cp", "logger")


@pytest.mark.parametrize("way", WAYS)
def test_each_version_is_a_task_while_it_runs(
    way: str, request: pytest.FixtureRequest, tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    (tmp_path / "in").mkdir()
    put: Put = request.getfixturevalue(way)
    daemon = start_watchman(INI)
    for count in range(1, 4):
        put(version(tmp_path, count), tmp_path / "in/a.csv")
        eventually(lambda count=count: len(published(tmp_path / "broker")) == count)
    daemon.stop()
    assert len(published(tmp_path / "broker")) == 3


@pytest.mark.parametrize("way", WAYS)
def test_a_version_that_came_while_it_was_down_is_a_task_and_chmod_is_none(
    way: str, request: pytest.FixtureRequest, tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    (tmp_path / "in").mkdir()
    put: Put = request.getfixturevalue(way)
    daemon = start_watchman(INI)
    put(version(tmp_path, 1), tmp_path / "in/a.csv")
    eventually(lambda: len(published(tmp_path / "broker")) == 1)
    for count in (2, 3):
        daemon.stop()
        put(version(tmp_path, count), tmp_path / "in/a.csv")
        daemon.start()
        eventually(lambda count=count: len(published(tmp_path / "broker")) == count)
    daemon.stop()
    (tmp_path / "in/a.csv").chmod(0o600)
    daemon.start()
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
    daemon.stop()
    assert len(published(tmp_path / "broker")) == 3


def version(directory: Path, number: int) -> Path:
    """A file whose size and mtime are the same in each version, and whose content is not."""
    file = directory / "version"
    file.write_text(f"version {number}\n")
    os.utime(file, (KEPT, KEPT))
    return file
