"""A file is known by its filesystem, inode and name, and by what it holds."""

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
from tests.support.inis import csv_tasks
from tests.support.needs import need

pytestmark = pytest.mark.root

INI = csv_tasks("""
[watch:in]
path = {tmp}/in
rescan = 1s
""")

Start = Callable[..., Daemon]

#: Files whose rights are changed together.
MANY = 2_000


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    directory = tmp_path / "in"
    directory.mkdir()
    return directory


@pytest.fixture
def mounts() -> Iterator[Callable[..., None]]:
    """Mounts something, until the end of the test."""
    with ExitStack() as stack:

        def mount(target: Path, *arguments: str) -> None:
            target.mkdir(exist_ok=True)
            subprocess.run(["mount", *arguments, str(target)], check=True)
            lazily = ["umount", "--lazy", str(target)]
            stack.callback(subprocess.run, lazily, check=False, capture_output=True)

        yield mount


def sent(tmp_path: Path) -> Counter[str]:
    tasks = published(tmp_path / "broker")
    return Counter(os.path.relpath(task["args"][0], tmp_path / "in") for task in tasks)


def scanned(daemon: Daemon, times: int = 2) -> None:
    """Wait until so many scans have begun and ended."""
    for _ in range(times):
        began = time.time()
        eventually(lambda began=began: (daemon.status()["watches"]["in"]["last_scan"] or 0) > began)


def image(path: Path, kind: str) -> Path:
    need(f"mkfs.{kind}")
    with path.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", str(path)], check=True)
    return path


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "subvolumes"])
def test_files_of_one_name_and_inode_on_two_filesystems_are_two(
    tmp_path: Path,
    incoming: Path,
    mounts: Callable[..., None],
    start_watchman: Start,
    kind: str,
) -> None:
    disks = [incoming / "one", incoming / "two"]
    if kind == "subvolumes":
        need("btrfs")
        mounts(incoming, "-o", "loop", str(image(tmp_path / "image", "btrfs")))
        for disk in disks:
            subprocess.run(["btrfs", "-q", "subvolume", "create", str(disk)], check=True)
    for number, disk in enumerate(disks):
        if kind == "tmpfs":
            mounts(disk, "-t", "tmpfs", "tmpfs")
        elif kind == "ext4":
            mounts(disk, "-o", "loop", str(image(tmp_path / f"image{number}", "ext4")))
    daemon = start_watchman(INI)
    names = [f"{number}.csv" for number in range(20)]
    for disk in disks:
        for name in names:
            (disk / name).write_text("1,2,3\n")
    inodes = [[(disk / name).stat().st_ino for name in names] for disk in disks]
    assert inodes[0] == inodes[1], "the same numbers on both"
    wanted = Counter(f"{disk.name}/{name}" for disk in disks for name in names)
    eventually(lambda: sent(tmp_path) == wanted, timeout=20)
    scanned(daemon)
    daemon.restart()
    scanned(daemon)
    assert sent(tmp_path) == wanted


def test_a_disk_that_was_away_brings_nothing_that_was_sent(
    tmp_path: Path, incoming: Path, mounts: Callable[..., None], start_watchman: Start
) -> None:
    disk, image_ = incoming / "disk", image(tmp_path / "image", "ext4")
    mounts(disk, "-o", "loop", str(image_))
    daemon = start_watchman(INI)
    (disk / "a.csv").write_text("1")
    eventually(lambda: sent(tmp_path) == Counter(["disk/a.csv"]))
    scanned(daemon)
    for down in (False, True):
        subprocess.run(["umount", str(disk)], check=True)
        scanned(daemon)
        if down:
            daemon.stop()
        subprocess.run(["mount", "-o", "loop", str(image_), str(disk)], check=True)
        if down:
            daemon.start()
        (disk / f"{down}.csv").write_text("12")
        eventually(lambda down=down: sent(tmp_path)[f"disk/{down}.csv"] == 1)
        scanned(daemon)
    assert set(sent(tmp_path).values()) == {1}


def test_chmod_of_many_files_makes_no_task(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    ini = INI.replace("rescan = 1s", "rescan = 0\nexisting = yes")
    for number in range(MANY):
        (incoming / f"{number}.csv").write_text(f"{number}")
    daemon = start_watchman(ini)
    eventually(lambda: daemon.status()["uploads"]["done"] == MANY, timeout=60)
    daemon.stop()
    subprocess.run(["chmod", "-R", "g+w", str(incoming)], check=True)
    # One of them was rewritten meanwhile, and shows it neither by its size nor by its mtime.
    rewritten = incoming / "1000.csv"
    before = rewritten.stat()
    rewritten.write_text("0001")
    os.utime(rewritten, ns=(before.st_atime_ns, before.st_mtime_ns))
    daemon.start()
    eventually(lambda: daemon.status()["uploads"]["done"] == 1, timeout=30)
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"], timeout=30)
    (incoming / "last.csv").write_text("1")
    eventually(lambda: daemon.status()["uploads"]["done"] == 2)
    names = [os.path.basename(t["args"][0]) for t in published(tmp_path / "broker")]
    assert Counter(names)["1000.csv"] == 2
    assert len(names) == MANY + 2
