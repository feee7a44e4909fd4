"""Who may read and write what the daemon makes, and who may read its secrets."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.filesystems import unprivileged
from watchman.config import inifile

INI = """\
[watchman]
spool = {tmp}/state/spool
socket = {tmp}/run/socket
log_file = {tmp}/watchman.log
[broker:b]
url = filesystem://{tmp}/broker
[broker:idle]
url = filesystem://{tmp}/idle
[watch:in]
path = {tmp}/in
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.root
@pytest.mark.parametrize("umask", [0o000, 0o777, 0o027])
def test_what_the_daemon_makes_has_its_modes_under_any_umask(
    umask: int, public_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    (public_path / "in").mkdir()
    prefix = ["sh", "-c", f'umask {umask:o}; exec "$@"', "sh", *unprivileged(public_path)]
    daemon = start_watchman(INI, directory=public_path, prefix=prefix, started=False)
    daemon.begin()
    log = public_path / "watchman.log"
    eventually(lambda: log.exists() and "Started" in log.read_text())
    daemon.ask("pause", name="broker:idle")
    (public_path / "in/a.csv").write_text("x")
    eventually(lambda: len(published(public_path / "broker")) == 1)
    daemon.stop()
    daemon.begin()
    eventually(lambda: log.read_text().count("Started") == 2)
    assert daemon.status()["paused"]
    (public_path / "in/b.csv").write_text("x")
    eventually(lambda: len(published(public_path / "broker")) == 2)

    spool = public_path / "state/spool"
    names = set()
    for directory, _, files in os.walk(spool):
        assert mode(Path(directory)) == 0o700, directory
        for name in files:
            names.add(name)
            assert mode(Path(directory, name)) == 0o600, name
    assert names > {"lock", "paused.json", "00000001.jsonl"}
    assert mode(public_path / "state") == 0o755
    assert mode(log) == 0o640
    assert mode(public_path / "run/socket") == 0o666
    for file in (public_path / "broker").rglob("*"):
        assert mode(file) & 0o602 == 0o600, file


def test_a_log_file_that_is_there_keeps_its_mode(
    tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    (tmp_path / "in").mkdir()
    log = tmp_path / "watchman.log"
    log.touch()
    log.chmod(0o604)
    daemon = start_watchman(INI, started=False)
    daemon.begin()
    eventually(lambda: "Started" in log.read_text())
    assert mode(log) == 0o604


SECRETS = {
    "[broker:b]\nurl = redis://:hunter2@127.0.0.1:1/0": "[broker:b] url",
    "[broker:b]\nurl = filesystem://b\nredis_password = hunter2": "[broker:b] redis_password",
    '[celery]\nbroker_transport_options = {"password": "hunter2"}\n[broker:b]\nurl = redis://h/0': (
        "[celery] broker_transport_options"
    ),
    f"[proftpd]\ntransfer_log = /log\ntoken = {'x' * 20}\n[broker:b]\nurl = amqp://u:${{PATH}}@h": (
        "[proftpd] token"
    ),
}


@pytest.mark.parametrize("lines", SECRETS)
def test_a_secret_in_a_file_that_everyone_may_read_is_warned_of(lines: str, tmp_path: Path) -> None:
    ini = tmp_path / "watchman.ini"
    ini.write_text(INI.replace("[broker:b]\nurl = filesystem://{tmp}/broker", lines))
    ini.chmod(0o644)
    found = inifile.load(str(ini))
    assert found.exposed == (SECRETS[lines],)
    for closed in (0o640, 0o600):
        ini.chmod(closed)
        assert inifile.load(str(ini)).exposed == ()


def test_no_secret_is_seen_where_there_is_none(tmp_path: Path) -> None:
    ini = tmp_path / "watchman.ini"
    for url in ("redis://:${PATH}@h/0", "amqp://guest@h//", "filesystem://broker"):
        ini.write_text(INI.replace("filesystem://{tmp}/broker", url))
        assert inifile.load(str(ini)).exposed == ()


def test_check_run_and_reload_warn_of_an_exposed_secret(
    tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    (tmp_path / "in").mkdir()
    secret = "redis://:hunter2@127.0.0.1:1/0"
    daemon = start_watchman(INI.replace("filesystem://{tmp}/broker", secret), started=False)
    warning = (
        "[broker:b] url: a password or token, and everyone may read the file;"
        f" chmod o= {tmp_path}/watchman.ini"
    )
    assert f"WARN   config          {warning}\n" in daemon.run("check").stdout
    daemon.begin()
    log = tmp_path / "watchman.log"
    eventually(lambda: log.exists() and "Started" in log.read_text())
    assert f"WARNING watchman.daemon: {warning}." in log.read_text()
    daemon.configure(f"{daemon.ini.read_text()}admins = nobody\n".replace("[task:csv]", "[task:x]"))
    assert daemon.run("reload").returncode == 2
    daemon.configure(daemon.ini.read_text().replace("admins = nobody\n", ""))
    assert daemon.run("reload").returncode == 0
    assert log.read_text().count(warning) == 2
    daemon.ini.chmod(0o600)
    assert "hunter2" not in daemon.run("check").stdout
    assert warning not in daemon.run("check").stdout
