"""What ProFTPD's sessions say decides about their transfers, and so does a session's death."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.house import Clock, House
from watchman.config.settings import ProftpdSettings, WatchSettings
from watchman.uploads.session import session_in, session_of
from watchman.uploads.upload import Answer, Kind, Notification, Outcome, Source


class Session:
    """A process with a child, as a session of ProFTPD with its hook."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sh", "-c", "sleep 1000; read _"], stdin=subprocess.PIPE)
        self.hook = eventually(self.children)[0]
        self.name = session_of(self.hook)

    def children(self) -> list[int]:
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def go_on(self) -> None:
        """Its hook has ended."""
        os.kill(self.hook, 9)
        eventually(lambda: not self.children())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        try:
            os.kill(self.hook, 9)
        except ProcessLookupError:
            return


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session()
    yield session
    session.kill()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A watch that ProFTPD writes to, and one that it does not."""
    house = House(
        tmp_path,
        watches=(
            WatchSettings("ftp", str(tmp_path / "ftp"), proftpd=True, confirm=0.5),
            WatchSettings("other", str(tmp_path / "other")),
            WatchSettings(
                "strict", str(tmp_path / "strict"), proftpd=True, confirm=0.5, unconfirmed="hold"
            ),
        ),
    )
    house.open()
    yield house
    house.close()


def tell(house: House, kind: Kind, path: Path | str, session: Session, **more: str) -> Answer:
    """What the hook says."""
    answers: list[Answer] = []
    house.dispatcher.submit(
        Notification(kind, str(path), Source.HOOK, session=session.name, **more),
        answers.append,
    )
    return eventually(lambda: answers)[0]


def failed(house: House) -> dict[str, str]:
    rows = house.rows()
    return {row["path"]: row["reason"] for row in rows if row["state"] == "failed"}


def test_the_hooks_word_decides_at_once(house: House, session: Session) -> None:
    path = house.write("a.csv")
    assert house.say(path) == Answer(Outcome.IGNORED, "waiting for ProFTPD's word")
    answer = tell(house, Kind.COMPLETED, path, session)
    assert answer.outcome is Outcome.OK
    assert [upload.id for upload in house.take()] == [answer.detail]
    assert house.say(path).outcome is Outcome.DUPLICATE


def test_what_proftpd_does_not_speak_of_is_accepted_after_a_while(house: House) -> None:
    path = house.write("a.csv")
    began = time.monotonic()
    house.say(path)
    assert [upload.path for upload in house.take(patience=5)] == [str(path)]
    assert time.monotonic() - began >= 0.5


def test_what_has_a_writer_is_waited_for_from_its_closing_on(house: House) -> None:
    path = house.write("a.csv")
    with path.open("a"):
        # It stalls for longer than anything is waited for.
        house.say(path, Source.SCAN)
        house.clock.ahead += 60
        assert house.say(path, Source.SCAN) == Answer(Outcome.IGNORED, "it is being written")
        house.clock.ahead += 5
    assert house.say(path) == Answer(Outcome.IGNORED, "waiting for ProFTPD's word")
    house.clock.ahead += 60
    assert [upload.path for upload in house.take(patience=5)] == [str(path)]


def test_what_proftpd_does_not_speak_of_fails_where_the_ini_file_says_so(house: House) -> None:
    path = house.write("a.csv", watch="strict")
    house.say(path)
    reason = eventually(lambda: failed(house))[str(path)]
    assert "did not confirm" in reason
    house.restart()
    assert str(path) in failed(house)
    assert house.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
    assert house.take() == []


@pytest.mark.parametrize("watch", ["ftp", "other"])
def test_a_started_transfer_is_not_accepted_before_its_end(
    house: House, session: Session, watch: str
) -> None:
    path = house.tmp_path / watch / "a.csv"
    assert tell(house, Kind.STARTED, path, session) == Answer(Outcome.OK)
    house.write("a.csv", watch=watch)
    assert house.say(path) == Answer(Outcome.IGNORED, "ProFTPD is receiving it")
    assert house.take(patience=1) == []
    assert tell(house, Kind.COMPLETED, path, session).outcome is Outcome.OK
    assert [upload.path for upload in house.take()] == [str(path)]


@pytest.mark.parametrize("end", ["failed", "ended", "killed"])
def test_a_transfer_that_fails_is_listed_and_never_sent_until_written_again(
    house: House, session: Session, end: str
) -> None:
    path = house.tmp_path / "ftp" / "a.csv"
    tell(house, Kind.STARTED, path, session)
    house.write("a.csv")
    house.say(path)
    if end == "failed":
        tell(house, Kind.FAILED, path, session, reason="552 too large")
    elif end == "ended":
        tell(house, Kind.ENDED, "", session)
    else:
        session.kill()
    began = time.monotonic()
    eventually(lambda: failed(house))
    assert time.monotonic() - began < 2
    for _ in range(2):
        assert list(failed(house)) == [str(path)]
        for source in (Source.SCAN, Source.INOTIFY):
            assert house.say(path, source).outcome is Outcome.DUPLICATE
        assert house.take() == []
        house.restart()
    path.write_text("whole")
    again = Session()
    assert tell(house, Kind.COMPLETED, path, again).outcome is Outcome.OK
    again.kill()
    assert failed(house) == {}
    house.restart()
    assert failed(house) == {}
    assert len(house.take()) == 1


def test_a_good_file_is_not_touched_by_a_transfer_that_was_refused(
    house: House, session: Session
) -> None:
    path = house.write("a.csv")
    tell(house, Kind.COMPLETED, path, session)
    tell(house, Kind.STARTED, path, session)
    tell(house, Kind.FAILED, path, session)
    tell(house, Kind.STARTED, path, session)
    tell(house, Kind.FAILED, "", session)
    assert failed(house) == {}
    assert len(house.take()) == 1


def test_a_start_that_is_heard_of_too_late_hides_no_failure(house: House, session: Session) -> None:
    """As when the daemon was busy or frozen, and the hook did not wait for it."""
    path = house.write("a.csv")
    session.go_on()
    tell(house, Kind.STARTED, path, session)
    tell(house, Kind.FAILED, path, session)
    assert list(failed(house)) == [str(path)]


@pytest.mark.parametrize("heard", [True, False])
def test_a_failure_told_before_the_file_is_closed_waits_for_that(
    house: House, session: Session, heard: bool
) -> None:
    path = house.tmp_path / "ftp" / "a.csv"
    tell(house, Kind.STARTED, path, session)
    with path.open("w") as file:
        file.write("1")
        file.flush()
        tell(house, Kind.FAILED, path, session, reason="451 aborted")
        assert failed(house) == {}
        file.write("2")
    if heard:
        house.say(path)
    reasons = eventually(lambda: failed(house), timeout=5)
    assert reasons == {str(path): "451 aborted"}
    assert house.take() == []


@pytest.mark.parametrize("restarted", [True, False])
def test_another_file_in_place_of_one_that_failed_and_was_still_open_has_not_failed(
    house: House, session: Session, restarted: bool
) -> None:
    path = house.write("a.csv", watch="other")
    with path.open("a"):
        tell(house, Kind.FAILED, path, session)
        if restarted:
            house.restart()
        house.write(".new", "written by others", watch="other").rename(path)
    house.say(path)
    assert [upload.path for upload in house.take(patience=1.0)] == [str(path)]
    assert failed(house) == {}


def test_a_whole_file_that_another_has_open_is_answered_durably(
    house: House, session: Session
) -> None:
    path = house.write("a.csv")
    with path.open("a"):
        answer = tell(house, Kind.COMPLETED, path, session)
        assert answer.outcome is Outcome.OK
        house.restart()
        (row,) = house.dispatcher.hold_queue.rows()
        assert (row["id"], row["path"]) == (answer.detail, str(path))
    assert [upload.id for upload in house.take(patience=5)] == [answer.detail]
    house.restart()
    assert house.dispatcher.hold_queue.rows() == []


@pytest.mark.parametrize("source", [Source.INOTIFY, Source.SCAN])
def test_what_others_say_of_a_held_file_does_not_undo_the_hooks_word(
    house: House, session: Session, source: Source
) -> None:
    path = house.write("a.csv", watch="strict")
    with path.open("a"):
        answer = tell(house, Kind.COMPLETED, path, session, user="alice")
        house.say(path, source)
        assert [row["reason"] for row in house.dispatcher.hold_queue.rows()] == [
            "it is being written"
        ]
    # Who had it open may have been another session, whose end is yet to be told.
    assert house.say(path, source) == Answer(Outcome.IGNORED, "waiting for ProFTPD's word")
    (upload,) = house.take(patience=5)
    assert (upload.id, upload.user) == (answer.detail, "alice")


def test_a_started_transfer_survives_a_kill_of_the_daemon(house: House, session: Session) -> None:
    path = house.tmp_path / "ftp" / "a.csv"
    tell(house, Kind.STARTED, path, session)
    house.write("a.csv")
    house.restart()
    assert house.say(path, Source.SCAN) == Answer(Outcome.IGNORED, "ProFTPD is receiving it")
    session.kill()
    assert list(eventually(lambda: failed(house))) == [str(path)]


def test_a_transfer_that_ended_while_nobody_listened_is_not_taken_for_failed(
    house: House, session: Session
) -> None:
    path = house.tmp_path / "ftp" / "a.csv"
    tell(house, Kind.STARTED, path, session)
    house.write("a.csv")
    house.close()
    session.kill()
    house.open()
    house.say(path, Source.SCAN)
    assert len(house.take(patience=5)) == 1


def test_a_session_that_lives_on_has_not_failed(house: House, session: Session) -> None:
    path = house.tmp_path / "ftp" / "a.csv"
    other = Session()
    tell(house, Kind.STARTED, path, session)
    tell(house, Kind.STARTED, house.tmp_path / "ftp" / "b.csv", other)
    house.write("a.csv")
    house.write("b.csv")
    other.kill()
    assert list(eventually(lambda: failed(house))) == [str(house.tmp_path / "ftp" / "b.csv")]
    assert tell(house, Kind.COMPLETED, path, session).outcome is Outcome.OK


def test_a_session_that_dies_has_failed_within_two_seconds_though_a_log_is_waited_for(
    logged: House, session: Session
) -> None:
    path = logged.tmp_path / "ftp" / "a.csv"
    tell(logged, Kind.STARTED, path, session)
    logged.write("a.csv")
    logged.say(path)
    began = time.monotonic()
    session.kill()
    eventually(lambda: failed(logged))
    assert time.monotonic() - began < 2


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[House]:
    """As `house`, with a transfer log beside the hooks."""
    house = House(
        tmp_path,
        watches=(
            WatchSettings("ftp", str(tmp_path / "ftp"), proftpd=True, confirm=1.5),
            WatchSettings(
                "strict", str(tmp_path / "strict"), proftpd=True, confirm=0.5, unconfirmed="hold"
            ),
        ),
        proftpd=ProftpdSettings(("/var/log/uploads.log",), "secret"),
    )
    house.open()
    house.catch_up()
    house.ledgers["ftp"].scanned = True
    yield house
    house.close()


def log(
    house: House,
    kind: Kind,
    path: Path,
    session: Session,
    size: int | None = None,
    user: str = "",
) -> Answer:
    """What a line of the transfer log says; a pid is all that it knows of a session."""
    answers: list[Answer] = []
    pid = f"{session.process.pid}."
    house.dispatcher.submit(
        Notification(
            kind, str(path), Source.LOG, session=pid, size=size, user=user, reason="426 failed"
        ),
        answers.append,
    )
    return eventually(lambda: answers)[0]


def test_the_logs_line_decides_and_a_hooks_word_is_a_hint(logged: House, session: Session) -> None:
    path = logged.write("a.csv")
    hint = tell(logged, Kind.COMPLETED, path, session)
    assert hint.outcome is Outcome.OK
    assert logged.take() == []
    assert log(logged, Kind.COMPLETED, path, session, size=6).detail == hint.detail
    assert [upload.id for upload in logged.take()] == [hint.detail]


def test_a_log_that_was_not_read_is_not_silent(logged: House, session: Session) -> None:
    logged.log_lags = True
    path = logged.write("a.csv")
    assert logged.say(path) == Answer(Outcome.IGNORED, "waiting for ProFTPD's word")
    logged.clock.ahead += 60
    logged.say(path, Source.SCAN)
    assert logged.take() == []
    log(logged, Kind.FAILED, path, session)
    logged.log_lags = False
    assert list(eventually(lambda: failed(logged))) == [str(path)]
    assert logged.take() == []


def test_a_hooks_word_counts_when_the_log_stays_silent(logged: House, session: Session) -> None:
    good, bad = logged.write("good.csv"), logged.write("bad.csv")
    tell(logged, Kind.COMPLETED, good, session)
    tell(logged, Kind.FAILED, bad, session)
    assert [upload.path for upload in logged.take(patience=5)] == [str(good)]
    eventually(lambda: failed(logged) == {str(bad): "ProFTPD says that its transfer failed"})


def test_the_logs_failure_overrules_a_hooks_good_word(logged: House, session: Session) -> None:
    path = logged.write("a.csv")
    tell(logged, Kind.COMPLETED, path, session)
    log(logged, Kind.FAILED, path, session)
    assert failed(logged) == {str(path): "426 failed"}
    assert logged.take(patience=2) == []


@pytest.mark.parametrize("silent", [False, True])
def test_what_was_answered_ok_and_fails_then_is_listed_under_that_id(
    logged: House, session: Session, silent: bool
) -> None:
    path = logged.write("a.csv", watch="strict")
    old = str(path.with_name("a.csv.part"))
    told = tell(logged, Kind.RENAMED, path, session, old_path=old)
    assert told.outcome is Outcome.OK
    if not silent:
        log(logged, Kind.FAILED, path, session)
    eventually(lambda: failed(logged))
    for _ in range(2):
        assert [row["id"] for row in logged.rows()] == [told.detail]
        assert not logged.dispatcher.hold_queue
        logged.restart()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_transfer_that_failed_and_was_repeated_at_once_is_one_upload(
    logged: House, session: Session, restarted: bool
) -> None:
    """Both lines may be read when the second one is over, as after a while without watchman."""
    path = logged.write("a.csv")
    log(logged, Kind.FAILED, path, session, size=3)
    assert failed(logged) == {str(path): "426 failed"}
    if restarted:
        logged.restart()
    # A line about something else than what is there now changes nothing.
    assert log(logged, Kind.COMPLETED, path, session, size=5).outcome is Outcome.DUPLICATE
    assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.OK
    assert failed(logged) == {}
    assert [upload.path for upload in logged.take()] == [str(path)]
    assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.DUPLICATE


def test_what_one_reading_of_the_log_tells_of_a_failure_and_then_is_one_story(
    logged: House,
) -> None:
    """Read in one go, as lines are that come together, and written down together."""
    again, old = logged.write("again.csv"), logged.write("old.csv")
    new = old.with_name("new.csv")
    lines = [
        Notification(Kind.FAILED, str(path), Source.LOG, reason="426 failed", size=3)
        for path in (again, old)
    ]
    lines.append(Notification(Kind.COMPLETED, str(again), Source.LOG, size=6))
    lines.append(Notification(Kind.RENAMED, str(new), Source.LOG, old_path=str(old)))
    old.rename(new)
    assert logged.dispatcher.submit_lines("/var/log/uploads.log", lines, 1)
    for _ in range(2):
        assert failed(logged) == {str(new): "426 failed"}
        assert [upload.path for upload in logged.take()] == [str(again)]
        logged.restart()


def test_a_hooks_good_word_overrules_a_failure_only_of_a_transfer_begun_since(
    house: House, session: Session
) -> None:
    """Of two files by SFTP at once hooks may name the wrong one."""
    path = house.write("a.csv")
    tell(house, Kind.FAILED, path, session)
    assert tell(house, Kind.COMPLETED, path, session).outcome is Outcome.DUPLICATE
    assert list(failed(house)) == [str(path)]
    tell(house, Kind.STARTED, path, session)
    assert tell(house, Kind.COMPLETED, path, session).outcome is Outcome.OK
    assert failed(house) == {}


@pytest.mark.parametrize("settle", [0.0, 0.2])
def test_the_word_of_a_rename_is_not_for_what_was_written_since(
    tmp_path: Path, session: Session, settle: float
) -> None:
    """Read together, as after a while without watchman: a rename, and an append that failed."""
    ftp = WatchSettings("ftp", str(tmp_path / "ftp"), proftpd=True, confirm=1.5, settle=settle)
    house = House(
        tmp_path, watches=(ftp,), proftpd=ProftpdSettings(("/var/log/uploads.log",), "secret")
    )
    house.open()
    old, path = tmp_path / "ftp" / "a.csv.part", house.write("a.csv")
    told = Notification(Kind.RENAMED, str(path), Source.LOG, old_path=str(old), at=time.time() - 10)
    assert house.hear(told).detail != "-"
    assert house.take() == []
    log(house, Kind.FAILED, path, session)
    assert failed(house) == {str(path): "426 failed"}
    assert house.take(patience=0.5) == []
    house.close()


@pytest.mark.parametrize("again", [False, True])
def test_what_failed_and_was_renamed_before_word_of_it_came_has_failed_there(
    logged: House, session: Session, again: bool
) -> None:
    old, path = logged.tmp_path / "ftp" / "a.csv", logged.write("b.csv")
    log(logged, Kind.FAILED, old, session)
    if again:
        log(logged, Kind.COMPLETED, old, session)
    answer = logged.say(path, Source.LOG, Kind.RENAMED, old)
    assert answer.outcome is (Outcome.OK if again else Outcome.IGNORED)
    assert failed(logged) == ({} if again else {str(path): "426 failed"})
    assert logged.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
    assert [upload.path for upload in logged.take()] == [str(path)] * again


@pytest.mark.parametrize("restarted", [False, True])
def test_a_late_good_word_is_better_than_none(
    house: House, session: Session, restarted: bool
) -> None:
    path = house.write("a.csv", watch="strict")
    house.say(path)
    eventually(lambda: failed(house))
    if restarted:
        house.restart()
    assert tell(house, Kind.COMPLETED, path, session).outcome is Outcome.OK
    assert failed(house) == {}


@pytest.mark.parametrize("late", [False, True])
def test_the_logs_good_line_overrules_the_end_of_the_session(
    logged: House, session: Session, late: bool
) -> None:
    path = logged.tmp_path / "ftp" / "a.csv"
    tell(logged, Kind.STARTED, path, session)
    logged.write("a.csv")
    tell(logged, Kind.ENDED, "", session)
    if late:
        eventually(lambda: failed(logged))
    assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.OK
    assert failed(logged) == {}
    assert len(logged.take()) == 1


def test_a_line_about_another_size_does_not_decide(logged: House, session: Session) -> None:
    path = logged.write("a.csv")
    log(logged, Kind.COMPLETED, path, session, size=3)
    assert logged.take() == []
    assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.OK


@pytest.mark.parametrize("source", [Source.INOTIFY, Source.SCAN])
def test_silence_proves_nothing_however_much_was_heard_before(
    logged: House, session: Session, source: Source
) -> None:
    """A session may run no hooks, as a chrooted one, and its line of the log comes later."""
    for name in ("a.csv", "b.csv"):
        tell(logged, Kind.STARTED, logged.tmp_path / "ftp" / name, session)
        log(logged, Kind.COMPLETED, logged.write(name), session, size=6)
    assert len(logged.take()) == 2
    path = logged.write("chrooted.csv")
    waiting = Answer(Outcome.IGNORED, "waiting for ProFTPD's word")
    assert logged.say(path, source) == waiting
    log(logged, Kind.FAILED, path, session)
    assert failed(logged) == {str(path): "426 failed"}
    began = time.monotonic()
    ours = logged.write("ours.csv")
    assert logged.say(ours, source) == waiting
    assert [upload.path for upload in logged.take(patience=10)] == [str(ours)]
    assert time.monotonic() - began >= logged.settings.watches["ftp"].confirm


@pytest.mark.parametrize("end", ["426", "killed", "closed"])
@pytest.mark.parametrize("restarted", [False, True])
def test_an_older_good_word_does_not_outlive_the_transfer_that_goes_on(
    logged: House, session: Session, end: str, restarted: bool
) -> None:
    """Two sessions write one file; what both have left is told of by the last one's end alone."""
    path = logged.tmp_path / "ftp" / "a.csv"
    path.write_text("123456")
    with path.open("a"):
        log(logged, Kind.COMPLETED, path, session, size=6, user="alice")
        if restarted:
            logged.restart()
            logged.catch_up()
        # It is looked at again unasked.
        eventually(lambda: logged.dispatcher.hold_queue.rows()[0]["attempts"] > 1)
    eventually(
        lambda: logged.dispatcher.hold_queue.rows()[0]["reason"] == "waiting for ProFTPD's word"
    )
    other = Session()
    if end == "426":
        log(logged, Kind.FAILED, path, other)
        assert failed(logged) == {str(path): "426 failed"}
        assert logged.take() == []
    elif end == "killed":
        # Nothing tells of it: `unconfirmed` decides.
        (upload,) = logged.take(patience=10)
        assert upload.user == "alice"
    else:
        assert log(logged, Kind.COMPLETED, path, other, size=6).outcome is Outcome.OK
        assert len(logged.take()) == 1
    other.kill()


