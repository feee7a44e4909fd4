"""`settle`: a file is accepted once nothing has changed it, its name or its times for a while."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.house import House
from watchman.config.settings import WatchSettings
from watchman.uploads.upload import Answer, Kind, Notification, Outcome, Source

#: Seconds; what is asked of it below is asked with a wide margin, for the machine may be busy.
SETTLE = 1.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A watch that settles at once, and one that ProFTPD alone writes to."""
    house = House(
        tmp_path,
        watches=(
            WatchSettings("ftp", str(tmp_path / "ftp"), settle=SETTLE),
            WatchSettings(
                "strict",
                str(tmp_path / "strict"),
                proftpd=True,
                confirm=0.1,
                unconfirmed="hold",
                settle=SETTLE,
            ),
        ),
    )
    house.open()
    yield house
    house.close()


def tell(house: House, kind: Kind, path: Path, **more: str) -> Answer:
    """What a hook says, with what it knows."""
    answers: list[Answer] = []
    notification = Notification(kind, str(path), Source.HOOK, user="alice", **more)
    house.dispatcher.submit(notification, answers.append)
    return eventually(lambda: answers)[0]


def reasons(house: House) -> dict[str, str]:
    rows = house.dispatcher.hold_queue.rows() + house.rows()
    return {os.path.basename(row["path"]): row["reason"] for row in rows}


@pytest.mark.parametrize("source", [Source.INOTIFY, Source.SCAN, Source.HOOK])
def test_a_file_is_accepted_once_it_was_quiet_for_that_long(house: House, source: Source) -> None:
    path = house.write("a.csv")
    written = time.time()
    house.say(path, source)
    assert reasons(house) == {"a.csv": "settling"}
    assert [upload.path for upload in house.take(patience=5)] == [str(path)]
    assert time.time() - written >= SETTLE - 0.1


@pytest.mark.parametrize("ahead", [-86_400.0, 0.0, 86_400.0])
def test_quiet_is_what_was_watched_whatever_clocks_and_times_say(
    house: House, ahead: float
) -> None:
    for seconds in (0, time.time() - 3600, time.time() + 3600, 8_580_000_000):
        path = house.write(f"{seconds}.csv")
        os.utime(path, (seconds, seconds))
        house.clock.shift = ahead
        began = time.monotonic()
        assert house.say(path) == Answer(Outcome.IGNORED, "settling")
        assert len(house.take(patience=5)) == 1
        assert time.monotonic() - began >= SETTLE - 0.1


@pytest.mark.parametrize("change", ["content", "times", "rights"])
def test_whatever_changes_begins_the_wait_anew(house: House, change: str) -> None:
    path = house.write("a.csv")
    house.say(path)
    for _ in range(3):
        time.sleep(SETTLE / 4)
        assert house.take() == []
        if change == "content":
            path.write_text("more")
        elif change == "times":
            os.utime(path, (1, 1))
        else:
            path.chmod(0o640)
        changed = time.time()
    (upload,) = house.take(patience=5)
    assert time.time() - changed >= SETTLE - 0.1
    assert upload.state.size == path.stat().st_size


def test_a_hooks_word_is_durable_while_its_file_settles(house: House) -> None:
    path = house.write("a.csv", watch="strict")
    answer = tell(house, Kind.COMPLETED, path)
    assert answer.outcome is Outcome.OK
    house.restart()
    assert reasons(house) == {"a.csv": "settling"}
    house.say(path, Source.SCAN)
    (upload,) = house.take(patience=5)
    assert (upload.id, upload.user) == (answer.detail, "alice")
    house.restart()
    assert reasons(house) == {"a.csv": ""}


def test_a_hooks_word_stands_whoever_speaks_of_the_file_afterwards(house: House) -> None:
    path = house.write("a.csv", watch="strict")
    answer = tell(house, Kind.COMPLETED, path)
    os.utime(path, (1, 1))
    for source in (Source.INOTIFY, Source.SCAN):
        assert house.say(path, source).outcome is Outcome.IGNORED
    (upload,) = house.take(patience=5)
    assert (upload.id, upload.user, upload.source) == (answer.detail, "alice", Source.HOOK)


def test_a_hooks_word_does_not_stand_for_what_was_written_later(house: House) -> None:
    path = house.write("a.csv", watch="strict")
    tell(house, Kind.COMPLETED, path)
    path.write_text("something else")
    house.say(path)
    eventually(lambda: "did not confirm" in reasons(house).get("a.csv", ""))
    assert house.take() == []


@pytest.mark.parametrize("source", [Source.INOTIFY, Source.HOOK])
def test_a_file_renamed_while_it_settles_is_one_upload_of_its_new_name(
    house: House, source: Source
) -> None:
    path = house.write("a.csv", watch="strict")
    tell(house, Kind.COMPLETED, path)
    new = path.rename(path.with_name("b.csv"))
    house.say(new, source, Kind.RENAMED, old=path)
    house.restart()
    (upload,) = house.take(patience=5)
    assert (upload.path, upload.user) == (str(new), "alice")
    eventually(lambda: reasons(house) == {"b.csv": ""})
    assert house.take(patience=SETTLE / 2) == []


def test_a_file_whose_directory_is_renamed_while_it_settles_follows(house: House) -> None:
    path = house.write("d/a.csv", watch="strict")
    tell(house, Kind.COMPLETED, path)
    new = path.parent.rename(house.tmp_path / "strict" / "e")
    house.say(new, kind=Kind.RENAMED, old=path.parent)
    (upload,) = house.take(patience=5)
    assert upload.path == str(new / "a.csv")
    assert house.take(patience=SETTLE) == []


def test_a_file_deleted_while_it_settles_is_gone(house: House) -> None:
    path = house.write("a.csv", watch="strict")
    answer = tell(house, Kind.COMPLETED, path)
    path.unlink()
    eventually(lambda: reasons(house) == {})
    assert house.take() == []

    def story() -> list[str]:
        return [record["event"] for record in house.journal.records({answer.detail}, ())]

    eventually(lambda: story() == ["noticed", "gone"])


def test_a_transfer_that_fails_without_touching_a_settling_file_does_it_no_harm(
    house: House,
) -> None:
    path = house.write("a.csv", watch="strict")
    tell(house, Kind.COMPLETED, path)
    tell(house, Kind.FAILED, path, reason="550 denied")
    assert reasons(house) == {"a.csv": "settling"}
    assert len(house.take(patience=5)) == 1


def test_a_transfer_that_fails_while_its_file_settles_is_listed(house: House) -> None:
    path = house.write("a.csv", watch="strict")
    tell(house, Kind.COMPLETED, path)
    path.write_text("half of it")
    tell(house, Kind.FAILED, path, reason="426 aborted")
    assert reasons(house) == {"a.csv": "426 aborted"}
    assert house.take(patience=SETTLE) == []
