"""Real clients through a real ProFTPD: each file one task, and no client has an error.

Those that are not done with a file once it is uploaded need `settle` where files are moved.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.daemon import published
from tests.servers.proftpd import PASSWORD, USER, public_directory
from tests.support.needs import need
from tests.support.scene import Scene, scene

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

INI = """
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
log_level = DEBUG
[broker:b]
url = filesystem://broker
[watch:ftp]
path = {tmp}/home
proftpd = yes
confirm = 5s
[watch:settled]
path = {tmp}/home/settled
proftpd = yes
confirm = 5s
settle = 1.5s
[task:csv]
pattern = *.csv
broker = b
task = tests.record
kwargs = {"original": "{original}"}
"""

MOVE = """
[move:storage]
source = {tmp}/home
destination = {tmp}/storage
"""

#: What a client says that could not do all it wanted to.
COMPLAINT = re.compile(r"error|could not|fail|denied|no such", re.IGNORECASE)

#: How ProFTPD tells of uploads, and whether they are moved.
WAYS = {"hooks": False, "log": False, "hooks, moved": True, "log, moved": True}


@dataclass
class Stage:
    """A scene, whether it moves files, and a directory whose files are uploaded."""

    scene: Scene
    moves: bool
    local: Path

    @property
    def ftp(self) -> str:
        return f"ftp://{USER}:{PASSWORD}@127.0.0.1:{self.scene.server.port}"

    def files(self) -> dict[str, bytes]:
        return {
            str(file.relative_to(self.local)): file.read_bytes()
            for file in self.local.rglob("*.csv")
        }

    def run(self, *command: str | Path) -> None:
        """A client, which must be content."""
        environment = {"HOME": str(self.scene.tmp), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        done = subprocess.run(
            command,
            cwd=self.local,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        output = done.stdout + done.stderr
        assert (done.returncode, COMPLAINT.findall(output)) == (0, []), output

    def check(self, directory: str) -> None:
        """Each file has become one task, and was moved if it was to be."""
        self.scene.settle()
        uploaded = self.scene.tmp / "home" / directory
        stays = self.scene.tmp / ("storage" if self.moves else "home") / directory
        expected = self.files()
        prefix = f"{uploaded}/"
        tasks = [
            task
            for task in published(self.scene.tmp / "broker")
            if task["kwargs"]["original"].startswith(prefix)
        ]
        sent = Counter(task["kwargs"]["original"].removeprefix(prefix) for task in tasks)
        assert sent == dict.fromkeys(expected, 1)
        for task in tasks:
            name = task["kwargs"]["original"].removeprefix(prefix)
            assert task["args"] == [str(stays / name)]
            assert Path(task["args"][0]).read_bytes() == expected[name]
        left = [file for file in uploaded.rglob("*") if file.is_file()]
        assert len(left) == (0 if self.moves else len(expected))
        assert self.scene.daemon.queue() == []


@pytest.fixture(scope="module", params=WAYS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    need("proftpd", "lftp", "curl", "sftp", "rclone", "ncftpput", "wput")
    moves = WAYS[request.param]
    ini = INI + MOVE * moves
    with (
        public_directory() as tmp,
        scene(request.param.partition(",")[0], tmp, ini=ini, sftp=True) as one,
    ):
        one.server.own(tmp / "home" / "settled")
        (tmp / "storage").mkdir()
        (tmp / "local").mkdir()
        yield Stage(one, moves, tmp / "local")


@pytest.fixture
def few(stage: Stage) -> Stage:
    """A few files of all sizes and ages."""
    clear(stage.local)
    for number, name in enumerate(("a.csv", "b b.csv", "sub/c.csv", "sub/sub/d.csv")):
        file = stage.local / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1,2,3\n" * 10 ** (number + 1) * bool(number))
        os.utime(file, (1_600_000_000, 1_600_000_000 + number))
    return stage


def clear(directory: Path) -> None:
    for entry in sorted(directory.rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() else entry.unlink()


def lftp(stage: Stage, directory: str) -> None:
    stage.run("lftp", "-c", f"open {stage.ftp}; mirror -R --parallel=8 . {directory}")


def curl(stage: Stage, directory: str) -> None:
    for name in stage.files():
        url = f"{stage.ftp}/{directory}/{name}".replace(" ", "%20")
        stage.run("curl", "-sS", "--ftp-create-dirs", "-T", name, url)


def sftp(stage: Stage, directory: str) -> None:
    names = [".", *sorted({str(Path(name).parent) for name in stage.files()} - {"."})]
    batch = [f"mkdir {directory}/{name}" for name in names]
    batch += [f'put -p "{stage.local}/{name}" "{directory}/{name}"' for name in stage.files()]
    done = stage.scene.server.sftp("\n".join([*batch, ""]))
    assert done.returncode == 0, done.stderr


def rclone(stage: Stage, directory: str, protocol: str, port: int) -> None:
    made = subprocess.run(
        ["rclone", "obscure", PASSWORD], capture_output=True, text=True, check=True
    )
    login = (
        ("host", "127.0.0.1"),
        ("user", USER),
        ("port", str(port)),
        ("pass", made.stdout.strip()),
    )
    stage.run(
        *("rclone", "--config", "", "--retries", "1", "copy", ".", f":{protocol}:{directory}"),
        *(word for name, value in login for word in (f"--{protocol}-{name}", value)),
    )


def rclone_ftp(stage: Stage, directory: str) -> None:
    rclone(stage, directory, "ftp", stage.scene.server.port)


def rclone_sftp(stage: Stage, directory: str) -> None:
    rclone(stage, directory, "sftp", stage.scene.server.sftp_port)


def ncftpput(stage: Stage, directory: str) -> None:
    port = str(stage.scene.server.port)
    login = ("-u", USER, "-p", PASSWORD, "-P", port)
    entries = sorted(os.listdir(stage.local))
    stage.run("ncftpput", "-V", "-m", "-R", *login, "127.0.0.1", directory, *entries)


def wput(stage: Stage, directory: str) -> None:
    stage.run("wput", "--tries=1", "-nv", *stage.files(), f"{stage.ftp}/{directory}/")


#: What it does, and whether it needs `settle` where files are moved.
CLIENTS: dict[str, tuple[Callable[[Stage, str], None], bool]] = {
    "lftp": (lftp, False),
    "curl": (curl, False),
    "sftp": (sftp, False),
    "rcloneftp": (rclone_ftp, True),
    "rclonesftp": (rclone_sftp, True),
    "ncftpput": (ncftpput, True),
    "wput": (wput, False),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_each_file_that_a_client_uploads_becomes_one_task(few: Stage, name: str) -> None:
    upload, needs_settle = CLIENTS[name]
    directory = f"settled/{name}" if few.moves and needs_settle else name
    upload(few, directory)
    few.check(directory)


def test_each_file_of_a_large_mirror_by_8_connections_becomes_one_task(stage: Stage) -> None:
    clear(stage.local)
    # Hooks take their time, and have shown it once.
    for number in range(100 if stage.moves and stage.scene.mode == "hooks" else 500):
        file = stage.local / str(number % 25) / f"{number}.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{number}\n" * number)
    lftp(stage, "mirror")
    stage.check("mirror")