@pytest.mark.parametrize("end", ["226", "426"])
@pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
def test_of_two_who_wrote_a_file_the_word_of_the_last_counts_though_both_are_read_late(
    logged: House, session: Session, end: str, early: bool
) -> None:
    """The first one's line is read when the second one has closed the file, or before that."""
    path = logged.write("a.csv")
    logged.clock.still = True
    with path.open("a"):
        if early:
            log(logged, Kind.COMPLETED, path, session, size=6)
        logged.closed(path)
        assert logged.dispatcher.hold_queue.get(str(path))
    logged.closed(path)
    assert logged.dispatcher.hold_queue.get(str(path))
    if not early:
        assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.OK
    (row,) = logged.dispatcher.hold_queue.rows()
    assert row["reason"] == "waiting for ProFTPD's word"
    other = Session()
    if end == "426":
        log(logged, Kind.FAILED, path, other)
        assert failed(logged) == {str(path): "426 failed"}
        assert logged.take() == []
    else:
        log(logged, Kind.COMPLETED, path, other, size=6)
        assert len(logged.take()) == 1
    other.kill()


def test_a_close_that_is_under_way_when_it_is_heard_is_not_taken_for_another_writer(
    logged: House, session: Session
) -> None:
    """close(2) sends its event before it lets go of the file."""
    path = logged.write("a.csv")
    logged.clock.still = True
    with path.open("a"):
        logged.closed(path)
    assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.OK
    (row,) = logged.dispatcher.hold_queue.rows()
    assert row["reason"] == "it is being closed", "another's close may be heard in a moment"
    logged.clock.still = False
    logged.catch_up()
    assert len(logged.take(patience=5.0)) == 1


