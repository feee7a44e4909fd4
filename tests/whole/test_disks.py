"""What disks do at night: full, read-only, away, or failing call by call, under the real daemon.

Each time: what cannot be done is deferred and shown with its reason, work goes on by itself once
the cause is gone, nothing is lost or has two ids, and the log tells of changes, not of tries.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.servers.daemon import Daemon, published
from tests.support import bulk
from tests.support.deadline import eventually
from tests.support.filesystems import Disk, failing, mounted
from tests.support.translog import append, line
from watchman.errors import RequestRefused, SocketUnavailable
from watchman.store.journal import SEGMENT_SIZE
from watchman.uploads.upload import Task

pytestmark = pytest.mark.root

Start = Callable[..., Daemon]

#: Seconds after the cure of a fault within which everything has arrived.
RECOVERED = 10.0

#: Seconds that a query may take, whatever is wrong.
ANSWERED = 2.0

#: Seconds that a stop may take beyond `drain`, whatever is wrong.
STOPPED = 5.0

DRAIN = 1

INI = f"""
[watchman]
spool = {{tmp}}/spool
socket = {{tmp}}/watchman.sock
drain = {DRAIN}s
[broker:b]
url = filesystem://broker
[watch:in]
path = in
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

MOVE = """
[move:m]
source = in
destination = storage
"""


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    directory = tmp_path / "in"
    directory.mkdir()
    return directory


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Disk]:
    """The spool on a disk of its own."""
    with mounted(tmp_path / "spool") as disk:
        yield disk


def announce(daemon: Daemon, path: Path, event: str = "completed", **fields: str) -> str:
    """Why a hook's word of a file is answered ERROR; "" if it is not."""
    try:
        daemon.ask(event, path=str(path), **fields)
    except (RequestRefused, SocketUnavailable) as refusal:
        # The socket's client asks queries, and takes any other answer for a fault.
        word = str(refusal)
        return word if "cannot be written" in word else ""
    return ""


def choke(daemon: Daemon, spool: Disk, incoming: Path) -> list[str]:
    """Fill the spool, and upload files until the last page of the journal is full as well."""
    spool.fill()
    names: list[str] = []
    before = daemon.log.count("Journal cannot be written")
    while daemon.log.count("Journal cannot be written") == before:
        assert len(names) < 30
        names.append(f"{len(names)}-{before}-{'long' * 50}.csv")
        (incoming / names[-1]).write_text("12345")
        time.sleep(0.05)
    return names


def answered(daemon: Daemon) -> list[str]:
    """See that queries are answered in time; return the problems that `status` tells of."""
    began = time.monotonic()
    problems = list(daemon.status()["problems"])
    daemon.queue()
    assert time.monotonic() - began < ANSWERED
    return problems


def stopped(daemon: Daemon) -> None:
    """See that the daemon ends in time, and in order."""
    began = time.monotonic()
    daemon.stop()
    assert time.monotonic() - began < DRAIN + STOPPED


def ids(directory: Path) -> dict[str, set[str]]:
    """The ids of the tasks that were sent, by the name of their file."""
    found: dict[str, set[str]] = {}
    for task in published(directory / "broker"):
        found.setdefault(Path(task["args"][0]).name, set()).add(task["id"])
    return found


def each_once(directory: Path, *names: str) -> bool:
    """Whether these files have a task, and none has two ids."""
    found = ids(directory)
    assert all(len(one) == 1 for one in found.values()), found
    return found.keys() == set(names)


