"""Destinations at night, all at once under one daemon that is nobody: each holds up only itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.filesystems import Disk, failing, mounted, unprivileged
from tests.support.moving import files
from tests.support.needs import need
from watchman.sinks.moving.mover import HUNG

pytestmark = pytest.mark.root

Start = Callable[..., Daemon]

#: Seconds after the cure of a fault within which everything has arrived.
RECOVERED = 10.0

DRAIN = 1

HEAD = f"""
[watchman]
spool = {{tmp}}/spool
socket = {{tmp}}/watchman.sock
drain = {DRAIN}s
[broker:b]
url = filesystem://broker
"""

SECTION = """
[watch:{name}]
path = in/{name}
[move:{name}]
source = in/{name}
destination = to/{name}
mounted = {mounted}
[task:{name}]
pattern = */in/{name}/*
broker = b
task = tests.record
"""

#: Uploads for each destination: some in a directory that is not there yet.
NAMES = ("a.csv", "b.csv", "d/c.csv")

CONTENT = "1,2,3\n" * 3000


@dataclass
class Fault:
    """Something wrong with a destination: how it comes, how it is cured, what is said of it."""

    make: Callable[[Path], object]
    cure: Callable[[Path], object]
    reason: str
    mounted: bool = False
    #: Whether a disk is mounted there to begin with.
    disk: bool = False


def fill(path: Path) -> None:
    (path / "ballast").write_bytes(b"x" * ((1 << 20) - 8192))


def remount(how: str) -> Callable[[Path], object]:
    return lambda path: subprocess.run(["mount", "-o", f"remount,{how}", str(path)], check=True)


FAULTS = {
    "good": Fault(lambda _: None, lambda _: None, ""),
    "full": Fault(fill, lambda p: (p / "ballast").unlink(), "No space left on device", disk=True),
    "away": Fault(
        lambda p: subprocess.run(["umount", str(p)], check=True),
        lambda p: os.chown(Disk(p, "1m").path, 65534, 65534),
        "is not mounted",
        mounted=True,
        disk=True,
    ),
    "missing": Fault(
        lambda p: p.rmdir(),
        lambda p: (p.mkdir(), os.chown(p, 65534, 65534)),
        "is not there",
    ),
    "read_only": Fault(remount("ro"), remount("rw"), "Read-only file system", disk=True),
    "denied": Fault(lambda p: p.chmod(0o555), lambda p: p.chmod(0o755), "Permission denied"),
    "locked": Fault(lambda p: p.chmod(0o000), lambda p: p.chmod(0o755), "Permission denied"),
    "immutable": Fault(
        lambda p: subprocess.run(["chattr", "+i", str(p)], check=True),
        lambda p: subprocess.run(["chattr", "-i", str(p)], check=True),
        "Operation not permitted",
    ),
}


def change_times(directory: Path) -> dict[str, int]:
    """When each file was changed last, to the nanosecond, also by a rename and one back."""
    return {str(path): path.stat().st_ctime_ns for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """The destinations, without their faults yet."""
    to = tmp_path / "to"
    to.mkdir()
    for name, fault in FAULTS.items():
        (to / name).mkdir()
        if fault.disk:
            Disk(to / name, "1m")
    yield to
    subprocess.run(["chattr", "-R", "-i", str(to)], check=False, stderr=subprocess.DEVNULL)
    for name in FAULTS:
        subprocess.run(["umount", "--lazy", str(to / name)], check=False, stderr=subprocess.DEVNULL)


def test_what_is_wrong_with_a_destination_holds_up_only_what_goes_there(
    tmp_path: Path, places: Path, start_watchman: Start
) -> None:
    ini = HEAD
    for name, fault in FAULTS.items():
        (tmp_path / "in" / name / "d").mkdir(parents=True)
        ini += SECTION.format(name=name, mounted="yes" if fault.mounted else "no")
    owned = [tmp_path, *(tmp_path / "in").rglob("*"), *(places / name for name in FAULTS)]
    prefix = unprivileged(*owned)
    for name, fault in FAULTS.items():
        fault.make(places / name)
    daemon = start_watchman(ini, prefix=prefix)
    for name in FAULTS:
        for file in NAMES:
            (tmp_path / "in" / name / file).write_text(CONTENT)
            os.chown(tmp_path / "in" / name / file, 65534, 65534)
    eventually(lambda: len(files(places / "good")) == len(NAMES))
    faults = {name: fault for name, fault in FAULTS.items() if fault.reason}

    def tried(times: int) -> bool:
        """Whether each was tried so often, and is shown with its reason."""
        rows = daemon.queue()
        return all(
            {row["path"]: row for row in rows}.get(str(tmp_path / "in" / name / file), {}).get(
                "attempts", 0
            )
            >= times
            for name in faults
            for file in NAMES
        )

    times = change_times(tmp_path / "in")
    eventually(lambda: tried(3), timeout=20)
    assert change_times(tmp_path / "in") == times, "no file was touched"
    began = time.monotonic()
    rows, status = daemon.queue(), daemon.status()
    assert time.monotonic() - began < 2
    for row in rows:
        assert row["state"] == "deferred"
        assert faults[row["watch"]].reason in row["reason"], row
    assert len(rows) == len(faults) * len(NAMES)
    assert status["uploads"]["done"] == len(NAMES)
    for name, fault in faults.items():
        move = status["moves"][name]
        told = [move["error"] or "", *(held["reason"] for held in move["held_up"])]
        assert any(fault.reason in one for one in told), (name, move)
        assert any(
            one.startswith(f"move {name} ") and fault.reason in one for one in status["problems"]
        ), (name, status["problems"])
    began = time.monotonic()
    daemon.stop()
    assert time.monotonic() - began < DRAIN + 5
    assert {p: c for p, c in files(tmp_path / "in").items() if c != CONTENT} == {}
    assert len(files(tmp_path / "in")) == len(rows), "each is under its own name"
    # A line for each that is wrong, or for two of its directories; not for each try.
    warnings = [text for text in daemon.log.splitlines() if " WARNING " in text]
    for name in faults:
        assert 1 <= sum(f"move {name}:" in text for text in warnings) <= 3, warnings
    daemon.start()
    eventually(lambda: tried(1), timeout=20)
    for name, fault in faults.items():
        fault.cure(places / name)
    eventually(lambda: daemon.queue() == [], timeout=RECOVERED)
    for name in FAULTS:
        assert files(places / name) == dict.fromkeys(NAMES, CONTENT), name
    assert files(tmp_path / "in") == {}
    tasks = [task["args"][0] for task in published(tmp_path / "broker")]
    assert sorted(tasks) == sorted(str(places / name / file) for name in FAULTS for file in NAMES)
    eventually(lambda: daemon.status()["healthy"])


#: Calls of a move that fail for as long as it takes.
CALLS = {
    "file is renamed": ("rename", "renameat,renameat2:error=EIO"),
    "source is read": ("copy", "copy_file_range,sendfile:error=EIO"),
    "disk fills up": ("copy", "copy_file_range,sendfile:error=ENOSPC:when=2+"),
    "copy is synced": ("copy", "fsync:error=EIO"),
    "copy is linked": ("copy", "linkat:error=EIO"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_move_whose_calls_fail_is_deferred_and_made_once_they_do_not(
    name: str, tmp_path: Path, start_watchman: Start
) -> None:
    way, inject = CALLS[name]
    source, place = tmp_path / "in" / "x", tmp_path / "to" / "x"
    (source / "d").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        if way == "copy":
            stack.enter_context(mounted(tmp_path / "to"))
        place.mkdir(parents=True)
        (place / "a.csv").write_text("precious")
        daemon = start_watchman(HEAD + SECTION.format(name="x", mounted="no"))
        with failing(daemon, inject):
            for file in NAMES:
                (source / file).write_text(CONTENT)
            times = change_times(source)
            # With `when=2+` one file came through before the disk was full.
            left = 2 if "when" in inject else 3
            eventually(lambda: [row["attempts"] >= 2 for row in daemon.queue()] == [True] * left)
            assert change_times(source).items() <= times.items(), "no file was touched"
            rows = daemon.queue()
            assert {row["state"] for row in rows} == {"deferred"}
            reason = "No space left on device" if "ENOSPC" in inject else "Input/output error"
            assert all(reason in row["reason"] for row in rows), rows
            assert list(files(source).values()) == [CONTENT] * left
            assert not any(file.startswith(".") for file in files(source, place)), "no scraps"
            assert sum(" WARNING " in text for text in daemon.log.splitlines()) <= 3
        eventually(lambda: daemon.queue() == [], timeout=RECOVERED)
        moved = files(place)
        assert moved.pop("a.csv") == "precious"
        assert sorted(moved.values()) == [CONTENT] * 3
        assert files(source) == {}
        assert len(published(tmp_path / "broker")) == 3
        daemon.stop()


def test_filesystems_that_hang_hold_up_neither_commands_nor_a_stop(
    tmp_path: Path, start_watchman: Start
) -> None:
    """As a file server does that is gone: a call takes as long as it takes."""
    need("strace")
    names = ("x", "y", "z")
    for name in names:
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "to" / name).mkdir(parents=True)
    ini = HEAD + "".join(SECTION.format(name=name, mounted="no") for name in names)
    daemon = start_watchman(ini)
    with failing(daemon, "renameat2:delay_enter=20s"):
        for name in names:
            (tmp_path / "in" / name / "a.csv").write_text(CONTENT)
        eventually(lambda: len(daemon.queue()) == len(names))
        log = tmp_path / "strace.log"
        eventually(lambda: log.read_text().count("renameat2(") == len(names))
        began = time.monotonic()
        assert daemon.status()["uploads"]["waiting"] == len(names)
        assert time.monotonic() - began < 2
        daemon.signal(signal.SIGTERM)
        # All at once, not one after the other.
        eventually(lambda: "Stopped." in daemon.log, timeout=DRAIN + HUNG + 2)
    daemon.kill()
    daemon.start()
    eventually(lambda: daemon.queue() == [], timeout=RECOVERED)
    assert files(tmp_path / "in") == {}
    assert len(files(tmp_path / "to")) == len(published(tmp_path / "broker")) == len(names)


FULL = """
[watch:{name}]
path = in/{name}
rescan = 1s
proftpd = {proftpd}
confirm = 0.1s
[move:{name}]
source = in/{name}
destination = to
[task:{name}]
pattern = */in/{name}/*
broker = b
task = tests.record
"""


def test_a_file_stays_one_upload_however_often_a_full_destination_is_tried(
    tmp_path: Path, start_watchman: Start
) -> None:
    paths = [tmp_path / "in" / name / f"{name}.csv" for name in ("no", "yes")]
    with mounted(tmp_path / "to") as disk:
        # There is room for a directory and for the beginning of a file.
        disk.fill(but=8192)
        for path in paths:
            path.parent.mkdir(parents=True)
        ini = HEAD + "".join(FULL.format(name=name, proftpd=name) for name in ("no", "yes"))
        daemon = start_watchman(ini)
        for path in paths:
            path.write_text(CONTENT)
        times = change_times(tmp_path / "in")
        ids = set()
        for tries in (4, 1):
            eventually(lambda n=tries: [r["attempts"] >= n for r in daemon.queue()] == [True] * 2)
            ids |= {row["id"] for row in daemon.queue()}
            daemon.kill()
            daemon.start()
        assert change_times(tmp_path / "in") == times
        disk.free()
        eventually(lambda: daemon.queue() == [], timeout=RECOVERED)
        assert {task["id"] for task in published(tmp_path / "broker")} == ids
        assert len(ids) == len(published(tmp_path / "broker")) == 2
        daemon.stop()


def test_a_copy_that_takes_long_holds_up_neither_small_files_nor_a_stop(
    tmp_path: Path, start_watchman: Start
) -> None:
    source, large = tmp_path / "in" / "x", tmp_path / "in" / "x" / "large.csv"
    source.mkdir(parents=True)
    with mounted(tmp_path / "to", "100m") as disk:
        (disk.path / "x").mkdir()
        daemon = start_watchman(HEAD + SECTION.format(name="x", mounted="no"))
        slow = "copy_file_range,sendfile:delay_enter=1s"
        with failing(daemon, slow, paths=[large]):
            with large.open("wb") as file:
                file.write(b"1,2,3\n" * (8 << 20))
            eventually(lambda: list((disk.path / "x").glob(".watchman-*.copy")))
            before, (row,) = change_times(source), daemon.queue()
            for number in range(3):
                (source / f"{number}.csv").write_text(CONTENT)
            eventually(lambda: len(published(tmp_path / "broker")) == 3, timeout=3)
            eventually(lambda: daemon.queue() == [row])
            assert row["state"] == "waiting"
            assert daemon.status()["healthy"]
            began = time.monotonic()
            daemon.stop()
            assert time.monotonic() - began < DRAIN + 3
        assert change_times(source) == before, "it was not touched"
        assert files(disk.path / "x").keys() == {"0.csv", "1.csv", "2.csv"}
        daemon.start()
        eventually(lambda: daemon.queue() == [], timeout=RECOVERED)
        assert published(tmp_path / "broker")[-1]["id"] == row["id"]
        assert (disk.path / "x" / "large.csv").stat().st_size == 6 * (8 << 20)
        daemon.stop()
