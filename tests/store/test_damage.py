"""Power fails, or a disk loses what it had: the journal is cut or damaged, and nothing is lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.daemon import published
from tests.support.deadline import eventually
from tests.support.nursery import Nursery, NurseryDaemon
from tests.support.translog import TOKEN, append, line
from watchman.store.journal import Journal

INI = """
[broker:b]
url = filesystem://broker
[broker:away]
url = redis://127.0.0.1:1/0
[watch:ftp]
path = {tmp}/ftp
[watch:logged]
path = {tmp}/logged
proftpd = yes
confirm = 0.2
[proftpd]
transfer_log = {tmp}/uploads.log
token = a-secret
[task:wait]
pattern = *.wait
broker = away
task = tests.record
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

#: What ext4 and XFS leave where a block was not written when the power failed.
NULS = b"\0" * 4096


class Station:
    """A daemon, whose journal is damaged while it is down."""

    def __init__(self, nursery: Nursery, directory: Path) -> None:
        self.directory = directory
        for name in ("ftp", "logged"):
            (directory / name).mkdir(parents=True)
        self.log = directory / "uploads.log"
        self.log.touch()
        self.daemon = NurseryDaemon(nursery, directory, INI)
        self.daemon.start()

    def upload(self, name: str) -> str:
        """Upload a file and wait until it is accepted."""
        path = self.directory / "ftp" / name
        path.write_text("1,2,3")
        if name.endswith(".csv"):
            eventually(lambda: str(path) in self.paths())
        else:
            eventually(lambda: str(path) in self.waiting())
        return str(path)

    def upload_logged(self, name: str) -> str:
        path = self.directory / "logged" / name
        path.write_text("1,2,3")
        append(self.log, line(str(path)))
        eventually(lambda: str(path) in self.paths())
        return str(path)

    def paths(self) -> list[str]:
        return [task["args"][0] for task in published(self.directory / "broker")]

    def waiting(self) -> set[str]:
        return {row["path"] for row in self.daemon.queue() if row["state"] != "failed"}

    @property
    def journal(self) -> Path:
        """The segment that is written."""
        return max((self.directory / "spool" / "journal").iterdir())

    def end(self, *, orderly: bool) -> bytes:
        """End it; return what the journal holds. An orderly end writes the ledgers as well."""
        eventually(lambda: not [r for r in self.daemon.queue() if r["state"] == "noticed"])
        self.daemon.stop() if orderly else self.daemon.kill()
        return self.journal.read_bytes()

    def restart(self, journal: bytes | None = None) -> None:
        if journal is not None:
            self.journal.write_bytes(journal)
        self.daemon.start()
        eventually(lambda: self.daemon.log[self.daemon.begun :].count("Scanned watch") == 2)


@pytest.fixture
def station(nursery: Nursery, tmp_path: Path) -> Iterator[Station]:
    one = Station(nursery, tmp_path / "station")
    yield one
    one.daemon.stop()
    assert "Traceback" not in one.daemon.log


def record_of(journal: bytes, *words: str) -> bytes:
    """The line that holds all of these."""
    lines = journal.splitlines(keepends=True)
    (found,) = [text for text in lines if all(word.encode() in text for word in words)]
    return found


def test_a_last_batch_cut_between_its_lines_or_in_one_loses_no_upload_of_an_earlier_one(
    nursery: Nursery, tmp_path: Path
) -> None:
    one = Station(nursery, tmp_path / "station")
    kept = one.upload("kept.wait")
    before = len(one.end(orderly=False))
    one.restart()
    (one.directory / "ftp" / "last.csv").write_text("1,2,3")
    late = one.upload("last.wait")
    whole = one.end(orderly=False)
    spool = tmp_path / "spool"
    shutil.copytree(one.directory / "spool", spool)
    tail = whole[before:]
    ends = {before + n for n in (0, 1, len(tail) - 1)}
    # At each end of a line, and within one: test_journal does it at every byte, without a daemon.
    ends |= {
        before + n + d for n, c in enumerate(tail) if c == 10 for d in (-40, 0, 1) if n + d > 0
    }
    for end in sorted(ends):
        shutil.rmtree(one.directory / "spool")
        shutil.copytree(spool, one.directory / "spool")
        one.restart(whole[:end])
        eventually(lambda: one.waiting() == {kept, late})
        assert "cannot be read" not in one.daemon.log[one.daemon.begun :]
        one.daemon.kill()


