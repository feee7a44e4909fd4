"""What ProFTPD's sessions say decides about their transfers, and so does a session's death."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.test_dispatcher import House
from watchman.sessions import session_of
from watchman.settings import WatchSettings
from watchman.upload import Answer, Kind, Notification, Outcome, Source


class Session:
    """A process with a child, as a session of ProFTPD with its hook."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sh", "-c", "sleep 1000; exit"])
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        self.hook = int(eventually(lambda: Path(children).read_text().split())[0])
        self.name = session_of(self.hook)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
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
    rows = house.dispatcher.pipeline.rows()
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


def test_a_whole_file_that_another_has_open_is_answered_durably(
    house: House, session: Session
) -> None:
    path = house.write("a.csv")
    with path.open("a"):
        answer = tell(house, Kind.COMPLETED, path, session)
        assert answer.outcome is Outcome.OK
        house.restart()
        (row,) = house.dispatcher.held.rows()
        assert (row["id"], row["path"]) == (answer.detail, str(path))
    assert [upload.id for upload in house.take(patience=5)] == [answer.detail]
    house.restart()
    assert house.dispatcher.held.rows() == []


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


def test_a_session_in_another_pid_namespace_is_no_session() -> None:
    assert session_of(0) == ""
    assert session_of(2**22 + 1) == ""