def test_a_full_spool_refuses_and_all_is_found_once_there_is_room(
    tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    (incoming / "old.csv").write_text("1")
    eventually(lambda: each_once(tmp_path, "old.csv"))
    names = ["old.csv", *choke(daemon, spool, incoming)]
    for n in range(30):
        (incoming / f"{n}.csv").write_text("1")
        assert "No space left" in eventually(lambda n=n: announce(daemon, incoming / f"{n}.csv"))
    assert any("cannot be written" in problem for problem in answered(daemon))
    (incoming / "old.csv").rename(incoming / "new.csv")
    old = {"from": str(incoming / "old.csv")}
    assert "No space left" in announce(daemon, incoming / "new.csv", "renamed", **old)
    # One that is tried anew, and the one before.
    assert len(list((spool.path / "journal").iterdir())) <= 2
    spool.free()
    names += [f"{n}.csv" for n in range(30)]
    eventually(lambda: each_once(tmp_path, *names), timeout=RECOVERED)
    eventually(lambda: daemon.status()["healthy"])
    assert daemon.log.count("Journal cannot be written") == 1
    assert daemon.log.count("Journal is written again") == 1
    daemon.kill()
    daemon.start()
    (incoming / "last.csv").write_text("1")
    eventually(lambda: each_once(tmp_path, *names, "last.csv"))


def test_a_stop_and_a_start_while_the_spool_is_full_lose_and_repeat_nothing(
    tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    daemon = start_watchman(INI + MOVE)
    (incoming / "early.csv").write_text("1")
    eventually(lambda: daemon.queue())
    names = ["early.csv", *choke(daemon, spool, incoming)]
    (tmp_path / "storage").mkdir()
    answered(daemon)
    stopped(daemon)
    daemon.start()
    assert "No space left" in eventually(lambda: announce(daemon, incoming / names[-1]))
    stopped(daemon)
    daemon.start()
    spool.free()
    eventually(lambda: each_once(tmp_path, *names), timeout=RECOVERED)
    eventually(lambda: daemon.queue() == [])
    assert sorted(p.name for p in (tmp_path / "storage").iterdir()) == sorted(names)


def test_a_move_that_cannot_be_written_down_does_not_hold_up_a_stop(
    tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    (tmp_path / "storage").mkdir()
    daemon = start_watchman(INI + MOVE)
    with failing(daemon, "fdatasync:error=EIO:when=2+"):
        (incoming / "a.csv").write_text("1")
        # Accepted, moved, and the journal fails when that is to be written down.
        eventually(lambda: (tmp_path / "storage" / "a.csv").exists())
        eventually(lambda: "cannot be written" in daemon.log)
        assert [row["path"] for row in daemon.queue()] == [str(incoming / "a.csv")]
        stopped(daemon)
    assert ids(tmp_path) == {}
    daemon.start()
    eventually(lambda: each_once(tmp_path, "a.csv"), timeout=RECOVERED)
    eventually(lambda: daemon.queue() == [])


def test_nothing_is_sent_while_it_could_not_be_written_down(
    tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    daemon.run("pause", "broker:b")
    for n in range(500):
        (incoming / f"{n}.csv").write_text("1")
    eventually(lambda: daemon.status()["uploads"]["waiting"] == 500)
    names = choke(daemon, spool, incoming)
    refused = daemon.run("resume", "broker:b")
    assert refused.returncode == 1
    assert "No space left on device" in refused.stderr
    assert daemon.status()["paused"][0]["name"] == "broker:b"
    spool.free()
    eventually(lambda: "is written again" in daemon.log)
    daemon.run("resume", "broker:b")
    with failing(daemon, "fdatasync:error=EIO:when=2+"):
        eventually(lambda: daemon.log.count("Journal cannot be written") == 2)
        assert len(daemon.queue()) >= 300
        stopped(daemon)
        sent = len(published(tmp_path / "broker"))
    assert sent < 300
    daemon.start()
    names += [f"{n}.csv" for n in range(500)]
    eventually(lambda: each_once(tmp_path, *names))
    # What was in hand when the journal failed.
    assert len(published(tmp_path / "broker")) < len(names) + 2 * 64


def test_a_transfer_log_is_read_on_where_it_was_when_the_spool_was_full(
    tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    log = tmp_path / "uploads.log"
    log.write_text("")
    proftpd = f"[proftpd]\ntransfer_log = {log}\ntoken = a-secret\n"
    ini = INI.replace("path = in", "path = in\nproftpd = yes\nunconfirmed = hold\nconfirm = 2s")
    daemon = start_watchman(ini + proftpd)
    spool.fill()
    names = ["good.csv", "later.csv"]
    for n in range(9):
        names.append(f"{n}-{'long' * 50}.csv")
        (incoming / names[-1]).write_text("12345")
        append(log, line(str(incoming / names[-1])))
    eventually(lambda: "cannot be written" in daemon.log)
    for name in ("good.csv", "bad.csv"):
        (incoming / name).write_text("12345")
    append(log, line(str(incoming / "good.csv")))
    append(log, line(str(incoming / "bad.csv"), status="426", transfer="failed"))
    answered(daemon)
    stopped(daemon)
    daemon.start()
    append(log, line(str(incoming / "later.csv")))
    (incoming / "later.csv").write_text("12345")
    eventually(lambda: daemon.log.count("Journal cannot be written") == 2)
    spool.free()
    eventually(lambda: each_once(tmp_path, *names), timeout=RECOVERED)
    rows = eventually(lambda: [row for row in daemon.queue() if row["state"] == "failed"])
    assert [row["path"] for row in rows] == [str(incoming / "bad.csv")]
    # Each line has been heard once, whatever else has spoken of its file.
    daemon.restart()
    assert [row["path"] for row in daemon.queue()] == [str(incoming / "bad.csv")]
    assert each_once(tmp_path, *names)
    assert daemon.status()["warnings"] == []


@pytest.mark.parametrize("call", ["fdatasync", pytest.param("write", marks=pytest.mark.soak)])
def test_what_a_failing_disk_has_kept_of_a_refused_batch_is_no_second_upload(
    call: str, tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    """The record of who was answered ERROR stays on disk for now: it cannot even be cut off."""
    daemon = start_watchman(INI)
    segments = [spool.path / "journal" / f"{n:08}.jsonl" for n in range(1, 9)]
    with failing(daemon, f"{call}:error=EIO", "ftruncate,unlink:error=EIO", paths=segments):
        (incoming / "a.csv").write_text("1")
        assert "Input/output error" in eventually(lambda: announce(daemon, incoming / "a.csv"))
        assert any("cannot be written" in problem for problem in answered(daemon))
        assert ids(tmp_path) == {}
    eventually(lambda: each_once(tmp_path, "a.csv"), timeout=RECOVERED)
    (incoming / "b.csv").write_text("1")
    eventually(lambda: each_once(tmp_path, "a.csv", "b.csv"))
    assert daemon.log.count("Journal cannot be written") == 1
    daemon.kill()
    daemon.start()
    (incoming / "c.csv").write_text("1")
    eventually(lambda: each_once(tmp_path, "a.csv", "b.csv", "c.csv"))


def test_a_record_that_cannot_be_read_back_is_shown_and_tried_again(
    tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    segments = [spool.path / "journal" / f"{n:08}.jsonl" for n in range(1, 3)]
    daemon.run("pause", "broker:b")
    for n in range(20):
        (incoming / f"{n}.csv").write_text("1")
    eventually(lambda: len(daemon.queue()) == 20)
    daemon.restart()  # until then they are in memory as well
    with failing(daemon, "pread64:error=EIO", paths=segments):
        daemon.run("resume", "broker:b")
        eventually(lambda: daemon.status()["uploads"]["deferred"] == 20)
        rows = daemon.queue()
        assert len(rows) == 20
        assert all("its record cannot be read" in row["reason"] for row in rows)
        assert "its record cannot be read" in daemon.run("queue").stdout
        answered(daemon)
    eventually(lambda: each_once(tmp_path, *(f"{n}.csv" for n in range(20))), timeout=RECOVERED)
    assert daemon.log.count("ERROR") == 1


def test_a_spool_with_room_for_little_fills_no_log_and_gets_on(
    tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    """Single records fit, a batch does not."""
    daemon = start_watchman(INI)
    names = [f"{n}-{'long' * 50}.csv" for n in range(300)]
    daemon.stop()
    for name in names:
        (incoming / name).write_text("1")
    spool.fill(but=100_000)
    daemon.start()
    eventually(lambda: "Journal cannot be written" in daemon.log)
    began = time.monotonic()
    answered(daemon)
    eventually(lambda: time.monotonic() > began + 3)  # over some tries
    assert daemon.log.count("Journal cannot be written") == 1
    spool.free()
    eventually(lambda: each_once(tmp_path, *names), timeout=2 * RECOVERED)


def test_a_log_file_that_cannot_be_written_is_said_once_and_holds_up_nothing(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    with mounted(tmp_path / "log") as disk:
        log = disk.path / "watchman.log"
        ini = INI.replace("drain", f"log_file = {log}\ndrain")
        daemon = start_watchman(ini, started=False)
        daemon.begin()
        eventually(lambda: log.exists() and "Started" in log.read_text())
        disk.fill()
        names = [f"full{n}.csv" for n in range(300)]
        for name in names:
            (incoming / name).write_text("1")
        eventually(lambda: each_once(tmp_path, *names))
        answered(daemon)
        disk.free()
        (incoming / "room.csv").write_text("1")
        eventually(lambda: "lines were lost" in log.read_text())
        # logrotate has moved it, and there is no room for a new one; then not even its directory.
        log.rename(disk.path / "watchman.log.1")
        (incoming / "rotated.csv").write_text("1")
        names += ["room.csv", "rotated.csv"]
        eventually(lambda: each_once(tmp_path, *names))
        disk.unmount()
        (tmp_path / "log").rmdir()
        (incoming / "gone.csv").write_text("1")
        names.append("gone.csv")
        eventually(lambda: each_once(tmp_path, *names))
        answered(daemon)
        (tmp_path / "log").mkdir()
        (incoming / "back.csv").write_text("1")
        eventually(lambda: "lines were lost" in log.read_text() if log.exists() else False)
        eventually(lambda: each_once(tmp_path, *names, "back.csv"))
        assert 1 <= len(daemon.log.splitlines()) <= 2, daemon.log
        stopped(daemon)


def test_what_hooks_say_of_failures_while_the_spool_is_full_is_kept_in_mind(
    tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    daemon = start_watchman(INI.replace("path = in", "path = in\nproftpd = yes\nconfirm = 3s"))
    spool.fill()
    names = [f"{n}-{'long' * 50}.csv" for n in range(9)]
    for name in names:
        (incoming / name).write_text("1")
        announce(daemon, incoming / name)
    eventually(lambda: "Journal cannot be written" in daemon.log)
    hook = f"{ROOT}/proftpd/watchman-hook --socket {tmp_path}/watchman.sock"
    for ending in (f"{hook} failed path={incoming}/a.csv reason=aborted", "kill -9 $$"):
        name = f"{'a' if 'failed' in ending else 'b'}.csv"
        session = f"{hook} started path={incoming}/{name}; echo 1 > {incoming}/{name}; {ending}; :"
        subprocess.run(["sh", "-c", session], check=False, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + 3.5)  # over `confirm`
    spool.free()
    eventually(lambda: each_once(tmp_path, *names), timeout=RECOVERED)
    rows = eventually(lambda: len(rows := daemon.queue()) == 2 and rows)
    reasons = {Path(row["path"]).name: row["reason"] for row in rows if row["state"] == "failed"}
    assert reasons == {"a.csv": "aborted", "b.csv": "its session died"}
    daemon.kill()
    daemon.start()
    assert {row["reason"] for row in daemon.queue()} == {"aborted", "its session died"}
    assert each_once(tmp_path, *names)


@pytest.mark.parametrize(
    "fault",
    [
        "full",
        "linkat",
        *(pytest.param(one, marks=pytest.mark.soak) for one in ("read-only", "fsync")),
    ],
)
def test_an_embedded_broker_whose_disk_fails_gets_everything_once_it_does_not(
    fault: str, tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    reasons = {"full": "No space left on device", "read-only": "Read-only file system"}
    names = [f"{n}.csv" for n in range(5)]
    with mounted(tmp_path / "broker") as disk, contextlib.ExitStack() as failure:
        daemon = start_watchman(INI)
        (incoming / "before.csv").write_text("1")
        eventually(lambda: each_once(tmp_path, "before.csv"))
        if fault == "full":
            disk.fill()
        elif fault == "read-only":
            disk.remount("ro")
        else:
            failure.enter_context(failing(daemon, f"{fault}:error=EIO"))
        for name in names:
            (incoming / name).write_text("1")
        eventually(lambda: daemon.status()["brokers"]["b"]["attempts"] >= 2)
        rows = daemon.queue()
        assert [row["state"] for row in rows] == ["deferred"] * len(names)
        reason = reasons.get(fault, "Input/output error")
        assert all(reason in row["reason"] for row in rows), rows
        assert any(reason in problem for problem in answered(daemon))
        # What may be there already is whole; nothing is left of what could not be written.
        left = [path.name for path in disk.path.iterdir() if path.name != "ballast"]
        assert [name for name in left if name.startswith(".")] == []
        if fault == "full":
            disk.free()
        elif fault == "read-only":
            disk.remount("rw")
        failure.close()
        eventually(lambda: each_once(tmp_path, "before.csv", *names), timeout=RECOVERED)
        eventually(lambda: daemon.queue() == [])
        assert daemon.log.count("Broker b is down") == 1
        eventually(lambda: daemon.log.count("Broker b is back") == 1)
        stopped(daemon)


def test_lines_that_are_read_again_after_a_full_spool_are_no_uploads_without_a_start(
    tmp_path: Path, incoming: Path, spool: Disk, start_watchman: Start
) -> None:
    log = tmp_path / "uploads.log"
    log.write_text("")
    proftpd = f"[proftpd]\ntransfer_log = {log}\ntoken = a-secret\n"
    daemon = start_watchman(INI.replace("path = in", "path = in\nproftpd = yes") + proftpd)
    names = [f"{n}-{'long' * 50}.csv" for n in range(12)]
    hook = f"{ROOT}/proftpd/watchman-hook --socket {tmp_path}/watchman.sock started"
    with contextlib.ExitStack() as stack:
        sessions = []
        for name in names:
            command = f"{hook} path={incoming}/{name}; exec sleep 60"
            session = stack.enter_context(subprocess.Popen(["sh", "-c", command]))
            stack.callback(session.kill)
            sessions.append(session)
        eventually(lambda: daemon.status()["sources"]["hook"]["heard"] == len(names))
        spool.fill()
        for name in names:
            (incoming / name).write_text("12345")
        ends = zip(names, sessions, strict=True)
        # All at once, so that all are read again, each second.
        append(log, b"".join(line(str(incoming / name), pid=s.pid) for name, s in ends))
        eventually(lambda: "Journal cannot be written" in daemon.log)
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 3)
        assert daemon.status()["sources"]["log"]["heard"] == 0
        spool.free()
        eventually(lambda: each_once(tmp_path, *names), timeout=RECOVERED)
        status = daemon.status()
        assert status["sources"]["log"]["heard"] == len(names)
        assert status["warnings"] == []


def test_a_history_that_cannot_be_written_holds_up_nothing_and_catches_up(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    # Few records fill a segment when their paths are long.
    old = incoming.joinpath(*["d" * 200] * 10, "old.csv")
    old.parent.mkdir(parents=True)
    old.write_text("12345")
    paths = [str(old)] * (SEGMENT_SIZE // (2 * len(str(old))))
    task = Task("csv", "b", "tests.record")
    last = bulk.write_journal(tmp_path / "spool", paths, lambda _: task, done=True)[-1]
    journal, history, ledger = (
        tmp_path / "spool" / name for name in ("journal", "history", "ledger")
    )
    settled = journal / "00000001.jsonl"
    assert settled.stat().st_size >= SEGMENT_SIZE
    subprocess.run(["chattr", "+i", str(history)], check=True)
    try:
        daemon = start_watchman(INI)
        eventually(lambda: "Journal not cleared" in daemon.log)
        ledgers = set()
        names = [f"{n}.csv" for n in range(10)]
        for name in names:
            (incoming / name).write_text("12345")
            eventually(lambda name=name: name in ids(tmp_path))
            ledgers |= {file.stat().st_mtime_ns for file in ledger.glob("?" * 16)}
        assert answered(daemon) == []
        assert len(ledgers) <= 3, "not written anew for each upload"
        assert settled.exists()
    finally:
        subprocess.run(["chattr", "-i", str(history)], check=True)
    eventually(lambda: not settled.exists(), timeout=RECOVERED)
    assert (history / settled.name).exists()
    eventually(lambda: "is cleared again" in daemon.log)
    assert daemon.log.count("Journal not cleared") == daemon.log.count("is cleared again") == 1
    assert "done" in daemon.run("explain", last).stdout
    assert each_once(tmp_path, *names)
