"""Each row of the troubleshooting table: its symptom is caused, and what it promises is said."""

import ftplib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import docutils.nodes
import pytest

from tests.project.test_docs import DOCS, parse
from tests.servers.brokers import RedisServer
from tests.servers.daemon import Daemon
from tests.servers.proftpd import ProftpdServer, public_directory
from tests.sources.test_hook import lines, run_with_log, system_log
from tests.support.deadline import eventually
from tests.support.filesystems import Disk, mounted, unprivileged
from tests.support.inis import AWAY, INI, WATCH, csv_tasks
from tests.support.scene import scene
from tests.support.watching import MemoryLedger
from tests.whole.test_disks import choke
from tests.whole.test_limits import NAMESPACE
from watchman.config.settings import WatchSettings
from watchman.sources.scan.scanner import Scanner

#: A fixture of other tests, used here by its name.
__all__ = ["system_log"]

Start = Callable[..., Daemon]

NOBODY = 65534


class Row(NamedTuple):
    """A row: the symptom, what is said, as a text and the parts that are said literally."""

    symptom: str
    said: str
    literals: list[str]

    def is_in(self, *outputs: str) -> bool:
        """Whether all that the row has literally is in one of these."""
        missing = [text for text in self.literals if not any(text in one for one in outputs)]
        assert not missing, (missing, outputs)
        return True


def rows() -> list[Row]:
    """The table's, as it stands."""
    tables = parse(DOCS / "troubleshooting.rst").findall(docutils.nodes.table)
    [table] = [table for table in tables if "symptoms" in table["classes"]]
    found = []
    for row in list(table.findall(docutils.nodes.row))[1:]:
        literals = [one.astext() for one in row[1].findall(docutils.nodes.literal)]
        # The symptom itself may be what is said, as that hooks say something.
        literals += [one.astext() for one in row[0].findall(docutils.nodes.literal)]
        found.append(Row(row[0].astext(), row[1].astext(), literals))
    return found


ROWS = rows()

#: The rows that tests are about.
TESTED: list[Row] = []


def about(said: str) -> pytest.MarkDecorator:
    """The test causes the symptom of the one row that has these words; it is given that row."""
    exact = [row for row in ROWS if said == row.said]
    [row] = exact or [row for row in ROWS if said in row.said or said in row.symptom]
    TESTED.append(row)
    return pytest.mark.parametrize("row", [row], ids=[said])


def test_each_row_has_a_test_of_its_own() -> None:
    assert len(ROWS) > 20
    assert sorted(TESTED) == sorted(ROWS)


SITE = """\
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
drain = 0s
[broker:b]
url = filesystem://broker
[broker:away]
url = redis://127.0.0.1:1/0
[broker:r]
url = REDIS
[watch:in]
path = {tmp}/in
exclude = *.bak
[watch:moved]
path = {tmp}/moved
[move:m]
source = {tmp}/moved
destination = {tmp}/storage
[task:away]
pattern = */away/*
broker = away
task = tests.record
[task:typed]
pattern = */typed/*
broker = r
task = tests.record
queue = troubles
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""


#: For a daemon whose user has `own` alone.
NOBODYS = """\
[watchman]
spool = {tmp}/own/spool
socket = {tmp}/own/socket
""" + csv_tasks(WATCH, url="filesystem://{tmp}/own/broker")


@pytest.fixture(scope="module")
def site(redis_server: RedisServer) -> Iterator[Daemon]:
    """A daemon that many rows are caused at; what waits there bothers none of the others."""
    with public_directory() as directory:
        for name in ("in/away", "in/typed", "moved"):
            (directory / name).mkdir(parents=True)
        daemon = Daemon(directory, SITE.replace("REDIS", redis_server.url))
        daemon.start()
        eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
        try:
            yield daemon
        finally:
            daemon.stop()
    assert "Traceback" not in daemon.log


def row_of(daemon: Daemon, path: Path) -> dict[str, Any] | None:
    """The file's row of `queue`."""
    return next((row for row in daemon.queue() if row["path"] == str(path)), None)


@about("no daemon answers")
def test_without_a_daemon_a_command_says_so_and_how_to_start_it(
    row: Row, tmp_path: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI, started=False)
    done = daemon.run("status")
    assert done.returncode == 3
    assert row.is_in(done.stderr)
    assert done.stderr.endswith(f"Start it with: watchman -c {daemon.ini} run\n")


@about("holds the spool")
def test_a_second_daemon_says_who_holds_the_spool(row: Row, site: Daemon) -> None:
    done = site.run("run")
    assert done.returncode == 4
    assert row.is_in(done.stderr)
    assert site.process is not None
    assert f"the daemon with pid {site.process.pid} holds the spool" in done.stderr


