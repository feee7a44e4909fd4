"""What `run` refuses to touch, and what is advised: following it does no harm."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.filesystems import unprivileged
from tests.support.inis import WATCH, csv_tasks
from watchman.commands.shared import keeper
from watchman.config import trusted
from watchman.config.locations import DEFAULT_FILE

Start = Callable[..., Daemon]

NOBODY = 65534

INI = """\
[watchman]
spool = {tmp}/own/spool
socket = {tmp}/own/socket
log_file = {tmp}/own/log
""" + csv_tasks(WATCH, url="filesystem://{tmp}/own/broker")


def everything(directory: Path) -> list[tuple[str, int, int, int]]:
    """What there is below a directory, whose it is, and when it was changed."""
    found = [(path, path.lstat()) for path in sorted(directory.rglob("*"))]
    return [(str(path), s.st_uid, s.st_mode, s.st_mtime_ns) for path, s in found]


@pytest.fixture
def yard(public_path: Path) -> Path:
    (public_path / "in").mkdir()
    (public_path / "own").mkdir()
    return public_path


@pytest.fixture
def nobodys(yard: Path, start_watchman: Start) -> Daemon:
    """A daemon of nobody's that has run, and does not now."""
    daemon = start_watchman(INI, directory=yard, prefix=unprivileged(yard / "own"), started=False)
    daemon.begin()
    log = yard / "own/log"
    eventually(lambda: log.exists() and "Started" in log.read_text())
    daemon.stop()
    daemon.output.write_text("")
    return daemon


def run(daemon: Daemon) -> tuple[int, str]:
    """How a start ends that must fail, and the one line that it says."""
    done = subprocess.run(
        daemon.command(),
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    [line] = done.stdout.splitlines()
    return done.returncode, line


@pytest.mark.root
def test_run_leaves_the_spool_of_another_user_alone_and_says_whose_it_is(
    yard: Path, nobodys: Daemon
) -> None:
    before, as_nobody = everything(yard / "own"), nobodys.prefix
    nobodys.prefix = []
    code, line = run(nobodys)
    assert code == 2
    assert f"the spool '{yard}/own/spool' belongs to nobody, and this is root; " in line
    assert line.endswith(f"let nobody run it: runuser -u nobody -- watchman -c {nobodys.ini} run")
    assert everything(yard / "own") == before
    nobodys.prefix = as_nobody
    nobodys.begin()
    eventually(lambda: (yard / "own/log").read_text().count("Started") == 2)


@pytest.mark.root
def test_run_says_which_file_in_the_spool_is_not_its_users_and_what_cures_it(
    yard: Path, nobodys: Daemon
) -> None:
    [ledger, *_] = (yard / "own/spool/ledger").iterdir()
    os.chown(ledger, 0, 0)
    ledger.chmod(0o600)
    code, line = run(nobodys)
    assert code == 2
    said, _, cure = line.partition("; ")
    assert f"'{ledger}' in the spool belongs to root, and nobody may not read and write it" in said
    assert cure == f"chown -R nobody: {yard}/own/spool"
    checked = subprocess.run(
        [*nobodys.prefix, *nobodys.watchman("check")],
        env=nobodys.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    [told] = [line for line in checked.stdout.splitlines() if line.startswith("ERROR")]
    assert told.split(maxsplit=2)[1:] == ["spool", line.removeprefix("watchman: ")]
    subprocess.run(cure, shell=True, check=True)
    nobodys.begin()
    eventually(lambda: (yard / "own/log").read_text().count("Started") == 2)


@pytest.mark.root
def test_run_offers_a_spool_of_roots_to_the_user_who_is_to_run_it(
    yard: Path, nobodys: Daemon
) -> None:
    shutil.chown(yard / "own/spool", "root", "root")
    code, line = run(nobodys)
    assert code == 2
    assert "belongs to root, and this is nobody; let root run it: " in line
    assert line.endswith(f"; or if nobody is to run it: chown -R nobody: {yard}/own/spool")


@pytest.mark.root
def test_run_says_which_right_it_lacks(yard: Path, nobodys: Daemon) -> None:
    log = yard / "own/log"
    log.unlink()
    (yard / "own").chmod(0o755)
    os.chown(yard / "own", 0, 0)
    code, line = run(nobodys)
    assert code == 1
    assert f"Permission denied: '{log}'; nobody lacks w on '{yard}/own'; chgrp nogroup" in line


def test_a_start_is_left_to_what_keeps_the_daemon_running(tmp_path: Path) -> None:
    assert keeper.start_kept(DEFAULT_FILE, str(tmp_path)) == ""
    for place, command, text in (
        ("etc/supervisor/conf.d/watchman.conf", "supervisorctl start watchman", "command=w run"),
        ("etc/systemd/system/watchman.service", "systemctl start watchman", "ExecStart=w run"),
    ):
        file = tmp_path / place
        file.parent.mkdir(parents=True)
        file.write_text(text)
        assert keeper.start_kept(DEFAULT_FILE, str(tmp_path)) == command
        # Another daemon is not what it starts.
        assert keeper.start_kept("/srv/other.ini", str(tmp_path)) == ""
        file.write_text(text.replace("w run", "w -c /srv/other.ini run"))
        assert keeper.start_kept("/srv/other.ini", str(tmp_path)) == command
        file.unlink()


def test_no_start_is_advised_with_a_file_that_is_not_there(tmp_path: Path) -> None:
    ini = tmp_path / "a b.ini"
    assert keeper.how_to_start(str(ini)) == ""
    ini.touch()
    assert keeper.how_to_start(str(ini)) == f"watchman -c '{ini}' run"


@pytest.mark.root
@pytest.mark.parametrize("group", [0, 4])
def test_who_closes_an_ini_file_as_advised_does_not_shut_out_the_daemon(
    public_path: Path, group: int
) -> None:
    file = public_path / "watchman.ini"
    file.write_text("a secret")
    os.chown(file, 0, group)
    file.chmod(0o644)
    subprocess.run(trusted.how_to_close(str(file), NOBODY), shell=True, check=True)
    for user, may_read in ((NOBODY, True), (12345, False)):
        done = subprocess.run(
            ["/bin/cat", file],
            user=user,
            group=user,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
        assert (done.returncode == 0) == may_read
    assert trusted.how_to_close(str(file), 0) == f"chmod o= {file}"