def test_a_close_that_was_under_way_is_none_of_another_when_the_file_is_looked_at_again(
    logged: House, session: Session
) -> None:
    path = logged.write("a.csv")
    with path.open("a"):
        logged.closed(path)

    def looked_again() -> bool:
        logged.catch_up()
        (row,) = logged.dispatcher.hold_queue.rows()
        return str(row["reason"]) == "waiting for ProFTPD's word"

    eventually(looked_again)
    assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.OK
    assert len(logged.take(patience=1.0)) == 1


@pytest.mark.parametrize("while_open", [False, True])
@pytest.mark.parametrize(
    "heard", [("line", "close", "line"), ("close", "line", "line"), ("line", "line", "close")]
)
def test_a_file_that_is_appended_to_at_once_does_not_wait_for_a_third_line(
    logged: House, session: Session, heard: tuple[str, ...], while_open: bool
) -> None:
    """The first close is heard when the second transfer has the file open: as if under way."""
    path = logged.tmp_path / "strict" / "a.csv"
    path.write_text("1")
    logged.clock.still = True
    sizes = iter((1, 2))
    rest = iter(heard)
    with path.open("a") as file:
        file.write("2")
        file.flush()
        logged.closed(path)
        if while_open and heard[0] == "line":
            log(logged, Kind.COMPLETED, path, session, size=next(sizes))
            next(rest)
    for what in rest:
        if what == "close":
            logged.closed(path)
        else:
            log(logged, Kind.COMPLETED, path, session, size=next(sizes))
    logged.clock.still = False
    logged.catch_up()
    assert [upload.state.size for upload in logged.take(patience=2.0)] == [2]
    assert failed(logged) == {}


