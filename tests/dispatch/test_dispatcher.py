"""What the dispatcher makes of what it hears, with a real journal, ledger and files."""

import contextlib
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import bulk
from tests.support.deadline import eventually
from tests.support.house import Clock, House
from watchman.config.settings import MoveSettings, WatchSettings
from watchman.dispatch.decisions import SEARCH
from watchman.dispatch.judge import QUIET
from watchman.operate.queue_view import Selection
from watchman.sinks import pipeline
from watchman.store import ledger as ledger_module
from watchman.uploads.upload import (
    Answer,
    FileState,
    Kind,
    Notification,
    Outcome,
    Report,
    Source,
    State,
    Task,
    Upload,
)


@contextlib.contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """Let no file grow beyond a size in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_upload_is_accepted_once_whoever_speaks_of_it(house: House) -> None:
    path = house.write("a.csv")
    answer = house.say(path)
    assert answer.outcome is Outcome.OK
    for source in (Source.SCAN, Source.INOTIFY, Source.HOOK, Source.LOG):
        assert house.say(path, source) == Answer(Outcome.DUPLICATE, answer.detail)
    (upload,) = house.take()
    assert (upload.id, upload.path, upload.source) == (answer.detail, str(path), Source.INOTIFY)
    assert upload.task is not None
    assert (upload.task.section, upload.task.name) == ("csv", "import_csv")


def test_of_many_uploads_some_are_kept_in_memory_and_the_others_are_read_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "KEPT", 2)
    for name in "abcd":
        house.say(house.write(f"{name}.csv"))
    house.say(house.write("a.nc"))
    kept = {place: len(one.kept) for place, one in house.pipeline.backlogs.items()}
    assert kept == {"broker:b": 2, "broker:c": 1}, "none of them has all the room"
    taken = house.take()
    assert [Path(upload.path).name for upload in taken] == ["a.csv", "b.csv", "c.csv", "d.csv"]
    assert all(upload.task and upload.position >= 0 for upload in taken)
    house.settle(taken[0])
    house.say(house.write("e.csv"))
    assert [len(one.kept) for one in house.pipeline.backlogs.values()] == [1, 1]


def test_the_same_path_written_again_is_another_upload(house: House) -> None:
    path = house.write("a.csv", "1")
    first = house.say(path)
    house.settle(house.take()[0])
    path.write_text("2")
    second = house.say(path)
    assert (first.outcome, second.outcome) == (Outcome.OK, Outcome.OK)
    assert first.detail != second.detail
    replaced = house.write("b.csv", "2")
    replaced.rename(path)
    assert house.say(path).outcome is Outcome.OK


def test_a_scan_takes_neither_chmod_nor_touch_r_nor_a_hard_link_for_a_write(house: House) -> None:
    path = house.write("a.csv")
    house.say(path)
    path.chmod(0o600)
    assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
    os.utime(path, (1, 1))
    assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
    os.link(path, house.tmp_path / "backup")
    assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE


@pytest.mark.parametrize("content", ["1,2,3\n", "3,2,1\n"])
def test_a_close_with_another_ctime_alone_is_a_new_write_at_once(
    house: House, content: str
) -> None:
    """As of `cp -p`, rsync --inplace -t, sftp put -p, Samba: the size and mtime are as before."""
    path = house.write("a.csv")
    os.utime(path, (1, 1))
    assert house.closed(path) is Outcome.OK
    for _ in range(3):
        house.write("a.csv", content)
        os.utime(path, (1, 1))
        assert house.closed(path) is Outcome.OK
        assert house.closed(path) is Outcome.DUPLICATE


def test_the_close_of_a_write_that_was_decided_about_is_none_of_another(house: House) -> None:
    """A scan was first, and the file's mode or times were set before the event was read."""
    path = house.write("a.csv")
    assert house.say(path, Source.SCAN).outcome is Outcome.OK
    path.chmod(0o600)
    assert house.closed(path) is Outcome.DUPLICATE
    house.write("a.csv", "3,2,1\n")
    os.utime(path, (1, 1))
    assert house.closed(path) is Outcome.OK


@pytest.mark.parametrize("source", [Source.SCAN, Source.INOTIFY])
@pytest.mark.parametrize("size", [6, 100_000, 10_000_000])
def test_a_sample_tells_a_rewrite_from_what_sets_the_ctime_alone(
    house: House, source: Source, size: int
) -> None:
    """What a scan finds, or a rename brings; over a restart, too."""
    path = house.write("a.csv", "x" * size)
    os.utime(path, (1, 1))
    assert house.closed(path) is Outcome.OK
    for turn in range(2):
        path.chmod(0o600 + turn)
        os.utime(path, (2, 2))
        assert house.say(path, source).outcome is Outcome.DUPLICATE
        house.restart()
    house.write("a.csv", "x" * (size - 1) + "y")
    os.utime(path, (1, 1))
    assert house.say(path, source).outcome is Outcome.OK


def test_a_second_word_of_the_same_proftpd_source_is_a_second_write(house: House) -> None:
    path = house.write("a.csv")
    house.say(path, Source.INOTIFY)
    os.utime(path, (1, 1))
    assert house.say(path, Source.HOOK).outcome is Outcome.DUPLICATE, "its first word"
    assert house.say(path, Source.HOOK).outcome is Outcome.OK, "its second word"