@pytest.mark.root
@about("belongs to")
def test_a_daemon_of_another_user_says_whose_the_spool_is(
    row: Row, tmp_path: Path, start_watchman: Start
) -> None:
    (tmp_path / "spool").mkdir()
    os.chown(tmp_path / "spool", NOBODY, NOBODY)
    done = start_watchman(INI, started=False).run("run")
    assert done.returncode == 2
    assert row.is_in(done.stderr)
    assert "let nobody run it: " in done.stderr


@pytest.mark.root
@about("cannot make the socket")
def test_a_daemon_without_a_place_for_its_socket_says_so(
    row: Row, public_path: Path, start_watchman: Start
) -> None:
    for name in ("in", "own", "run"):
        (public_path / name).mkdir()
    ini = f"[watchman]\nspool = {{tmp}}/own\nsocket = {{tmp}}/run/sock\n{INI}"
    prefix = unprivileged(public_path / "own")
    daemon = start_watchman(ini, directory=public_path, prefix=prefix, started=False)
    done = subprocess.run(
        daemon.command(), env=daemon.environment(), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert row.is_in(done.stderr)
    assert f"; nobody lacks w on '{public_path}/run'; chgrp nogroup " in done.stderr


@about("excludes it by the pattern")
def test_explain_says_why_a_file_makes_no_task(row: Row, site: Daemon) -> None:
    paths = (f"{site.directory}/in/a.bak", f"{site.directory}/in/a.txt", "/elsewhere/a.csv")
    assert row.is_in(site.run("explain", *paths).stdout)


@about("it is being written")
def test_a_file_that_a_program_has_open_is_in_the_queue_with_that_program(
    row: Row, site: Daemon
) -> None:
    path = site.directory / "in/open.csv"
    with path.open("w"):
        eventually(lambda: row_of(site, path))
        shown = site.run("queue").stdout
        assert row.is_in(shown)
        by = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()}, "
        assert f"open for writing by {by}" in shown
        assert f"open for writing by {by}" in site.run("explain", str(path)).stdout
    eventually(lambda: " done " in site.run("explain", str(path)).stdout)


@pytest.mark.root
@about("without CAP_LEASE")
def test_a_file_of_another_user_may_be_sent_while_it_is_open_and_check_warns_of_that(
    row: Row, public_path: Path, start_watchman: Start
) -> None:
    for name in ("in", "own"):
        (public_path / name).mkdir()
    path = public_path / "in/a.csv"
    daemon = start_watchman(
        NOBODYS, directory=public_path, prefix=unprivileged(public_path / "own")
    )
    with path.open("w"):
        path.write_text("half")
        eventually(lambda: daemon.status()["uploads"]["done"])
    assert row.is_in(daemon.run("check").stdout)


@about("with ProFTPD's reason")
def test_a_transfer_that_was_cut_off_is_listed_with_the_reason(row: Row, public_path: Path) -> None:
    with scene("hooks", public_path, max_store_file_size="1 Kb") as s:
        with pytest.raises(ftplib.all_errors):
            s.store("large.csv", "x" * 10_000)
        eventually(lambda: row_of(s.daemon, s.directory / "large.csv"))
        shown = s.daemon.run("queue").stdout
        assert row.is_in(shown)
        assert "ProFTPD" in shown
        s.store("large.csv")
        eventually(lambda: s.sent() == {"large.csv": 1})


@pytest.mark.root
@about("its watch is incomplete")
def test_a_directory_that_the_daemon_may_not_read_is_named_with_the_cure(
    row: Row, public_path: Path, start_watchman: Start
) -> None:
    for name in ("in/closed", "own"):
        (public_path / name).mkdir(parents=True)
    (public_path / "in/closed").chmod(0o700)
    prefix = unprivileged(public_path / "own")
    daemon = start_watchman(NOBODYS, directory=public_path, prefix=prefix)
    eventually(lambda: daemon.status()["problems"])
    assert row.is_in(daemon.run("status").stdout)
    [line] = [line for line in daemon.run("check").stdout.splitlines() if "/in/closed'" in line]
    subprocess.run(line.rpartition("; ")[2], shell=True, check=True)
    assert "/in/closed'" not in daemon.run("check").stdout