def test_a_close_that_is_heard_after_its_line_is_not_taken_for_that_of_one_more_writer(
    logged: House, session: Session
) -> None:
    path = logged.write("a.csv")
    assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.OK
    assert len(logged.take()) == 1
    with path.open("r+") as file:
        file.write("654321")
        file.flush()
        logged.closed(path)
        assert logged.dispatcher.hold_queue.get(str(path))
    logged.closed(path)
    assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.OK
    assert len(logged.take()) == 1


@pytest.mark.parametrize("refused", [False, True])
def test_of_one_files_lines_that_are_read_together_the_last_counts(
    logged: House, session: Session, refused: bool
) -> None:
    path = logged.write("a.csv")
    lines = [
        Notification(Kind.COMPLETED, str(path), Source.LOG, size=6, session="1."),
        Notification(Kind.FAILED, str(path), Source.LOG, size=6, session="2.", refused=refused),
    ]
    assert logged.dispatcher.submit_lines("/var/log/uploads.log", lines, "mark")
    assert len(failed(logged)) == (not refused)
    assert len(logged.take()) == refused


def test_a_file_that_was_open_when_a_scan_came_by_is_waited_for(
    logged: House, session: Session
) -> None:
    """Its transfer may have begun before we listened."""
    path = logged.tmp_path / "ftp" / "a.csv"
    with path.open("w") as file:
        file.write("half")
        file.flush()
        assert logged.say(path, Source.SCAN).outcome is Outcome.IGNORED
        tell(logged, Kind.STARTED, logged.tmp_path / "ftp" / "other.csv", session)
    assert logged.say(path) == Answer(Outcome.IGNORED, "waiting for ProFTPD's word")
    log(logged, Kind.FAILED, path, session)
    assert failed(logged) == {str(path): "426 failed"}


