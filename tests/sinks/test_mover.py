"""Moving uploads to their destination, on one filesystem and across two."""

import os
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deadline import eventually
from tests.support.moving import Yard, files
from watchman.config.settings import MoveSettings
from watchman.operate.queue_view import Selection
from watchman.sinks.moving.directories import Directories
from watchman.sinks.moving.mover import LARGEST
from watchman.uploads.upload import Answer, Kind, Outcome, Report, Source, State

Open = Callable[..., Yard]


@pytest.fixture(params=["rename", "copy"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on the filesystem of the watch, and one on a tmpfs."""
    if request.param == "rename":
        (tmp_path / "storage").mkdir()
        yield tmp_path / "storage"
        return
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    assert directory.stat().st_dev != tmp_path.stat().st_dev
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def open_yard(tmp_path: Path, destination: Path) -> Iterator[Open]:
    # As the daemon does; the default action of a broken lease's signal is to end us.
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yards: list[Yard] = []

    def open_yard(**options: Any) -> Yard:
        yards.append(Yard(tmp_path, destination, options))
        yards[-1].open()
        return yards[-1]

    yield open_yard
    for yard in yards:
        yard.close()
    signal.signal(signal.SIGIO, before)


@pytest.fixture
def yard(open_yard: Open) -> Yard:
    return open_yard()


def test_a_file_is_moved_to_the_same_subpath_before_its_task_is_sent(yard: Yard) -> None:
    upload_id = yard.upload("alice/2026/a.csv", "1,2")
    (upload,) = yard.take()
    assert upload.id == upload_id
    assert upload.path == str(yard.destination / "alice/2026/a.csv")
    assert upload.original == str(yard.ftp / "alice/2026/a.csv")
    assert upload.task is not None
    assert upload.task.args == [upload.path]
    assert upload.task.kwargs == {"was": upload.original}
    assert files(yard.destination) == {"alice/2026/a.csv": "1,2"}
    assert files(yard.ftp) == {}


def test_a_file_without_a_task_is_moved_and_done(yard: Yard) -> None:
    yard.upload("a.dat", "x")
    eventually(lambda: yard.pipeline.settled["done"] == 1)
    assert files(yard.destination) == {"a.dat": "x"}
    assert files(yard.ftp) == {}
    assert yard.rows() == []
    yard.restart()
    assert yard.rows() == []


def test_times_mode_and_owner_are_kept(yard: Yard) -> None:
    path = yard.write("a.csv")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 5678)
    os.utime(path, ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    before = path.stat()
    yard.say(path)
    (upload,) = yard.take()
    after = os.stat(upload.path)
    for name in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_size"):
        assert getattr(after, name) == getattr(before, name), name
    # Where it was copied, reading it may have set it.
    assert after.st_atime_ns >= before.st_atime_ns


def test_extended_attributes_and_an_access_list_are_kept(yard: Yard) -> None:
    path = yard.write("a.csv")
    # The owner, user 1234, the group, the mask and others, each with its rights.
    access = access_list((1, 6, -1), (2, 6, 1234), (4, 4, -1), (16, 6, -1), (32, 0, -1))
    os.setxattr(path, "system.posix_acl_access", access)
    os.setxattr(path, "user.origin", b"a scanner")
    before = path.stat()
    yard.say(path)
    (upload,) = yard.take()
    assert os.getxattr(upload.path, "system.posix_acl_access") == access
    assert os.stat(upload.path).st_mode == before.st_mode
    probe = yard.destination / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.origin", b"a scanner")
    except OSError:  # a tmpfs of a kernel before 6.6
        assert os.listxattr(upload.path) == ["system.posix_acl_access"]
    else:
        assert os.getxattr(upload.path, "user.origin") == b"a scanner"


def test_mode_and_folders_are_made_as_the_ini_file_says(open_yard: Open) -> None:
    yard = open_yard(mode=0o604, directory_mode=0o710, folders=("accepted", "rejected"))
    path = yard.moved("alice/a.csv")
    assert path.stat().st_mode & 0o7777 == 0o604
    for directory in (path.parent, path.parent / "accepted", path.parent / "rejected"):
        assert directory.stat().st_mode & 0o7777 == 0o710, directory


def test_a_directory_is_made_like_the_one_at_the_source(yard: Yard) -> None:
    (yard.ftp / "alice").mkdir()
    (yard.ftp / "alice").chmod(0o2775)
    path = yard.moved("alice/a.csv")
    assert path.parent.stat().st_mode & 0o7777 == 0o2775


#: In the form of capabilities(7), revision 2: CAP_NET_RAW, effective.
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, 0o755),
        ({"owner": 1111}, 0o755),
        ({"group": 2222}, 0o755),
        ({"owner": 1111, "group": 2222, "mode": 0o6750}, 0o750),
        ({"group": 2222, "mode": 0o6750}, 0o750),
        ({"owner": 1234, "mode": 0o4750}, 0o4750),
        ({"mode": 0o6750}, 0o6750),
    ],
)
def test_what_lets_others_act_as_its_owner_does_not_arrive_unless_the_ini_file_says_so(
    open_yard: Open, options: dict[str, int], mode: int
) -> None:
    yard = open_yard(**options)
    path = yard.write("a.csv")
    os.chown(path, 1234, 5678)
    path.chmod(0o6755)
    os.setxattr(path, "security.capability", CAPABILITY)
    yard.say(path)
    (upload,) = yard.take()
    status = os.stat(upload.path)
    assert status.st_mode & 0o7777 == mode
    assert (status.st_uid, status.st_gid) == (
        options.get("owner", 1234),
        options.get("group", 5678),
    )
    assert "security.capability" not in os.listxattr(upload.path)


@pytest.mark.root
def test_a_set_id_bit_without_the_right_to_run_does_not_arrive(open_yard: Open) -> None:
    """The kernel leaves it at chown(2), and whoever is the group's may come to run it."""
    yard = open_yard(group=2222)
    path = yard.write("a.csv")
    path.chmod(0o2640)
    yard.say(path)
    (upload,) = yard.take()
    assert os.stat(upload.path).st_mode & 0o7777 == 0o640


def access_list(*entries: tuple[int, int, int]) -> bytes:
    """In the form of the kernel, version 2: each with a kind, rights, and a uid or gid."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@pytest.mark.root
@pytest.mark.parametrize("options", [{"owner": 1111}, {"group": 2222}])
def test_an_access_list_does_not_survive_a_change_of_owner(
    open_yard: Open, options: dict[str, int]
) -> None:
    yard = open_yard(**options)
    path = yard.write("a.csv")
    os.chown(path, 1234, 5678)
    # The owner himself, and the mask, may write; the group may not.
    access = access_list((1, 6, -1), (2, 6, 1234), (4, 4, -1), (16, 6, -1), (32, 0, -1))
    os.setxattr(path, "system.posix_acl_access", access)
    assert path.stat().st_mode & 0o777 == 0o660
    yard.say(path)
    (upload,) = yard.take()
    assert "system.posix_acl_access" not in os.listxattr(upload.path)
    assert os.stat(upload.path).st_mode & 0o777 == 0o640


@pytest.mark.root
def test_a_directory_hands_on_no_group_unless_the_ini_file_says_so(open_yard: Open) -> None:
    for options, mode in (
        ({"owner": 1111}, 0o1775),
        ({"group": 2222}, 0o1775),
        ({"group": 2222, "directory_mode": 0o2770}, 0o2770),
    ):
        yard = open_yard(**options)
        directory = yard.ftp / str(len(options)) / str(min(options.values()))
        directory.mkdir(parents=True)
        os.chown(directory, 1234, 5678)
        directory.chmod(0o3775)
        path = yard.moved(str((directory / "a.csv").relative_to(yard.ftp)))
        assert path.parent.stat().st_mode & 0o7777 == mode, options
        yard.close()


@pytest.mark.root
def test_a_directory_is_not_made_like_one_that_a_symlink_leads_to(
    tmp_path: Path, destination: Path
) -> None:
    (tmp_path / "else" / "d").mkdir(parents=True)
    os.chown(tmp_path / "else" / "d", 1234, 5678)
    (tmp_path / "ftp").mkdir()
    (tmp_path / "ftp" / "link").symlink_to(tmp_path / "else")
    with Directories(MoveSettings("m", str(tmp_path / "ftp"), str(destination))) as directories:
        directories.make("link/d")
    assert (destination / "link" / "d").stat().st_uid == 0


@pytest.mark.root
def test_what_could_not_be_moved_has_everything_that_was_to_be_changed(tmp_path: Path) -> None:
    destination = tmp_path / "storage"
    destination.mkdir()
    yard = Yard(tmp_path, destination, {"owner": 1111, "mode": 0o600})
    yard.open()
    path = yard.write("a.csv")
    os.chown(path, 1234, 5678)
    access = access_list((1, 6, -1), (2, 6, 4321), (4, 4, -1), (16, 6, -1), (32, 0, -1))
    os.setxattr(path, "system.posix_acl_access", access)
    path.chmod(0o6664)
    before = path.stat()
    subprocess.run(["chattr", "+i", str(destination)], check=True)
    try:
        yard.say(path)
        eventually(lambda: yard.deferred("Operation not permitted")["attempts"] >= 2)
        for name in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
            assert getattr(path.stat(), name) == getattr(before, name), name
        assert os.listxattr(path) == ["system.posix_acl_access"]
    finally:
        subprocess.run(["chattr", "-i", str(destination)], check=True)
    (upload,) = yard.take()
    assert os.stat(upload.path).st_mode & 0o7777 == 0o600
    yard.close()


@pytest.mark.root
def test_owner_and_group_are_set(open_yard: Open) -> None:
    yard = open_yard(owner=1111, group=2222)
    path = yard.moved("alice/a.csv")
    for made in (path, path.parent):
        assert (made.stat().st_uid, made.stat().st_gid) == (1111, 2222), made


def test_a_name_that_is_taken_is_not_overwritten(yard: Yard) -> None:
    (yard.destination / "a.csv").write_text("precious")
    first, second = yard.moved("a.csv", "1"), yard.moved("a.csv", "2")
    for path, content in ((first, "1"), (second, "2")):
        stem, _, milliseconds = path.stem.partition("@")
        assert (stem, path.suffix, path.read_text()) == ("a", ".csv", content)
        assert len(milliseconds) == 13
    assert (yard.destination / "a.csv").read_text() == "precious"
    assert len(files(yard.destination)) == 3
    assert files(yard.ftp) == {}


def test_the_task_knows_the_name_that_the_file_got(yard: Yard) -> None:
    (yard.destination / "a.csv").mkdir()
    yard.upload("a.csv")
    (upload,) = yard.take()
    assert upload.task is not None
    assert upload.task.args == [upload.path]
    assert upload.path != str(yard.destination / "a.csv")
    assert Path(upload.path).read_text() == "1,2,3\n"


def test_every_name_may_be_made_unique(open_yard: Open) -> None:
    yard = open_yard(unique="always")
    paths = [yard.moved("a.csv", str(n)) for n in range(3)]
    assert len(set(paths)) == 3
    assert all(path.name.startswith("a@") for path in paths)


def test_many_are_moved_in_order(yard: Yard) -> None:
    ids = [yard.upload(f"{n % 7}/{n}.csv", str(n)) for n in range(200)]
    taken = yard.take(100)
    yard.settle(*taken)  # no more than 128 are out at a time
    taken += yard.take(100)
    assert [upload.id for upload in taken] == ids
    assert files(yard.destination) == {f"{n % 7}/{n}.csv": str(n) for n in range(200)}
    assert files(yard.ftp) == {}


def test_large_files_are_moved_and_small_ones_keep_their_order(yard: Yard) -> None:
    content = "x" * (LARGEST + 1)
    names = ["0.csv", "large.csv", "1.csv", "2.csv", "another.csv", "3.csv"]
    ids = [yard.upload(name, content if "a" in name else name) for name in names]
    taken = [upload.id for upload in yard.take(6)]
    assert sorted(taken) == sorted(ids)
    copied = yard.destination.stat().st_dev != yard.ftp.stat().st_dev
    # Only a copy of a large one takes long.
    in_order = [n for n, name in enumerate(names) if not copied or "a" not in name]
    assert [one for one in taken if ids.index(one) in in_order] == [ids[n] for n in in_order]
    assert files(yard.destination) == {name: content if "a" in name else name for name in names}
    assert files(yard.ftp) == {}


def test_a_late_word_of_a_moved_file_is_a_duplicate(yard: Yard) -> None:
    upload_id = yard.upload("a.csv")
    yard.take()
    for source in (Source.HOOK, Source.SCAN):
        assert yard.say(yard.ftp / "a.csv", source) == Answer(Outcome.DUPLICATE, upload_id)
    yard.restart()
    assert yard.say(yard.ftp / "a.csv", Source.HOOK) == Answer(Outcome.DUPLICATE, upload_id)


def test_the_path_uploaded_again_is_another_upload_though_its_inode_may_be_the_same(
    yard: Yard,
) -> None:
    seen = set()
    for _ in range(5):
        path = yard.write("a.csv", "same")
        os.utime(path, (1, 1))
        answer = yard.say(path)
        assert answer.outcome is Outcome.OK
        seen.add(answer.detail)
        yard.settle(*yard.take())
    assert len(seen) == 5
    assert len(files(yard.destination)) == 5


def test_a_hole_stays_a_hole(yard: Yard) -> None:
    path = yard.ftp / "a.csv"
    with path.open("wb") as file:
        file.seek(40 << 20)
        file.write(b"in the middle")
        file.truncate(80 << 20)
    yard.say(path)
    (upload,) = yard.take()
    moved = Path(upload.path)
    assert moved.stat().st_size == 80 << 20
    assert moved.stat().st_blocks * 512 < 1 << 20
    assert moved.read_bytes()[40 << 20 :].startswith(b"in the middle\0")


def test_an_empty_file_is_moved(yard: Yard) -> None:
    assert yard.moved("a.csv", "").read_text() == ""


def test_any_name_is_moved(yard: Yard) -> None:
    names = ["a\udcff\n.csv", "@.csv", "x" * 251 + ".csv", "." * 3 + "a.csv"]
    for name in names[:3]:
        assert yard.moved(name).name == name
        assert len(os.fsencode(yard.moved(name).name)) <= 255


def test_a_deleted_file_is_not_moved(yard: Yard) -> None:
    yard.close()
    yard.moving = False
    yard.open()
    yard.upload("a/a.csv")
    shutil.rmtree(yard.ftp / "a")
    yard.start_movers()
    eventually(lambda: yard.pipeline.settled["gone"] == 1)
    assert list(yard.destination.iterdir()) == []


def test_an_overwritten_file_is_moved_once_as_what_it_holds_then(yard: Yard) -> None:
    yard.close()
    yard.moving = False
    yard.open()
    first = yard.upload("a.csv", "1")
    second = yard.upload("a.csv", "22")
    yard.start_movers()
    assert [upload.id for upload in yard.take()] == [second]
    assert first != second
    eventually(lambda: yard.pipeline.settled["superseded"] == 1)
    assert files(yard.destination) == {"a.csv": "22"}


def test_an_overwrite_that_nobody_spoke_of_is_moved_as_what_it_holds(yard: Yard) -> None:
    yard.close()
    yard.moving = False
    yard.open()
    first = yard.upload("a.csv", "1")
    yard.write("a.csv", "22")
    yard.start_movers()
    (upload,) = yard.take()
    assert upload.id != first
    assert files(yard.destination) == {"a.csv": "22"}


def test_a_file_is_not_moved_while_anyone_writes_it(yard: Yard) -> None:
    yard.close()
    yard.moving = False
    yard.open()
    yard.upload("a.csv", "1")
    with (yard.ftp / "a.csv").open("a") as file:
        yard.start_movers()
        row = yard.deferred("it is being written")
        assert row["path"] == str(yard.ftp / "a.csv")
        assert files(yard.ftp) == {"a.csv": "1"}
        file.write("2")
    (upload,) = yard.take()
    assert Path(upload.path).read_text() == "12"
    assert files(yard.ftp) == {}
    assert files(yard.destination) == {"a.csv": "12"}


def test_a_file_opened_for_writing_and_left_alone_is_moved(yard: Yard) -> None:
    yard.close()
    yard.moving = False
    yard.open()
    upload_id = yard.upload("a.csv", "1")
    with (yard.ftp / "a.csv").open("a"):
        yard.start_movers()
        yard.deferred("it is being written")
    assert [upload.id for upload in yard.take()] == [upload_id]


def test_files_of_a_renamed_directory_are_moved_from_there(yard: Yard) -> None:
    yard.close()
    yard.moving = False
    yard.open()
    yard.upload("old/a.csv")
    (yard.ftp / "old").rename(yard.ftp / "new")
    yard.say(yard.ftp / "new", kind=Kind.RENAMED, old=str(yard.ftp / "old"))
    yard.start_movers()
    (upload,) = yard.take()
    assert upload.path == str(yard.destination / "new" / "a.csv")
    assert upload.task is not None
    assert upload.task.args == [upload.path]


def test_a_missing_destination_is_waited_for_and_never_made(yard: Yard) -> None:
    yard.destination.rmdir()
    upload_id = yard.upload("a/a.csv")
    row = yard.deferred(f"destination {yard.destination} is not there")
    assert row["attempts"] >= 1
    assert yard.movers["storage"].status()["state"] == "down"
    assert files(yard.ftp) == {"a/a.csv": "1,2,3\n"}
    yard.destination.write_text("")
    yard.deferred(f"destination {yard.destination} is not a directory")
    yard.destination.unlink()
    yard.destination.mkdir()
    assert [upload.id for upload in yard.take()] == [upload_id]
    assert yard.movers["storage"].status()["state"] == "up"


def test_a_missing_destination_is_waited_for_at_start(yard: Yard) -> None:
    yard.close()
    yard.destination.rmdir()
    yard.open()
    upload_id = yard.upload("a.csv")
    yard.restart()
    yard.deferred("is not there")
    yard.destination.mkdir()
    assert [upload.id for upload in yard.take()] == [upload_id]


def test_what_stands_in_the_way_holds_up_nothing_else(yard: Yard) -> None:
    (yard.destination / "d").write_text("a file")
    (yard.destination / "link").symlink_to(yard.tmp_path)
    yard.upload("d/a.csv")
    yard.upload("link/a.csv")
    other = yard.upload("b.csv")
    assert [upload.id for upload in yard.take()] == [other]
    eventually(lambda: [row["state"] for row in yard.rows()].count("deferred") == 2)
    reasons = [row["reason"] for row in yard.rows() if row["state"] == "deferred"]
    assert all("stands in the way" in reason for reason in reasons)
    assert sorted(files(yard.ftp)) == ["d/a.csv", "link/a.csv"]
    (yard.destination / "d").unlink()
    (yard.destination / "link").unlink()
    assert len(yard.take(2)) == 2


def test_what_a_collision_and_a_stop_leave_is_taken_up(yard: Yard) -> None:
    yard.destination.rmdir()
    ids = [yard.upload(f"{n}.csv") for n in range(5)]
    yard.restart()
    made = yard.destination.with_suffix(".new")
    made.mkdir()
    (made / "3.csv").write_text("taken")
    made.rename(yard.destination)
    assert [upload.id for upload in yard.take(5)] == ids
    assert len(files(yard.destination)) == 6


@pytest.mark.root
def test_without_rights_files_are_moved_and_what_cannot_be_kept_is_not(
    tmp_path: Path, destination: Path
) -> None:
    """Another's file, as nobody: there is no lease to be had, no chown, and no chmod."""
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        directory.chmod(directory.stat().st_mode | 0o755)
    home = tmp_path / "home"
    for directory in (home, home / "ftp"):
        directory.mkdir()
        os.chown(directory, 65534, 65534)
    os.chown(destination, 65534, 65534)
    (home / "ftp" / "a.csv").write_text("1,2")
    os.utime(home / "ftp" / "a.csv", (1_500_000_000, 1_500_000_000))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            yard = Yard(home, destination)
            yard.open()
            eventually(lambda: yard.say(home / "ftp" / "a.csv").outcome is not Outcome.IGNORED)
            (upload,) = yard.take()
            status = 0 if Path(upload.path).read_text() == "1,2" else 2
            yard.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    moved = (destination / "a.csv").stat()
    assert moved.st_mtime == 1_500_000_000
    copied = destination.stat().st_dev != tmp_path.stat().st_dev
    assert moved.st_uid == (65534 if copied else 0)
    assert files(home / "ftp") == {}


@pytest.mark.root
def test_an_owner_that_cannot_be_set_holds_the_file_back(tmp_path: Path, destination: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        directory.chmod(directory.stat().st_mode | 0o755)
    home = tmp_path / "home"
    for directory in (home, home / "ftp", destination):
        directory.mkdir(exist_ok=True)
        os.chown(directory, 65534, 65534)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            yard = Yard(home, destination, {"owner": 1111})
            yard.open()
            yard.upload("a.csv", "1,2")
            before = (yard.ftp / "a.csv").stat().st_ctime_ns
            eventually(lambda: yard.deferred("Operation not permitted")["attempts"] >= 2)
            untouched = (yard.ftp / "a.csv").stat().st_ctime_ns == before
            status = 0 if untouched and files(yard.ftp) == {"a.csv": "1,2"} else 2
            yard.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert files(destination) == {}


@pytest.mark.root
def test_a_directory_that_nothing_can_be_moved_out_of_is_named_and_nothing_is_copied(
    tmp_path: Path, destination: Path
) -> None:
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        directory.chmod(directory.stat().st_mode | 0o755)
    (tmp_path / "ftp").mkdir()
    (tmp_path / "spool").mkdir()
    for directory in (tmp_path / "spool", destination):
        os.chown(directory, 65534, 65534)
    (tmp_path / "ftp" / "a.csv").write_text("1,2")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            yard = Yard(tmp_path, destination)
            yard.open()
            eventually(lambda: yard.say(yard.ftp / "a.csv").outcome is not Outcome.IGNORED)
            before = destination.stat().st_mtime_ns
            eventually(lambda: yard.deferred(f"{yard.ftp}: Permission denied")["attempts"] >= 2)
            status = 0 if destination.stat().st_mtime_ns == before else 2
            yard.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_file_resubmitted_as_another_is_moved_from_where_it_lies(yard: Yard) -> None:
    path, other = yard.write("b.csv", "b"), yard.write("other.csv", "other")
    yard.resubmit(path, resubmit_as=other)
    (upload,) = yard.take()
    assert (upload.path, upload.original) == (str(yard.destination / "b.csv"), str(other))
    assert files(yard.ftp) == {"other.csv": "other"}
    assert files(yard.destination) == {"b.csv": "b"}
    yard.restart()
    assert [again.path for again in yard.take()] == [upload.path]
    assert yard.say(path) == Answer(Outcome.DUPLICATE, upload.id)


def test_what_was_decided_about_a_moved_file_is_forgotten_over_restarts(yard: Yard) -> None:
    path = yard.write("a.csv")
    inode = path.stat().st_ino
    yard.say(path)
    (upload,) = yard.take()
    for _ in range(2):
        assert yard.ledgers["ftp"].get("a.csv", upload.state._replace(inode=inode)) is None
        yard.restart()


def test_a_moved_upload_that_is_dropped_leaves_its_backlog(yard: Yard) -> None:
    yard.upload("a.csv")
    eventually(lambda: yard.places() == ["broker:b"])
    (group,) = yard.pipeline.groups()
    (found,) = yard.unsettled().select(Selection(states=frozenset({"waiting"})))
    assert found is not None
    backlog = yard.pipeline.backlogs[group.place]
    assert backlog.withdraw(group.positions, 1.0) == set(group.positions)
    yard.dispatcher.call(lambda: yard.pipeline.drop(found.upload))
    assert (yard.pipeline.waiting(), yard.rows()) == (0, [])
    assert files(yard.destination) == {"a.csv": "1,2,3\n"}


def test_a_good_write_settles_a_failure_after_the_move(yard: Yard) -> None:
    yard.upload("a.csv")
    (upload,) = yard.take()
    yard.pipeline.report([Report(upload, State.FAILED, "cannot be serialized")])
    eventually(lambda: [row["state"] for row in yard.rows()] == ["failed"])
    yard.restart()
    again = yard.upload("a.csv")
    (upload,) = yard.take()
    assert upload.id == again
    assert [row["id"] for row in yard.rows()] == [again]


def test_what_waits_is_moved_though_its_watch_has_another_name_now(yard: Yard) -> None:
    yard.destination.rmdir()
    upload_id = yard.upload("a.csv")
    yard.close()
    yard.watch = "renamed"
    yard.open()
    yard.destination.mkdir()
    assert [upload.id for upload in yard.take()] == [upload_id]
