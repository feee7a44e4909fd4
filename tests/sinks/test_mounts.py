"""Moves to filesystems that come, go, fill up and turn read-only. All of them real ones."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.moving import Yard, files
from watchman.uploads import mounts

pytestmark = pytest.mark.root


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def umount(directory: Path) -> None:
    subprocess.run(["umount", str(directory)], check=True)


def is_mount(directory: Path) -> bool:
    fd = os.open(directory, os.O_PATH)
    try:
        return mounts.is_mount(fd)
    finally:
        os.close(fd)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    """A mount point; whatever is mounted there at the end is unmounted."""
    directory = tmp_path / "storage"
    directory.mkdir()
    yield directory
    while directory.is_dir() and is_mount(directory):
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture
def open_yard(tmp_path: Path, storage: Path) -> Iterator[Callable[..., Yard]]:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yards: list[Yard] = []

    def open_yard(**options: Any) -> Yard:
        yards.append(Yard(tmp_path, storage, options))
        yards[-1].open()
        return yards[-1]

    yield open_yard
    for yard in yards:
        yard.close()
    signal.signal(signal.SIGIO, before)


def test_a_mount_is_told_from_a_directory(storage: Path) -> None:
    assert not is_mount(storage)
    assert is_mount(Path("/"))
    mount("-t", "tmpfs", "tmpfs", str(storage))
    assert is_mount(storage)
    umount(storage)
    (storage.parent / "other").mkdir()
    mount("--bind", str(storage.parent / "other"), str(storage))
    assert is_mount(storage), "a bind mount of the same filesystem"


def test_an_unmounted_destination_is_waited_for(
    open_yard: Callable[..., Yard], storage: Path
) -> None:
    yard = open_yard(mounted=True)
    first = yard.upload("a.csv")
    yard.deferred(f"destination {storage} is not mounted")
    assert files(storage) == {}
    mount("-t", "tmpfs", "tmpfs", str(storage))
    (upload,) = yard.take()
    assert upload.id == first
    yard.settle(upload)
    # While running: nothing is held open once all is moved, so that it can be unmounted.
    eventually(lambda: subprocess.run(["umount", str(storage)], check=False).returncode == 0)
    second = yard.upload("b.csv")
    eventually(lambda: any("not mounted" in row.get("reason", "") for row in yard.rows()))
    assert files(storage) == {}
    yard.restart()
    eventually(lambda: any("not mounted" in row.get("reason", "") for row in yard.rows()))
    mount("-t", "tmpfs", "tmpfs", str(storage))
    assert [upload.id for upload in yard.take()] == [second]
    assert files(storage) == {"b.csv": "1,2,3\n"}


def test_a_bind_mount_is_another_filesystem_to_move_to(
    open_yard: Callable[..., Yard], storage: Path
) -> None:
    (storage.parent / "other").mkdir()
    mount("--bind", str(storage.parent / "other"), str(storage))
    yard = open_yard(mounted=True)
    yard.moved("a/a.csv")
    assert files(storage) == {"a/a.csv": "1,2,3\n"}
    assert files(yard.ftp) == {}


def test_a_destination_that_is_the_source_by_another_way_is_refused(
    open_yard: Callable[..., Yard], storage: Path
) -> None:
    (storage.parent / "ftp").mkdir()
    mount("--bind", str(storage.parent / "ftp"), str(storage))
    yard = open_yard()
    yard.upload("a.csv")
    yard.deferred("the destination is the source")
    assert files(yard.ftp) == {"a.csv": "1,2,3\n"}


def test_a_full_destination_leaves_no_scraps_and_is_tried_again(
    open_yard: Callable[..., Yard], storage: Path
) -> None:
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(storage))
    (storage / "ballast").write_text("x" * 900_000)
    yard = open_yard()
    large = yard.upload("large.csv", "x" * 600_000)
    yard.deferred("No space left on device")
    small = yard.upload("small.csv", "x")
    (upload,) = yard.take()
    assert upload.id == small, "what fits is not held up"
    yard.settle(upload)
    assert set(files(storage)) == {"ballast", "small.csv"}
    assert set(files(yard.ftp)) == {"large.csv"}
    (storage / "ballast").unlink()
    assert [upload.id for upload in yard.take()] == [large]
    assert files(storage)["large.csv"] == "x" * 600_000


def test_a_destination_that_knows_no_attributes_takes_the_file_without(
    open_yard: Callable[..., Yard], storage: Path
) -> None:
    mount("-t", "ramfs", "ramfs", str(storage))
    yard = open_yard()
    path = yard.write("a.csv")
    os.setxattr(path, "user.origin", b"a scanner")
    yard.say(path)
    (upload,) = yard.take()
    assert files(storage) == {"a.csv": "1,2,3\n"}
    assert os.listxattr(upload.path) == []


def test_a_read_only_destination_is_tried_again(
    open_yard: Callable[..., Yard], storage: Path
) -> None:
    mount("-t", "tmpfs", "-o", "ro", "tmpfs", str(storage))
    yard = open_yard()
    upload_id = yard.upload("a/a.csv")
    yard.deferred("Read-only file system")
    assert files(yard.ftp) == {"a/a.csv": "1,2,3\n"}
    mount("-o", "remount,rw", str(storage))
    assert [upload.id for upload in yard.take()] == [upload_id]


def test_a_read_only_source_is_tried_again(open_yard: Callable[..., Yard], storage: Path) -> None:
    ftp = storage.parent / "ftp"
    ftp.mkdir()
    mount("-t", "tmpfs", "tmpfs", str(ftp))
    try:
        yard = open_yard()
        yard.close()
        yard.moving = False
        yard.open()
        upload_id = yard.upload("a.csv")
        mount("-o", "remount,ro", str(ftp))
        yard.start_movers()
        yard.deferred(f"{ftp}: Read-only file system")
        assert files(storage) == {}
        mount("-o", "remount,rw", str(ftp))
        assert [upload.id for upload in yard.take()] == [upload_id]
        assert files(storage) == {"a.csv": "1,2,3\n"}
        assert files(ftp) == {}
        yard.close()
    finally:
        subprocess.run(["umount", "--lazy", str(ftp)], check=True)
        shutil.rmtree(ftp)
        ftp.mkdir()


def test_an_unmounted_watch_is_waited_for(
    start_watchman: Callable[..., Daemon], tmp_path: Path
) -> None:
    ftp = tmp_path / "ftp"
    ftp.mkdir()
    (ftp / "below.csv").write_text("on the disk below")
    daemon = start_watchman(
        "[broker:b]\nurl = filesystem://broker\n[watch:ftp]\npath = ftp\nmounted = yes\n"
        "existing = yes\n[task:csv]\npattern = *.csv\nbroker = b\ntask = tests.record\n"
    )
    eventually(lambda: daemon.status()["watches"]["ftp"]["error"] == "not mounted")
    assert "watch ftp" in daemon.status()["problems"][0]
    mount("-t", "tmpfs", "tmpfs", str(ftp))
    try:
        eventually(lambda: daemon.status()["healthy"])
        (ftp / "a.csv").write_text("1")
        eventually(lambda: published(tmp_path / "broker"))
        umount(ftp)
        eventually(lambda: not daemon.status()["healthy"])
        (ftp / "below2.csv").write_text("on the disk below")
        mount("-t", "tmpfs", "tmpfs", str(ftp))
        eventually(lambda: daemon.status()["healthy"])
        (ftp / "b.csv").write_text("2")
        eventually(lambda: len(published(tmp_path / "broker")) == 2)
        names = sorted(os.path.basename(t["args"][0]) for t in published(tmp_path / "broker"))
        assert names == ["a.csv", "b.csv"]
        daemon.stop()
    finally:
        subprocess.run(["umount", "--lazy", str(ftp)], check=True)


def test_what_lies_on_a_mount_below_a_watch_is_waited_for_and_gone_once_deleted(
    start_watchman: Callable[..., Daemon], storage: Path, tmp_path: Path
) -> None:
    nested = tmp_path / "ftp/nested"
    nested.mkdir(parents=True)
    mount("-t", "tmpfs", "tmpfs", str(storage))
    mount("--bind", str(storage), str(nested))
    try:
        daemon = start_watchman(
            "[broker:b]\nurl = filesystem://broker\n[watch:ftp]\npath = ftp\n"
            "[task:csv]\npattern = *.csv\nbroker = b\ntask = tests.record\n"
        )
        eventually(lambda: daemon.status()["watches"]["ftp"]["last_scan"])
        daemon.ask("pause", name="broker:b")
        (nested / "sub").mkdir()
        for name in ("kept.csv", "deleted.csv", "sub/deleted.csv"):
            (nested / name).write_text("1")
        eventually(lambda: [bool(row["id"]) for row in daemon.queue()] == [True] * 3)
        umount(nested)
        daemon.ask("resume", name="broker:b")
        eventually(lambda: {"is away" in row["reason"] for row in daemon.queue()} == {True})
        shutil.rmtree(storage / "sub")
        (storage / "deleted.csv").unlink()
        assert len(daemon.queue()) == 3
        mount("--bind", str(storage), str(nested))
        eventually(lambda: daemon.queue() == [], timeout=30)
        (task,) = published(tmp_path / "broker")
        assert task["args"] == [str(nested / "kept.csv")]
        daemon.stop()
    finally:
        subprocess.run(["umount", "--lazy", str(nested)], check=True)


def test_what_was_deleted_before_devices_were_numbered_anew_is_gone(
    start_watchman: Callable[..., Daemon], tmp_path: Path
) -> None:
    """As at a boot; and what lies on a mount that is not there yet is waited for."""
    ftp, nested, new = tmp_path / "ftp", tmp_path / "ftp" / "nested", tmp_path / "new"
    for directory in (ftp, new / "ftp", new / "nested"):
        directory.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        disks = {name: stack.enter_context(disk(tmp_path / name)) for name in ("outer", "inner")}
        for directory in (new / "ftp", new / "nested", ftp, nested):
            stack.callback(unmounted, directory)
        mount(disks["outer"].attach(), str(ftp))
        nested.mkdir()
        mount(disks["inner"].attach(), str(nested))
        daemon = start_watchman(
            "[broker:b]\nurl = filesystem://broker\n[watch:ftp]\npath = ftp\n"
            "[task:csv]\npattern = *.csv\nbroker = b\ntask = tests.record\n"
        )
        eventually(lambda: daemon.status()["watches"]["ftp"]["last_scan"])
        daemon.ask("pause", name="broker:b")
        for directory in (ftp, nested):
            for name in ("kept.csv", "deleted.csv"):
                (directory / name).write_text("1")
        eventually(lambda: [bool(row["id"]) for row in daemon.queue()] == [True] * 4)
        ids = {row["path"]: row["id"] for row in daemon.queue()}
        daemon.stop()
        for directory, name in ((nested, "inner"), (ftp, "outer")):
            before = directory.stat().st_dev
            umount(directory)
            mount(disks[name].attach(), str(new / directory.name))
            assert (new / directory.name).stat().st_dev != before
            (new / directory.name / "deleted.csv").unlink()
        mount("--bind", str(new / "ftp"), str(ftp))
        daemon.start()
        daemon.ask("resume", name="broker:b")
        eventually(lambda: len(daemon.queue()) == 2, timeout=30)
        eventually(lambda: {"is away" in row["reason"] for row in daemon.queue()} == {True})
        mount("--bind", str(new / "nested"), str(nested))
        eventually(lambda: daemon.queue() == [], timeout=30)
        sent = {task["args"][0]: task["id"] for task in published(tmp_path / "broker")}
        kept = [str(ftp / "kept.csv"), str(nested / "kept.csv")]
        assert sent == {path: ids[path] for path in kept}
        daemon.stop()


class LoopDisk:
    """An ext4 filesystem in a file."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.devices: list[str] = []

    def attach(self) -> str:
        """Return a loop device that shows it: each time another one."""
        command = ["losetup", "--find", "--show", str(self.image)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        self.devices.append(done.stdout.strip())
        return self.devices[-1]


@contextlib.contextmanager
def disk(image: Path) -> Iterator[LoopDisk]:
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    one = LoopDisk(image)
    yield one
    for device in one.devices:
        subprocess.run(["losetup", "--detach", device], check=True)


def unmounted(directory: Path) -> None:
    while directory.exists() and is_mount(directory):
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