def test_a_file_is_not_accepted_while_it_is_being_written(house: House) -> None:
    path = house.tmp_path / "ftp" / "a.csv"
    with path.open("w") as file:
        file.write("1")
        file.flush()
        assert house.say(path) == Answer(Outcome.IGNORED, "it is being written")
        (row,) = house.dispatcher.hold_queue.rows()
        assert (row["path"], row["state"]) == (str(path), "noticed")
        assert house.take() == []
    # Nobody speaks of it again; the look after a second finds it closed.
    assert [upload.path for upload in house.take(patience=5)] == [str(path)]
    assert house.dispatcher.hold_queue.rows() == []


@pytest.mark.root
def test_a_file_that_gives_no_lease_must_be_quiet_for_a_while(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        directory.chmod(directory.stat().st_mode | 0o755)
    home = tmp_path / "nobody"
    (home / "ftp").mkdir(parents=True)
    os.chown(home, 65534, 65534)
    pid = os.fork()
    if pid == 0:
        # Another's file: without CAP_LEASE the kernel answers EACCES.
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            house = House(home)
            house.open()
            file = home / "ftp" / "a.csv"
            (home / "ready").touch()
            eventually(file.exists)
            assert house.say(file).outcome is Outcome.IGNORED
            began = time.monotonic()
            (home / "looked").touch()
            assert len(house.take(patience=5)) == 1
            assert time.monotonic() - began >= QUIET / 2
            house.close()
            status = 0
        finally:
            os._exit(status)
    eventually((home / "ready").exists)
    (home / "root's").write_text("1,2,3")
    (home / "root's").rename(home / "ftp" / "a.csv")
    # However long the other process takes, it does not find the file quiet before it has looked.
    eventually(lambda: (home / "ftp" / "a.csv").chmod(0o644) or (home / "looked").exists())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("name", [".hidden.csv", "a.csv.part", "dir.tmp/a.csv"])
def test_excluded_names_are_passed_over(house: House, name: str) -> None:
    answer = house.say(house.write(name))
    assert answer.outcome is Outcome.IGNORED
    assert "excluded" in answer.detail


def test_what_no_task_matches_is_counted_and_never_taken_up_by_a_scan(house: House) -> None:
    path = house.write("a.dat")
    assert house.say(path) == Answer(Outcome.IGNORED, "no task matches")
    assert house.dispatcher.judge.unmatched["ftp"] == 1
    assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE


def test_nothing_outside_the_watches_is_touched(house: House) -> None:
    outside = house.tmp_path / "outside.csv"
    outside.write_text("x")
    (house.tmp_path / "ftp" / "link.csv").symlink_to(outside)
    (house.tmp_path / "ftp" / "up").symlink_to(house.tmp_path)
    for path in (
        outside,
        house.tmp_path / "ftp" / ".." / "outside.csv",
        house.tmp_path / "ftp" / "link.csv",
        house.tmp_path / "ftp" / "up" / "outside.csv",
    ):
        assert house.say(path, Source.HOOK).outcome is Outcome.IGNORED
    assert house.take() == []


def test_a_path_through_a_symlink_is_known_by_the_watchs_own_spelling(house: House) -> None:
    path = house.write("d/a.csv")
    (house.tmp_path / "home").symlink_to(house.tmp_path / "ftp")
    assert house.say(house.tmp_path / "home" / "d" / "a.csv", Source.HOOK).outcome is Outcome.OK
    assert [upload.path for upload in house.take()] == [str(path)]
    assert house.say(path).outcome is Outcome.DUPLICATE


def test_what_waits_is_taken_up_after_a_restart_with_the_same_id(house: House) -> None:
    paths = [house.write(f"{n}.csv") for n in range(3)]
    ids = [house.say(path).detail for path in paths]
    done = house.take()[0]
    house.settle(done)
    house.restart()
    assert [upload.id for upload in house.take()] == ids[1:]
    assert {house.say(path, Source.SCAN).outcome for path in paths} == {Outcome.DUPLICATE}


def test_a_failed_upload_stays_listed_and_is_not_sent_again(house: House) -> None:
    path = house.write("a.csv")
    house.say(path)
    house.settle(house.take()[0], State.FAILED, "cannot be serialized")
    for _ in range(2):
        (row,) = house.rows()
        assert (row["state"], row["reason"]) == ("failed", "cannot be serialized")
        assert house.take() == []
        for source in (Source.SCAN, Source.HOOK, Source.LOG):
            assert house.say(path, source) == Answer(Outcome.DUPLICATE, row["id"])
        house.restart()


@pytest.mark.parametrize("is_moved", [False, True])
def test_what_becomes_of_an_older_write_leaves_the_newer_decision_as_it_is(
    house: House, is_moved: bool
) -> None:
    """A file that was overwritten, in place, while its task was being sent; which fails then."""
    if is_moved:
        source, destination = str(house.tmp_path / "ftp"), str(house.tmp_path / "store")
        house.moves = {"all": MoveSettings("all", source, destination)}
        house.restart()
    path = house.write("a.csv")
    house.say(path)
    if is_moved:
        (upload,) = house.pipeline.take_at("move:all", 100, 0.0)
        copy = house.write("a.csv", watch="store")
        moved = upload._replace(path=str(copy), state=FileState.of(copy.lstat()))
        moved = moved._replace(moved_from=upload.path, source_state=upload.state)
        (moved,) = house.pipeline.write(State.MOVED, [moved])
        house.pipeline.report_move(Report(moved, State.MOVED))
    (upload,) = house.take()
    path.write_text("more than before")
    newer = house.say(path).detail
    house.settle(upload, State.FAILED, "cannot be serialized")
    for _ in range(2):
        for source in (Source.SCAN, Source.LOG, Source.HOOK):
            assert house.say(path, source) == Answer(Outcome.DUPLICATE, newer)
        house.restart()


@pytest.mark.parametrize("what", ["file", "directory", "directory to another watch"])
def test_a_failed_upload_whose_file_is_renamed_stays_listed_and_is_none_of_its_new_name(
    house: House, what: str
) -> None:
    old = house.write("d/e/a.csv")
    house.say(old)
    (failed,) = house.take()
    house.settle(failed, State.FAILED, "cannot be serialized")
    before, after = old.parent.parent, house.tmp_path / "ftp" / "new"
    if what == "file":
        before, after = old, old.with_name("b.csv")
    elif what != "directory":
        after = house.tmp_path / "other" / "new"
    before.rename(after)
    new = after if what == "file" else after / "e" / "a.csv"
    for _ in range(2):  # as two sources would
        house.say(after, kind=Kind.RENAMED, old=before)
    for _ in range(2):
        assert [(row["id"], row["state"]) for row in house.rows()] == [(failed.id, "failed")]
        assert house.say(new, Source.SCAN).outcome is Outcome.DUPLICATE
        house.restart()
    # What an operator may do about it.
    assert house.retry(pattern=str(old)) == []
    answer = house.say(new, Source.RESUBMIT)
    assert answer.outcome is Outcome.OK
    assert [(upload.id, upload.path) for upload in house.take()] == [(answer.detail, str(new))]


def test_what_takes_the_name_of_a_failed_upload_and_leaves_it_is_another(house: House) -> None:
    other, path = house.write("other.csv"), house.write("a.csv")
    new = path.with_name("b.csv")
    house.say(path)
    house.settle(house.take()[0], State.FAILED)
    path.rename(house.tmp_path / "away")
    house.say(other)
    other.rename(path)
    house.say(path, kind=Kind.RENAMED, old=other)
    path.rename(new)
    house.say(new, kind=Kind.RENAMED, old=path)
    assert [row["path"] for row in house.rows() if row["state"] == "failed"] == [str(path)]


def test_a_few_uploads_that_nobody_takes_do_not_keep_the_journal_of_all(tmp_path: Path) -> None:
    house = House(tmp_path, segment_size=3_000)
    house.open()
    house.say(house.write("old.nc"))
    house.say(house.write("bad.csv"))
    house.settle(house.take()[0], State.FAILED, "cannot be serialized")
    paths = [house.write(f"{n}.csv") for n in range(100)]
    for path in paths:
        house.say(path)
    for upload in house.take():
        house.dispatcher.pipeline.report([Report(upload, State.DONE)])
    house.say(house.write("new.nc"))
    journal = tmp_path / "spool" / "journal"
    eventually(lambda: bulk.size_of(journal) < 30_000)
    for _ in range(2):
        waiting = [(Path(row["path"]).name, row["state"]) for row in house.rows()]
        assert waiting == [("bad.csv", "failed"), ("old.nc", "waiting"), ("new.nc", "waiting")]
        assert {house.say(path, Source.SCAN).outcome for path in paths} == {Outcome.DUPLICATE}
        house.restart()
    assert [Path(upload.path).name for upload in house.take("c")] == ["old.nc", "new.nc"]
    story = house.journal.records({str(paths[7])}, ())
    assert [record["event"] for record in story] == ["accepted"]
    house.close()


def test_a_failed_upload_is_listed_for_as_long_as_keep_failed_says(house: House) -> None:
    first = house.write("a.csv")
    house.say(first)
    house.settle(house.take()[0], State.FAILED, "cannot be serialized")
    house.clock.ahead += house.settings.keep_failed - 10
    house.say(house.write("b.csv"))
    assert [row["state"] for row in house.rows()] == ["failed", "waiting"]
    house.clock.ahead += 20
    eventually(lambda: [row["state"] for row in house.rows()] == ["waiting"])
    house.restart()
    assert [row["state"] for row in house.rows()] == ["waiting"]
    assert house.say(first, Source.SCAN).outcome is Outcome.DUPLICATE, "forgotten is not unknown"


def test_an_overwritten_file_is_announced_once_as_what_it_holds_then(house: House) -> None:
    path = house.write("a.csv", "1")
    first = house.say(path).detail
    path.write_text("12")
    (second,) = house.take(patience=5) or house.take(patience=5)
    assert second.id != first
    assert second.state.size == 2
    assert house.say(path).outcome is Outcome.DUPLICATE


def test_a_file_that_looks_again_as_it_did_is_announced_once(house: House) -> None:
    path = house.write("a.csv", "1")
    house.say(path)
    times = path.stat().st_mtime_ns, path.stat().st_mtime_ns
    for content in ("22", "3"):
        path.write_text(content)
        os.utime(path, ns=times)
        answer = house.say(path)
        assert answer.outcome is Outcome.OK
    assert [upload.id for upload in house.take()] == [answer.detail]


@pytest.mark.parametrize("state", [State.DONE, State.FAILED])
def test_a_decision_that_has_followed_a_rename_outlives_a_kill(house: House, state: State) -> None:
    path, new = house.write("a.csv"), house.tmp_path / "ftp" / "b.csv"
    house.say(path)
    house.settle(house.take()[0], state)
    path.rename(new)
    assert house.say(new, kind=Kind.RENAMED, old=path).outcome is Outcome.DUPLICATE
    for _ in range(2):
        house.restart()
        assert house.say(new, Source.SCAN).outcome is Outcome.DUPLICATE
    new.write_text("written again")
    assert house.say(new, Source.SCAN).outcome is Outcome.OK


def test_an_upload_whose_file_was_renamed_there_and_back_is_sent(house: House) -> None:
    path, new = house.write("a.csv"), house.tmp_path / "ftp" / "b.csv"
    upload_id = house.say(path).detail
    path.rename(new)
    house.say(new, kind=Kind.RENAMED, old=path)
    new.rename(path)
    house.say(path, kind=Kind.RENAMED, old=new)
    house.restart()
    assert [(upload.id, upload.path) for upload in house.take()] == [(upload_id, str(path))]


def test_a_rename_that_a_scan_sees_before_word_of_it_comes_is_no_upload(house: House) -> None:
    path, new = house.write("a.csv"), house.tmp_path / "ftp" / "b.csv"
    house.say(path)
    house.settle(house.take()[0])
    path.rename(new)
    found = Notification(Kind.COMPLETED, str(new), Source.SCAN, patience=1.0)
    assert house.hear(found).outcome is Outcome.IGNORED
    assert house.say(new, kind=Kind.RENAMED, old=path).outcome is Outcome.DUPLICATE
    house.clock.ahead += 2
    eventually(lambda: not house.dispatcher.hold_queue.rows())
    assert house.take() == []


def test_what_a_scan_has_found_a_moment_ago_is_an_upload_a_moment_later(house: House) -> None:
    path = house.write("a.csv")
    found = Notification(Kind.COMPLETED, str(path), Source.SCAN, patience=1.0)
    assert house.hear(found).outcome is Outcome.IGNORED
    house.clock.ahead += 1
    assert [upload.path for upload in house.take(patience=5)] == [str(path)]


def test_a_deleted_file_is_not_announced(house: House) -> None:
    path = house.write("a.csv")
    house.say(path)
    path.unlink()
    assert house.take() == []
    (row,) = house.rows()
    assert (row["state"], row["reason"]) == ("deferred", "it is missing")
    eventually(lambda: house.take() == [] and house.dispatcher.pipeline.settled["gone"])


@pytest.mark.parametrize("again", ["the file", "another file"])
def test_what_comes_back_after_it_was_gone_in_its_turn_is_an_upload(
    house: House, again: str
) -> None:
    path, away = house.write("a.csv"), house.tmp_path / "away"
    house.say(path)
    path.rename(away)
    gone = house.dispatcher.pipeline.settled
    eventually(lambda: house.take() == [] and gone["gone"])
    house.restart()
    if again == "the file":
        away.rename(path)
    else:
        # With the inode of the first, as a filesystem may give it.
        path.hardlink_to(away)
        path.write_text("written anew")
    assert house.say(path, Source.SCAN).outcome is Outcome.OK
    house.restart()
    assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
    assert len(house.take()) == 1


def test_a_newer_file_stays_decided_when_the_older_one_turns_out_to_be_gone(house: House) -> None:
    path = house.write("a.csv")
    house.say(path)
    (upload,) = house.take()
    path.write_text("another one, with the same inode")
    assert house.say(path).outcome is Outcome.OK
    house.settle(upload, State.GONE, "deleted")
    for _ in range(2):
        assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
        house.restart()


def test_a_file_whose_directory_is_being_renamed_is_not_taken_for_deleted(house: House) -> None:
    path = house.write("old/a.csv")
    house.say(path)
    new = path.parent.rename(path.parent.with_name("new"))
    assert house.take() == []
    house.say(new, kind=Kind.RENAMED, old=path.parent)
    eventually(lambda: [upload.path for upload in house.take()] == [str(new / "a.csv")])


def test_an_upload_waits_while_its_watch_is_away(house: House) -> None:
    house.say(house.write("a.csv"))
    (house.tmp_path / "ftp").rename(house.tmp_path / "away")
    assert house.take() == []
    (row,) = house.rows()
    assert row["state"] == "deferred"
    assert "away" in row["reason"]
    assert house.dispatcher.pipeline.settled["gone"] == 0


def test_an_unsent_upload_is_another_by_its_new_name_and_a_sent_one_is_not_sent_again(
    house: House,
) -> None:
    sent, unsent = house.write("sent.csv"), house.write("unsent.csv")
    house.say(sent)
    house.settle(house.take()[0])
    unsent_id = house.say(unsent).detail
    for path in (sent, unsent):
        new = path.with_name("new-" + path.name)
        path.rename(new)
        assert house.say(new, kind=Kind.RENAMED, old=path).outcome is Outcome.DUPLICATE
    house.restart()
    assert house.take() == []
    (upload,) = house.take(patience=5)
    assert upload.path == str(unsent.with_name("new-unsent.csv"))
    assert upload.id != unsent_id
    assert upload.task is not None
    assert upload.task.args == [upload.path]
    story = house.journal.records({str(unsent)}, {unsent_id})
    (over,) = (record for record in story if "reason" in record)
    assert (over["event"], over["reason"]) == ("renamed", f"renamed to {upload.path!r}")
    for _ in range(2):
        assert house.say(unsent.with_name("new-unsent.csv"), Source.SCAN).detail == upload.id
        house.restart()


def test_an_upload_that_was_renamed_and_overwritten_is_one_of_the_newer_write(house: House) -> None:
    path = house.write("b.csv", "1")
    house.say(path)
    new = path.rename(path.with_name("a.csv"))
    house.say(new, kind=Kind.RENAMED, old=path)
    new.write_text("2")
    newer = house.say(new)
    assert newer.outcome is Outcome.OK
    assert [upload.id for upload in house.take()] == [newer.detail]
    eventually(lambda: house.pipeline.settled["superseded"])
    assert house.take() == []


def test_a_renamed_upload_is_its_own_file_whatever_words_of_others_come_late(house: House) -> None:
    other, path = house.write("d/b.csv"), house.write("a.csv")
    for file in (other, path):
        house.say(file)
    first = other.rename(other.with_name("c.csv"))
    house.say(path)
    now = path.rename(other)
    house.say(now, kind=Kind.RENAMED, old=path)
    house.say(first, kind=Kind.RENAMED, old=other)
    uploads: list[Upload] = []

    def take() -> bool:
        # Each is written down under its new name by itself.
        uploads.extend(house.take())
        return len(uploads) >= 2

    eventually(take)
    assert sorted(upload.path for upload in uploads) == sorted([str(now), str(first)])


@pytest.mark.parametrize("is_sent", [True, False])
@pytest.mark.parametrize("last", ["file", "directory"])
def test_renames_in_a_row_that_are_heard_of_late_make_no_upload(
    house: House, is_sent: bool, last: str
) -> None:
    """`mv a.csv d/b.csv; mv d/b.csv c.csv`, or then `mv d e`: words come when all is over."""
    path = house.write("a.csv")
    house.say(path)
    if is_sent:
        house.settle(house.take()[0])
    second = path.with_name("d") / "b.csv"
    second.parent.mkdir()
    path.rename(second)
    if last == "file":
        third = second.rename(path.with_name("c.csv"))
        house.write("d/b.csv", "another file")
        words = [(second, path), (third, second)]
    else:
        third = second.parent.rename(path.with_name("e")) / "b.csv"
        words = [(second, path), (third.parent, second.parent)]
    for new, old in words:
        house.say(new, kind=Kind.RENAMED, old=old)
    house.say(third, Source.SCAN)
    taken = house.take() + house.take(patience=1.0)
    expected = [str(second)] if last == "file" else []
    expected += [] if is_sent else [str(third)]
    assert sorted(upload.path for upload in taken) == sorted(expected)


def test_an_upload_is_found_though_nobody_told_of_one_of_its_renames(house: House) -> None:
    path = house.write("a.csv")
    house.say(path)
    house.restart()
    between = path.rename(house.tmp_path / "other" / "a.csv")
    house.say(between, Source.SCAN, Kind.COMPLETED)
    unheard = between.rename(path.with_name("a.csv"))
    now = unheard.rename(path.with_name("b.csv"))
    house.say(now, kind=Kind.RENAMED, old=unheard)
    assert house.take() == []
    assert str(now) in [upload.path for upload in house.take(patience=5)]


def test_an_upload_that_was_renamed_is_found_in_its_renamed_directory(house: House) -> None:
    path = house.write("a.csv", watch="other")
    house.say(path)
    directory = house.tmp_path / "ftp" / "d"
    directory.mkdir()
    new = path.rename(directory / "a.csv")
    house.say(new, kind=Kind.RENAMED, old=path)
    later = directory.rename(directory.with_name("e"))
    house.say(later, kind=Kind.RENAMED, old=directory)
    assert [upload.path for upload in eventually(house.take)] == [str(later / "a.csv")]


def test_an_unsent_upload_goes_where_its_new_name_says(house: House) -> None:
    path = house.write("a.csv")
    house.say(path)
    new = path.with_name("a.nc")
    path.rename(new)
    house.say(new, kind=Kind.RENAMED, old=path)
    assert house.take("b") == []
    (upload,) = house.take("c", patience=5)
    assert upload.path == str(new)
    assert upload.task is not None
    assert upload.task.section == "nc"


@pytest.mark.parametrize("old", ["a.csv.part", "a.dat", ".a.csv"])
def test_a_file_renamed_from_a_name_that_was_none_becomes_an_upload(house: House, old: str) -> None:
    path = house.write(old)
    house.say(path)
    new = path.with_name("a.csv")
    path.rename(new)
    assert house.say(new, kind=Kind.RENAMED, old=path).outcome is Outcome.OK


@pytest.mark.parametrize("watch", ["ftp", "other"])
def test_a_renamed_directory_makes_no_uploads_but_of_its_waiting_ones(
    house: House, watch: str
) -> None:
    sent, unsent = house.write("d/e/sent.csv"), house.write("d/e/unsent.csv")
    house.say(sent)
    house.settle(house.take()[0])
    house.say(unsent)
    new = house.tmp_path / watch / "new"
    shutil.move(house.tmp_path / "ftp" / "d", new)
    house.say(new, kind=Kind.RENAMED, old=house.tmp_path / "ftp" / "d")
    for path in (new / "e" / "sent.csv", new / "e" / "unsent.csv"):
        assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
    assert house.take() == []
    (upload,) = house.take(patience=5)
    assert upload.path == str(new / "e" / "unsent.csv")


def test_a_file_that_comes_back_with_its_directory_is_known_as_what_it_is_by_then(
    house: House,
) -> None:
    path = house.write("d/a.csv")
    house.say(path)
    house.settle(house.take()[0])
    there = path.parent.rename(house.tmp_path / "other" / "d")
    house.say(there, kind=Kind.RENAMED, old=path.parent)
    house.write("d/a.csv", "written in another watch", watch="other")
    house.say(there / "a.csv")
    house.settle(house.take()[0])
    there.rename(path.parent)
    house.say(path.parent, kind=Kind.RENAMED, old=there)
    for _ in range(2):
        assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
        house.restart()
    assert house.take() == []


def test_an_operator_may_send_what_was_decided_and_what_is_excluded(house: House) -> None:
    path, hidden = house.write("a.csv"), house.write(".b.csv")
    first = house.say(path)
    second = house.say(path, Source.RESUBMIT)
    assert second.outcome is Outcome.OK
    assert first.detail != second.detail
    assert house.say(hidden, Source.RESUBMIT).outcome is Outcome.OK
    assert len(house.take()) == 3


@pytest.mark.parametrize("name", ["a.dat", "missing.csv", "../outside.csv"])
def test_an_operator_is_told_what_cannot_be_sent(house: House, name: str) -> None:
    house.write("a.dat")
    answer = house.say(house.tmp_path / "ftp" / name, Source.RESUBMIT)
    assert answer.outcome is Outcome.ERROR


def test_a_full_disk_is_answered_with_an_error_and_made_good_by_a_rescan(house: House) -> None:
    before = house.write("before.csv")
    house.say(before)
    (upload,) = house.take()
    journal = sum(f.stat().st_size for f in (house.tmp_path / "spool" / "journal").iterdir())
    path = house.write("a.csv")
    with no_room_beyond(journal + 10):
        answer = house.say(path, Source.HOOK)
        assert answer.outcome is Outcome.ERROR
        assert "journal" in answer.detail
        assert house.dispatcher.unwritable()
        house.dispatcher.pipeline.report([Report(upload, State.DONE)])
        assert house.rescans == []
    eventually(lambda: house.rescans == ["ftp"])
    assert house.dispatcher.pipeline.settled["done"] == 1, "what was done is written down late"
    assert house.say(path, Source.SCAN).outcome is Outcome.OK
    house.restart()
    assert [upload.path for upload in house.take()] == [str(path)]


def test_a_ledger_holds_no_decision_before_the_journal_does(tmp_path: Path) -> None:
    """Else one that the disk then has no room for would be taken for a done one."""
    house = House(tmp_path, segment_size=1)  # a segment, and so a file, for each batch
    house.open()
    path = house.write("a.csv", "1")
    house.say(path)
    (upload,) = house.take()
    house.write("newer", "12").rename(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for the record of the one that is superseded, and not for the newer one's.
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        house.dispatcher.pipeline.report([Report(upload, State.SUPERSEDED, "overwritten")])
        eventually(house.dispatcher.unwritable)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert house.dispatcher.pipeline.settled["superseded"] == 1
    eventually(lambda: house.rescans == ["ftp"])
    assert house.say(path, Source.SCAN).outcome is Outcome.OK
    house.close()


def test_what_was_noticed_and_acknowledged_keeps_its_id_through_a_full_disk(
    tmp_path: Path,
) -> None:
    ftp = WatchSettings("ftp", str(tmp_path / "ftp"), settle=5.0)
    house = House(tmp_path, watches=(ftp,), clock=Clock(still=True))
    house.open()
    path = house.write("a.csv")
    answer = house.say(path, Source.HOOK)
    assert answer.outcome is Outcome.OK
    house.clock.ahead += 10
    with no_room_beyond(0):
        assert house.say(path).outcome is Outcome.ERROR
        assert [row["id"] for row in house.dispatcher.hold_queue.rows()] == [answer.detail]
    house.clock.ahead += 2
    eventually(lambda: house.rescans == ["ftp"])
    (upload,) = house.take(patience=5)
    assert upload.id == answer.detail
    assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
    house.close()


def test_a_failure_said_while_the_disk_is_full_is_listed_when_there_is_room(house: House) -> None:
    path = house.write("a.csv")
    with no_room_beyond(0):
        house.say(path, Source.HOOK, Kind.FAILED)
    listed = [("failed", str(path))]
    eventually(lambda: [(row["state"], row["path"]) for row in house.rows()] == listed)
    assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE


@pytest.fixture
def strict(house: House) -> House:
    """One where a failure need not be the last word."""
    path = str(house.tmp_path / "ftp")
    house.watches = (WatchSettings("ftp", path, proftpd=True, confirm=0.1, unconfirmed="hold"),)
    house.restart()
    return house


def test_a_failure_is_listed_while_the_better_word_cannot_be_written_down(strict: House) -> None:
    path = strict.write("a.csv")
    strict.say(path)
    (failure,) = eventually(strict.rows)
    with no_room_beyond(0):
        assert strict.say(path, Source.HOOK).outcome is Outcome.ERROR
    eventually(lambda: not strict.dispatcher.unwritable())
    with no_room_beyond(0):
        assert strict.say(path, Source.HOOK).outcome is Outcome.ERROR
    eventually(lambda: not strict.dispatcher.unwritable())
    for _ in range(2):
        assert [row["id"] for row in strict.rows()] == [failure["id"]]
        strict.restart()
    assert strict.say(path, Source.HOOK).outcome is Outcome.OK


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_failure_or_the_better_word_of_its_file_outlives_a_power_failure(
    strict: House, written: int
) -> None:
    path = strict.write("a.csv")
    strict.say(path)
    (failure,) = eventually(strict.rows)
    (journal,) = (strict.tmp_path / "spool" / "journal").iterdir()
    before = eventually(journal.read_bytes)
    better = strict.say(path, Source.HOOK)
    strict.close()
    records = journal.read_bytes()[len(before) :].splitlines(keepends=True)
    assert len(records) == 2
    journal.write_bytes(before + b"".join(records[:written]))
    strict.open()
    for _ in range(2):
        expected = better.detail if written else failure["id"]
        assert [row["id"] for row in strict.rows()] == [expected]
        strict.restart()


def test_settled_segments_leave_the_journal_and_their_decisions_stay(tmp_path: Path) -> None:
    house = House(tmp_path, segment_size=2_000)
    house.open()
    try:
        paths = [house.write(f"{n}.csv") for n in range(30)]
        for path in paths:
            house.say(path)
        for upload in house.take():
            house.settle(upload)
        directory = tmp_path / "spool" / "journal"
        eventually(lambda: len(list(directory.iterdir())) <= 2)
        house.restart()
        assert {house.say(path, Source.SCAN).outcome for path in paths} == {Outcome.DUPLICATE}
        assert house.take() == []
    finally:
        house.close()


def test_each_source_is_counted(house: House) -> None:
    path = house.write("a.csv")
    began = time.time()
    for source in (Source.INOTIFY, Source.SCAN, Source.SCAN):
        house.say(path, source)
    assert house.dispatcher.heard == {"inotify": 1, "scan": 2}
    assert began <= house.dispatcher.last_heard["scan"] <= time.time()


def test_a_call_returns_when_what_it_staged_is_durable_or_raises_why_not(house: House) -> None:
    assert house.dispatcher.call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        house.dispatcher.call(lambda: 1 // 0)
    path = house.write("a.csv")
    house.say(path)
    [upload] = house.take()
    house.settle(upload, State.FAILED, "cannot be serialized")
    [row] = house.rows()
    [failed] = [
        found.upload
        for found in house.unsettled().select(Selection(ids=frozenset({row["id"]})))
        if found
    ]
    assert house.dispatcher.call(lambda: house.dispatcher.pipeline.retry_failed(failed)) == ""
    house.restart()
    assert [row["state"] for row in house.rows()] == ["waiting"]
    assert house.dispatcher.call(lambda: house.dispatcher.pipeline.retry_failed(failed)) != ""


def test_what_is_dropped_survives_the_retirement_of_its_segment(tmp_path: Path) -> None:
    house = House(tmp_path, segment_size=1000)
    house.open()
    try:
        house.say(house.write("a.csv"))
        [upload] = house.take()
        house.dispatcher.call(lambda: house.dispatcher.pipeline.drop(upload))
        for n in range(10):
            house.say(house.write(f"{n}.nc"))
            house.settle(house.take("c")[0])
        eventually(lambda: len(os.listdir(tmp_path / "spool" / "history")) > 1)
        house.restart()
        assert house.rows() == []
        assert house.take() == []
    finally:
        house.close()


def test_a_replay_keeps_few_decisions_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "DELTA", 200)
    house = House(tmp_path)
    numbers = range(ledger_module.DELTA + 1)
    paths = bulk.create(tmp_path / "ftp", numbers)
    bulk.write_journal(tmp_path / "spool", paths, lambda _: Task("csv", "b", "t"), watch="ftp")
    house.open()
    try:
        assert not house.ledgers["ftp"].full()
        assert house.dispatcher.pipeline.waiting() == len(numbers)
    finally:
        house.close()


@pytest.mark.parametrize("is_renamed", [False, True])
def test_an_upload_whose_directory_is_renamed_while_nobody_looks_is_found_again(
    house: House, is_renamed: bool
) -> None:
    house.clock.still = True
    house.restart()
    old = house.write("d/a.csv")
    house.say(old)
    if is_renamed:
        before, old = old, old.rename(old.with_name("b.csv"))
        assert house.say(old, kind=Kind.RENAMED, old=before).outcome is Outcome.DUPLICATE
    house.close()
    new = old.parent.rename(house.tmp_path / "ftp" / "e") / old.name
    house.open()
    assert house.say(new, Source.SCAN).outcome is Outcome.DUPLICATE
    assert house.take() == []
    house.clock.ahead += 2
    eventually(lambda: house.take() == [] and house.pipeline.settled["gone"])
    eventually(lambda: house.rescans == ["ftp"])
    for _ in range(2):
        assert not house.ledgers["ftp"].known(f"e/{new.name}", FileState.of(new.stat()))
        house.restart()
    assert house.say(new, Source.SCAN).outcome is Outcome.OK
    assert [upload.path for upload in house.take()] == [str(new)]


def test_a_renamed_upload_whose_directory_is_replaced_while_nobody_looks_is_found_again(
    house: House,
) -> None:
    house.clock.still = True
    house.restart()
    path = house.write("d/a.csv")
    house.say(path)
    renamed = path.rename(path.with_name("b.csv"))
    assert house.say(renamed, kind=Kind.RENAMED, old=path).outcome is Outcome.DUPLICATE
    house.close()
    new = path.parent.rename(house.tmp_path / "ftp" / "e") / "b.csv"
    house.write("d/a.csv", "another file")
    house.open()
    eventually(lambda: house.take() == [])
    house.clock.ahead += 2
    eventually(lambda: house.take() == [] and house.pipeline.settled["superseded"])
    for _ in range(2):
        assert not house.ledgers["ftp"].known("e/b.csv", FileState.of(new.stat()))
        house.restart()
    assert house.say(new, Source.SCAN).outcome is Outcome.OK


@pytest.mark.parametrize("back", ["d", "e"])
def test_an_upload_that_was_renamed_is_sent_if_it_goes_back_unseen(house: House, back: str) -> None:
    house.clock.still = True
    house.restart()
    path = house.write("d/a.csv")
    house.say(path)
    there = path.rename(house.tmp_path / "other" / "a.csv")
    house.say(there, kind=Kind.RENAMED, old=path)
    assert [upload.path for upload in eventually(house.take)] == [str(there)]
    house.close()
    again = house.tmp_path / "ftp" / back / "a.csv"
    again.parent.mkdir(exist_ok=True)
    there.rename(again)
    house.open()
    assert house.say(again, Source.SCAN).outcome is Outcome.OK
    assert [upload.path for upload in eventually(house.take)] == [str(again)]
    house.clock.ahead += 2
    eventually(lambda: house.take() == [] and house.pipeline.settled["gone"])
    assert house.say(again, Source.SCAN).outcome is Outcome.DUPLICATE


@pytest.mark.parametrize("killed", [False, True])
def test_an_upload_that_waits_and_changed_watch_with_its_directory_is_none_there(
    house: House, killed: bool
) -> None:
    """Though its own watch was scanned since, which drops what it does not see."""
    path, stays = house.write("d/a.csv"), house.write("stays.csv")
    house.say(stays)
    house.settle(house.take()[0])

    def scan() -> None:
        ledger = house.ledgers["ftp"]
        house.dispatcher.call(ledger.flush)
        sweep = ledger.sweep()
        assert sweep.known("stays.csv", FileState.of(stays.stat()))
        sweep.finish(complete=True)

    scan()
    house.say(path)
    other = path.parent.rename(house.tmp_path / "other" / "d")
    house.say(other, kind=Kind.RENAMED, old=path.parent)
    scan()
    assert house.say(other / "a.csv", Source.SCAN).outcome is Outcome.DUPLICATE
    (upload,) = eventually(house.take)
    assert upload.path == str(other / "a.csv")
    # Known by its new name, it is dropped as any other.
    if killed:
        house.restart()
    scan()
    assert house.ledgers["ftp"].get("d/a.csv", upload.state) is None


def test_files_that_go_away_before_their_turn_are_looked_for_now_and_then(tmp_path: Path) -> None:
    house = House(tmp_path, clock=Clock(still=True))
    house.open()
    for number in range(4):
        path = house.write(f"{number}.csv")
        house.say(path)
        path.unlink()
        assert house.take() == []
        house.clock.ahead += 2
        eventually(lambda n=number: house.take() == [] and house.pipeline.settled["gone"] > n)
    house.dispatcher.call(lambda: None)
    assert house.rescans == ["ftp"]
    house.clock.ahead += SEARCH
    eventually(lambda: house.rescans == ["ftp", "ftp"])
    house.close()


def test_an_upload_that_left_and_came_back_under_its_name_is_one_again(house: House) -> None:
    path = house.write("a.csv")
    first = house.say(path).detail
    away = path.rename(path.with_name("a.dat"))
    house.say(away, kind=Kind.RENAMED, old=path)
    eventually(lambda: house.take() == [] and house.pipeline.settled["renamed"])
    away.rename(path)
    again = house.say(path, kind=Kind.RENAMED, old=away)
    assert again.outcome is Outcome.OK
    assert again.detail != first
    assert [upload.id for upload in house.take()] == [again.detail]


def test_an_upload_is_taken_also_at_the_moment_that_its_watch_leaves_the_ini_file(
    house: House,
) -> None:
    path = house.write("a.csv")
    house.say(path)
    house.ledgers.clear()
    assert [upload.path for upload in house.take()] == [str(path)]
