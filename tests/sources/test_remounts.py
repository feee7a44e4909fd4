"""Disks, bind mounts and FUSE that come and go below a running watch, which no period scans."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.needs import need

pytestmark = pytest.mark.root

INI = """
[broker:b]
url = filesystem://broker
[watch:in]
path = {tmp}/link
rescan = 0
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

#: Seconds within which a mount is heard of.
HEARD = 2.0


class Disks:
    """Filesystems of the test, each with a file `there.csv`; all are unmounted at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stack = ExitStack()

    def mount(self, kind: str, target: Path) -> None:
        """Mount one: everything is ready when it appears, as with a disk that is plugged in."""
        source = self.directory / f"source{time.monotonic_ns()}"
        source.mkdir()
        if kind == "tmpfs":
            self._mount(source, "-t", "tmpfs", "tmpfs")
        (source / "d").mkdir()
        (source / "there.csv").write_text("1")
        (source / "d/there.csv").write_text("12")
        if kind == "fuse":
            need("bindfs")
            bindfs = subprocess.Popen(["bindfs", "-f", "-o", "nonempty", str(source), str(target)])
            self.stack.callback(bindfs.wait)
            self.stack.callback(bindfs.kill)
            eventually(lambda: os.path.ismount(target))
        elif kind == "tmpfs":
            subprocess.run(["mount", "--move", str(source), str(target)], check=True)
        else:
            self._mount(target, "--bind", str(source))
        self.stack.callback(self.umount, target, "--lazy", check=False)

    def _mount(self, target: Path, *arguments: str) -> None:
        subprocess.run(["mount", *arguments, str(target)], check=True)

    def umount(self, target: Path, *options: str, check: bool = True) -> None:
        subprocess.run(["umount", *options, str(target)], check=check, capture_output=not check)


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    # `mount --move` is refused below a shared mount, see mount(8).
    place = tmp_path / "disks"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    subprocess.run(["mount", "--make-private", str(place)], check=True)
    disks = Disks(place)
    with disks.stack:
        disks.stack.callback(disks.umount, place, "--lazy", check=False)
        yield disks


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    """Where the watch is, which its INI file names by a symlink."""
    directory = tmp_path / "in"
    directory.mkdir()
    (tmp_path / "link").symlink_to(directory)
    return directory


def sent(tmp_path: Path) -> Counter[str]:
    tasks = published(tmp_path / "broker")
    return Counter(os.path.relpath(task["args"][0], tmp_path / "link") for task in tasks)


def soon(fact: Callable[[], bool]) -> None:
    began = time.monotonic()
    eventually(fact)
    # The rest is for what a scan finds to be decided about, and for a machine that does more.
    assert time.monotonic() - began < HEARD + 3


@pytest.mark.parametrize(
    ("kind", "name", "lazily"),
    [
        ("tmpfs", "disk", False),
        ("tmpfs", "a/b/di sk\n\udce9\\040", True),
        ("bind", "a/b/di sk\n\udce9\\040", False),
        ("bind", "disk", True),
        ("fuse", "a/disk", False),
        ("fuse", "disk", True),
    ],
)
def test_what_is_mounted_is_watched_and_scanned_and_what_was_below_it_again_afterwards(
    tmp_path: Path,
    incoming: Path,
    disks: Disks,
    start_watchman: Callable[..., Daemon],
    kind: str,
    name: str,
    lazily: bool,
) -> None:
    disk = incoming / name
    (disk / "below").mkdir(parents=True)
    daemon = start_watchman(INI)
    wanted: Counter[str] = Counter()

    def write(path: str) -> None:
        (disk / path).write_text("12345")
        wanted[f"{name}/{path}"] += 1

    write("below/1.csv")
    eventually(lambda: sent(tmp_path) == wanted)
    for turn in range(2):
        disks.mount(kind, disk)
        wanted.update([f"{name}/there.csv", f"{name}/d/there.csv"])
        soon(lambda: sent(tmp_path) == wanted)
        write(f"d/{turn}.csv")
        eventually(lambda: sent(tmp_path) == wanted)
        disks.umount(disk, *(["--lazy"] if lazily else []))
        eventually(lambda: not os.path.ismount(disk))
        # At once, which the scan finds, and then, which an event tells of.
        write(f"below/{turn}.csv")
        soon(lambda: sent(tmp_path) == wanted)
        write(f"below/{turn} later.csv")
        soon(lambda: sent(tmp_path) == wanted)
    assert daemon.status()["healthy"], daemon.status()["problems"]


def test_a_bind_mount_of_what_is_watched_takes_nothing_from_its_own_place(
    tmp_path: Path, incoming: Path, disks: Disks, start_watchman: Callable[..., Daemon]
) -> None:
    for name in ("own", "other"):
        (incoming / name).mkdir()
    start_watchman(INI)
    subprocess.run(["mount", "--bind", str(incoming / "own"), str(incoming / "other")], check=True)
    disks.stack.callback(disks.umount, incoming / "other", "--lazy", check=False)
    (incoming / "own/a.csv").write_text("1")
    eventually(lambda: sum(sent(tmp_path).values()) == 1)
    (incoming / "other/b.csv").write_text("12")
    eventually(lambda: sum(sent(tmp_path).values()) == 2)
    disks.umount(incoming / "other")
    (incoming / "own/c.csv").write_text("123")
    (incoming / "other/d.csv").write_text("1234")
    eventually(lambda: {"own/c.csv", "other/d.csv"} <= sent(tmp_path).keys())
    assert sum(sent(tmp_path).values()) == 4


def test_a_watch_that_is_mounted_over_and_what_is_mounted_in_it(
    tmp_path: Path, incoming: Path, disks: Disks, start_watchman: Callable[..., Daemon]
) -> None:
    start_watchman(INI)
    disks.mount("tmpfs", incoming)
    soon(lambda: len(sent(tmp_path)) == 2)
    disks.mount("tmpfs", incoming / "d")
    soon(lambda: len(sent(tmp_path)) == 3)
    (incoming / "d/d/new.csv").write_text("1")
    eventually(lambda: sent(tmp_path)["d/d/new.csv"] == 1)