@pytest.mark.parametrize("name", ["", "a.csv"])
def test_what_a_session_began_without_its_name_is_waited_for(
    logged: House, session: Session, name: str
) -> None:
    """STOU, or several files at once by SFTP, all of which have the first one's name."""
    first, second = (logged.tmp_path / "ftp" / name for name in ("a.csv", "b.csv"))
    tell(logged, Kind.STARTED, first, session)
    logged.write("a.csv")
    tell(logged, Kind.STARTED, logged.tmp_path / "ftp" / name if name else "", session)
    logged.write("b.csv")
    assert logged.say(second).outcome is Outcome.IGNORED
    log(logged, Kind.COMPLETED, first, session, size=6)
    # Its session is over before anybody tells of the second file.
    tell(logged, Kind.ENDED, "", session)
    assert logged.say(second).outcome is Outcome.IGNORED
    log(logged, Kind.FAILED, second, session)
    assert failed(logged) == {str(second): "426 failed"}
    assert [upload.path for upload in logged.take()] == [str(first)]


@pytest.mark.parametrize("restart", [False, True])
def test_a_transfer_that_is_told_of_twice_fails_as_it_was_before_the_first(
    house: House, session: Session, restart: bool
) -> None:
    """As when SFTP writes two files at once: the second start comes in the midst of the first."""
    path = house.tmp_path / "ftp" / "a.csv"
    tell(house, Kind.STARTED, path, session)
    house.write("a.csv")
    tell(house, Kind.STARTED, path, session)
    if restart:
        house.restart()
    session.kill()
    assert list(eventually(lambda: failed(house))) == [str(path)]