PROFTPD = """\
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
[watch:ftp]
path = {tmp}/home
proftpd = yes
[broker:b]
url = filesystem://broker
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""


def upload(server: ProftpdServer, name: str) -> None:
    with ftplib.FTP(timeout=30) as ftp:
        ftp.connect("127.0.0.1", server.port)
        ftp.login("alice", "secret")
        ftp.storbinary(f"STOR {name}", io.BytesIO(b"12345"))


@pytest.mark.root
@about("waiting for ProFTPD's word")
def test_where_hooks_do_not_run_check_names_the_line_that_keeps_them_from_it(
    row: Row, public_path: Path, start_watchman: Start, start_proftpd: Callable[..., ProftpdServer]
) -> None:
    (public_path / "home").mkdir()
    daemon = start_watchman(PROFTPD, directory=public_path)
    server = start_proftpd(chroot=True)
    upload(server, "a.csv")
    eventually(daemon.queue)
    status = daemon.run("status").stdout
    assert row.is_in(daemon.run("queue").stdout, status)
    assert re.search(r"^hook +0 +never", status, re.MULTILINE)
    checked = daemon.run("check", "--proftpd", str(server.configuration))
    assert checked.returncode == 1
    [line] = [line for line in checked.stdout.splitlines() if "DefaultRoot" in line]
    assert re.fullmatch(
        rf"ERROR +proftpd +{server.configuration}:\d+: DefaultRoot: no hook runs for users"
        " whom it locks in; use the transfer log",
        line,
    )


@pytest.mark.root
@about("have a path that names no place")
def test_below_mod_vroot_check_says_what_to_use_instead(row: Row, public_path: Path) -> None:
    with scene("hooks", public_path, vroot=True) as s:
        s.store("a.part")
        with s.ftp() as ftp:
            ftp.rename("a.part", "a.csv")
        eventually(lambda: s.daemon.status()["problems"])
        assert row.is_in(s.daemon.run("status").stdout)
        checked = s.daemon.run("check", "--proftpd", str(s.server.configuration)).stdout
        assert re.search(r"^ERROR .*: VRootEngine: .*; use the transfer log$", checked, re.M)


@pytest.mark.root
@about("Hooks say")
def test_a_hook_without_a_daemon_says_so_in_the_systems_log(
    row: Row,
    tmp_path: Path,
    system_log: Any,
    start_watchman: Start,
) -> None:
    socket = f"{tmp_path}/watchman.sock"
    run_with_log(tmp_path, "--socket", socket, "completed", "user=alice", "path=/srv/a.csv")
    [line] = lines(system_log)
    assert row.is_in(line.decode())
    assert "'user=alice' 'path=/srv/a.csv'" in line.decode()
    tmp_path.chmod(0o700)
    checked = start_watchman(INI, started=False).run("check").stdout
    assert f"FTP users cannot reach it through '{tmp_path}'; chmod o+x it" in checked


@about("broker down")
def test_a_broker_that_is_away_is_down_and_check_says_why(row: Row, site: Daemon) -> None:
    (site.directory / "in/away/a.csv").write_text("1")
    eventually(lambda: site.status()["brokers"]["away"]["state"] == "down")
    assert row.is_in(site.run("status").stdout)
    checked = site.run("check", "--brokers")
    assert checked.returncode == 1
    [line] = [line for line in checked.stdout.splitlines() if " broker:away " in line]
    assert line.startswith("ERROR")
    assert "refused" in line


@about("does not take upload")
def test_what_a_broker_does_not_take_is_deferred_with_its_reason(
    row: Row, site: Daemon, redis_server: RedisServer
) -> None:
    redis_server.ask("SET", "troubles", "no-list")
    path = site.directory / "in/typed/a.csv"
    path.write_text("1")
    found = eventually(lambda: (r := row_of(site, path)) and r["state"] == "deferred" and r)
    assert row.is_in(site.log)
    assert "WRONGTYPE" in found["reason"]
    assert "queue 'troubles'" in site.run("explain", str(path)).stdout


@about("if it is the destination")
def test_files_that_cannot_be_moved_are_deferred_with_directory_and_reason(
    row: Row, site: Daemon
) -> None:
    path = site.directory / "moved/a.csv"
    path.write_text("1")
    found = eventually(lambda: (r := row_of(site, path)) and r["state"] == "deferred" and r)
    assert f"{site.directory}/storage" in found["reason"]
    assert row.is_in(site.run("queue").stdout, site.run("status").stdout)
    assert site.status()["moves"]["m"]["state"] == "down"


@pytest.mark.root
@about("check and reload")
def test_a_move_that_rights_forbid_is_said_by_check_and_reload_with_the_cure(
    row: Row, public_path: Path, start_watchman: Start
) -> None:
    for name in ("in/bobs", "in/dropbox", "own", "to"):
        (public_path / name).mkdir(parents=True)
    os.chown(public_path / "in/bobs", 12345, 12345)
    (public_path / "in/dropbox").chmod(0o1777)
    os.chown(public_path / "to", NOBODY, NOBODY)
    prefix = unprivileged(public_path / "own")
    daemon = start_watchman(NOBODYS, directory=public_path, prefix=prefix)
    daemon.configure(f"{NOBODYS}[move:m]\nsource = {{tmp}}/in\ndestination = {{tmp}}/to\n")
    reloaded, checked = daemon.run("reload").stdout, daemon.run("check").stdout
    assert row.is_in(reloaded)
    assert row.is_in(checked)
    for line in reloaded.splitlines():
        if line.startswith("warning: [move:m] "):
            assert line.partition("[move:m] ")[2] in checked
            subprocess.run(line.partition("; ")[2], shell=True, check=True)
    assert daemon.run("reload").stdout == "nothing changed\n"
    assert daemon.run("check").returncode == 0


@about("done, in watchman explain")
def test_explain_says_that_a_task_was_sent_and_where_to(row: Row, site: Daemon) -> None:
    path = site.directory / "in/sent.csv"
    path.write_text("1")
    story = eventually(lambda: " done " in (t := site.run("explain", str(path)).stdout) and t)
    assert re.search(r"^    broker +\[broker:b\]$", story, re.MULTILINE)
    assert re.search(r"^    queue +celery$", story, re.MULTILINE)
    assert row.literals == ["watchman explain"]


@about("inotify lost events")
def test_events_that_were_lost_are_said_and_made_up_for(row: Row, site: Daemon) -> None:
    directory = site.directory / "in"
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    site.freeze()
    try:
        # No uploads: two events each.
        for number in range(limit // 2 + 1):
            os.close(os.open(directory / f".{number}", os.O_CREAT | os.O_WRONLY))
        (directory / "lost.csv").write_text("1")
    finally:
        site.thaw()
    eventually(lambda: row.literals[0] in site.log)
    eventually(lambda: " done " in site.run("explain", f"{directory}/lost.csv").stdout)


@about("cannot be watched")
def test_where_watches_run_out_the_log_names_the_limit(
    row: Row, tmp_path: Path, start_watchman: Start
) -> None:
    for number in range(10):
        (tmp_path / f"in/{number}").mkdir(parents=True)
    daemon = start_watchman(INI, prefix=NAMESPACE)
    eventually(lambda: row.literals[0] in daemon.log)
    assert "raise sysctl fs.inotify.max_user_watches" in daemon.log
    (tmp_path / "in/9/a.csv").write_text("1")


@about("many of them wait")
def test_a_scan_says_that_it_leaves_files_of_one_owner_for_later(
    row: Row, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The dispatcher takes 50,000; here it takes none."""
    caplog.set_level("INFO")
    (tmp_path / "a.csv").write_text("1")
    scanner = Scanner(
        [WatchSettings("in", str(tmp_path))],
        submit=lambda _: False,
        takes=lambda _: False,
        excluded=lambda *_: None,
        ledgers={"in": MemoryLedger()},
    )
    scanner.start()
    scanner.request("in", "")
    eventually(lambda: row.literals[0] in caplog.text)
    scanner.stop()
    scanner.join()