@pytest.mark.parametrize("orderly", [False, True])
@pytest.mark.parametrize("damage", ["flipped", "nuls", "gone"])
def test_an_upload_whose_record_was_damaged_is_found_by_the_scan_that_follows(
    station: Station, damage: str, orderly: bool
) -> None:
    lost, other = station.upload("lost.wait"), station.upload("other.wait")
    journal = station.end(orderly=orderly)
    bad = record_of(journal, '"accepted"', lost)
    lost_id = bad.partition(b'"id":"')[2][:36].decode()
    damaged = {
        "flipped": bad.replace(b'"size"', b'"sizf"').replace(b"lost.wait", b"lust.wait", 1),
        "nuls": b"\0" * (len(bad) - 1) + b"\n",
        "gone": b"\n",
    }[damage]
    station.restart(journal.replace(bad, damaged))
    eventually(lambda: station.waiting() == {lost, other})
    log = station.daemon.log[station.daemon.begun :]
    assert log.count("cannot be read. Rescanning every watch") == 1
    # It cannot have its id again, but all others have.
    rows = {row["path"]: row["id"] for row in station.daemon.queue()}
    assert rows[lost] != lost_id
    assert rows[other].encode() in journal


@pytest.mark.parametrize("orderly", [False, True])
def test_an_upload_is_found_whose_record_a_closed_segment_has_lost_with_its_line(
    station: Station, orderly: bool
) -> None:
    kept, lost = station.upload("kept.wait"), station.upload("lost.wait")
    journal = station.end(orderly=orderly)
    first = station.journal
    spool = station.directory / "spool"
    writer = Journal(str(spool / "journal"), str(spool / "history"), segment_size=1)
    list(writer.replay())
    writer.write([{"event": "probed", "at": time.time()}])
    writer.close()
    assert station.journal != first
    first.write_bytes(journal[: journal.index(record_of(journal, '"accepted"', lost))])
    station.restart()
    eventually(lambda: station.waiting() == {kept, lost})
    log = station.daemon.log[station.daemon.begun :]
    assert f"bytes, and had {len(journal)}. Rescanning every watch" in log


@pytest.mark.parametrize("orderly", [False, True])
def test_what_is_done_is_not_sent_again_because_another_record_is_damaged(
    station: Station, orderly: bool
) -> None:
    done = [station.upload(f"{n}.csv") for n in range(5)]
    lost = station.upload("lost.wait")
    eventually(lambda: station.waiting() == {lost})
    journal = station.end(orderly=orderly)
    bad = record_of(journal, '"accepted"', lost)
    station.restart(journal.replace(bad, NULS + b"\n"))
    eventually(lambda: station.waiting() == {lost})
    station.daemon.restart()
    eventually(lambda: station.waiting() == {lost})
    assert sorted(station.paths()) == sorted(done)


def test_a_block_of_nuls_at_the_end_is_taken_for_an_unfinished_batch(station: Station) -> None:
    waits, done = station.upload("a.wait"), station.upload("a.csv")
    eventually(lambda: station.waiting() == {waits})
    journal = station.end(orderly=False)
    station.restart(journal + NULS)
    assert station.waiting() == {waits}
    assert "cannot be read" not in station.daemon.log
    late = station.upload("b.wait")
    station.daemon.kill()
    station.restart()
    assert station.waiting() == {waits, late}
    assert station.paths() == [done]


def test_a_whole_last_line_that_was_damaged_was_acknowledged_and_is_missed(
    station: Station,
) -> None:
    first, last = station.upload("first.wait"), station.upload("last.wait")
    journal = station.end(orderly=True)
    bad = record_of(journal, '"accepted"', last)
    # After it there is nothing, or what the broker has answered to it.
    before, _, _ = journal.partition(bad)
    station.restart(before + bad.replace(b'"size"', b'"sizf"')[:-20] + b"\n")
    eventually(lambda: station.waiting() == {first, last})


@pytest.mark.parametrize("orderly", [False, True])
def test_a_damaged_mark_of_the_transfer_log_neither_loses_nor_repeats(
    station: Station, orderly: bool
) -> None:
    sent = [station.upload_logged(f"{n}.csv") for n in range(3)]
    eventually(lambda: station.waiting() == set())
    journal = station.end(orderly=orderly)
    marks = [text for text in journal.splitlines(keepends=True) if b'"event":"read"' in text]
    assert len(marks) > 1
    # While it is down there is one more line, and the mark of those before it goes bad.
    late = station.directory / "logged" / "late.csv"
    late.write_text("1,2,3")
    append(station.log, line(str(late)))
    at = journal.rindex(marks[-1])
    damaged = marks[-1].replace(b"read", b"reed")
    station.restart(journal[:at] + damaged + journal[at + len(marks[-1]) :])
    eventually(lambda: str(late) in station.paths())
    eventually(lambda: station.waiting() == set())
    station.daemon.restart()
    assert sorted(station.paths()) == sorted([*sent, str(late)])
    assert TOKEN not in station.daemon.log