def test_transfers_whose_sessions_nobody_can_see_are_waited_for(logged: House) -> None:
    """As of a ProFTPD in another pid namespace."""
    session = Session()
    session.kill()
    session.name = ""
    path = logged.tmp_path / "ftp" / "a.csv"
    assert tell(logged, Kind.STARTED, path, session) == Answer(Outcome.OK)
    assert logged.say(logged.write("a.csv")).outcome is Outcome.IGNORED


def test_a_hooks_good_word_without_a_name_is_of_the_only_transfer(
    house: House, session: Session
) -> None:
    """mod_exec forgets the name when a session reads or renames something while it writes."""
    path = house.tmp_path / "ftp" / "a.csv"
    tell(house, Kind.STARTED, path, session)
    house.write("a.csv")
    assert tell(house, Kind.COMPLETED, "", session).outcome is Outcome.OK
    assert [upload.path for upload in house.take()] == [str(path)]
    assert tell(house, Kind.COMPLETED, "", session) == Answer(Outcome.IGNORED, "no path")
    tell(house, Kind.STARTED, house.write("b.csv"), session)
    tell(house, Kind.STARTED, house.write("c.csv"), session)
    assert tell(house, Kind.COMPLETED, "", session) == Answer(Outcome.IGNORED, "no path")
    assert house.take() == []