@pytest.mark.root
@about("Journal cannot be written")
def test_a_spool_that_is_full_is_said(row: Row, tmp_path: Path, start_watchman: Start) -> None:
    (tmp_path / "in").mkdir()
    with mounted(tmp_path / "spool") as disk:
        assert isinstance(disk, Disk)
        daemon = start_watchman(INI)
        names = choke(daemon, disk, tmp_path / "in")
        assert row.is_in(daemon.log)
        assert daemon.run("status").returncode == 1
        disk.free()
        eventually(lambda: daemon.status()["uploads"]["done"] == len(names), timeout=20)
        daemon.stop()


@about("Rescanning every watch")
def test_a_journal_that_was_damaged_is_said(
    row: Row, tmp_path: Path, start_watchman: Start
) -> None:
    (tmp_path / "in").mkdir()
    daemon = start_watchman(AWAY)
    (tmp_path / "in/a.csv").write_text("1")
    before = eventually(lambda: daemon.status()["uploads"]["deferred"] and daemon.queue())
    daemon.kill()
    [journal] = (tmp_path / "spool/journal").iterdir()
    text = journal.read_bytes()
    assert b"a.csv" in text
    journal.write_bytes(text.replace(b"a.csv", b"b.csv"))
    daemon.start()
    eventually(lambda: row.is_in(daemon.log) and daemon.queue())
    [found] = daemon.queue()
    assert found["path"] == before[0]["path"]
    assert found["id"] != before[0]["id"]
    shutil.rmtree(tmp_path / "in")