def read(house: House) -> None:
    """The log has been read, up to here."""
    assert house.dispatcher.submit_lines("/var/log/uploads.log", [], "mark")


@pytest.mark.parametrize("marked", [True, False])
def test_a_session_that_died_while_nobody_listened_has_failed_if_the_log_is_silent(
    logged: House, session: Session, marked: bool
) -> None:
    if marked:
        read(logged)
    path = logged.tmp_path / "ftp" / "a.csv"
    tell(logged, Kind.STARTED, path, session)
    logged.write("a.csv")
    logged.close()
    session.kill()
    logged.log_lags = True
    logged.open()
    logged.say(path, Source.SCAN)
    assert failed(logged) == {}
    logged.log_lags = False
    logged.catch_up()
    if marked:
        assert eventually(lambda: failed(logged)) == {str(path): "its session died"}
    else:
        # A log that was not read before does not tell of what was then.
        (upload,) = logged.take(patience=5)
        logged.settle(upload)
    logged.restart()
    logged.catch_up()
    assert logged.say(path, Source.SCAN).outcome is Outcome.DUPLICATE
    assert logged.take() == []
    assert list(failed(logged)) == ([str(path)] if marked else [])


def test_a_failure_that_is_spoken_of_before_the_log_was_read_is_listed_once_it_is(
    logged: House, session: Session
) -> None:
    path = logged.write("a.csv")
    tell(logged, Kind.FAILED, path, session)
    logged.log_lags = True
    logged.restart()
    assert logged.say(path).outcome is Outcome.IGNORED
    assert failed(logged) == {}
    logged.log_lags = False
    logged.catch_up()
    assert list(eventually(lambda: failed(logged))) == [str(path)]


def test_the_logs_word_counts_of_a_session_that_died_while_nobody_listened(
    logged: House, session: Session
) -> None:
    read(logged)
    path = logged.tmp_path / "ftp" / "a.csv"
    tell(logged, Kind.STARTED, path, session)
    logged.write("a.csv")
    logged.close()
    session.kill()
    logged.log_lags = True
    logged.open()
    # However long it takes to read it.
    assert logged.take(patience=1.5) == []
    assert failed(logged) == {}
    assert log(logged, Kind.COMPLETED, path, session, size=6).outcome is Outcome.OK
    logged.catch_up()
    assert len(logged.take()) == 1
    assert failed(logged) == {}


def test_a_transfer_of_which_the_log_has_told_is_over_for_good(
    logged: House, session: Session
) -> None:
    path = logged.tmp_path / "ftp" / "a.csv"
    tell(logged, Kind.STARTED, path, session)
    log(logged, Kind.COMPLETED, logged.write("a.csv"), session, size=6)
    (upload,) = logged.take()
    logged.settle(upload)
    logged.restart()
    path.write_text("by another program")
    assert logged.say(path) == Answer(Outcome.IGNORED, "waiting for ProFTPD's word")


def test_a_session_that_is_named_as_in_another_pid_namespace_is_no_session() -> None:
    here = os.readlink("/proc/self/ns/pid")
    assert session_in(f"{here}.12.345") == "12.345"
    assert session_in("pid:[1].12.345") == ""
    assert session_in("") == ""


def test_a_session_in_another_pid_namespace_is_no_session() -> None:
    assert session_of(0) == ""
    assert session_of(2**22 + 1) == ""


def test_the_logs_late_word_outdoes_what_was_listed_as_failed_before_a_restart(
    tmp_path: Path,
) -> None:
    house = House(
        tmp_path,
        watches=(WatchSettings("ftp", str(tmp_path / "ftp"), proftpd=True, unconfirmed="hold"),),
        proftpd=ProftpdSettings(("/var/log/uploads.log",), "token"),
        clock=Clock(still=True),
    )
    house.open()
    path = house.write("a.csv")
    house.say(path)
    house.clock.ahead += 11
    assert "did not confirm" in eventually(lambda: failed(house))[str(path)]
    house.restart()
    assert house.say(path, Source.LOG).outcome is Outcome.OK
    assert failed(house) == {}
    assert len(house.take()) == 1
    house.close()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_hooks_word_is_not_for_what_another_transfer_was_writing_then(
    tmp_path: Path, restarted: bool
) -> None:
    ftp = WatchSettings("ftp", str(tmp_path / "ftp"), proftpd=True)
    house = House(tmp_path, watches=(ftp,), clock=Clock(still=True))
    house.open()
    path = house.write("a.csv")
    with path.open("a") as file:
        assert house.say(path, Source.HOOK).outcome is Outcome.OK
        if restarted:
            house.close()
        file.write("half")
    if restarted:
        house.open()
    house.clock.ahead += 5
    reason = "waiting for ProFTPD's word"
    eventually(lambda: [row["reason"] for row in house.dispatcher.hold_queue.rows()] == [reason])
    assert house.take() == []
    house.close()
