"""What `watchman explain` tells of the past, and of what is not settled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deadline import eventually
from tests.support.house import House
from watchman.operate.history import FIELDS, LATEST, tell
from watchman.sinks.tries import ANSWERS
from watchman.uploads.upload import Report, Source, State


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, segment_size=2_000)
    house.open()
    yield house
    house.close()


def told(house: House, subject: Path | str) -> dict[str, Any]:
    is_path = "/" in str(subject)
    *waits, story = tell(
        str(subject) if is_path else "",
        "" if is_path else str(subject),
        journal=house.journal,
        queue_view=house.unsettled(),
        hold_queue=house.dispatcher.hold_queue,
    )
    assert set(waits) <= {None}
    assert story is not None
    return story


def events(house: House, subject: Path | str) -> list[str]:
    return [record["event"] for record in told(house, subject)["story"]]


def test_an_upload_is_told_of_by_its_path_and_its_id_also_after_a_restart(house: House) -> None:
    path = house.write("a.csv")
    upload_id = house.say(path, Source.HOOK).detail
    house.settle(house.take()[0])
    for _ in range(2):
        for subject in (path, upload_id):
            assert events(house, subject) == ["accepted", "done"]
            assert told(house, subject)["now"] == []
        house.restart()
    assert events(house, house.tmp_path / "ftp" / "b.csv") == []


def test_what_is_not_settled_is_told_as_it_stands(house: House) -> None:
    path = house.write("a.csv")
    upload_id = house.say(path).detail
    (upload,) = house.take()
    reason = "queue 'x' cannot be reached"
    house.dispatcher.pipeline.report([Report(upload, State.DEFERRED, reason, "queue 'x'", 60)])
    for subject in (path, upload_id):
        (now,) = told(house, subject)["now"]
        assert (now["id"], now["state"], now["reason"]) == (upload_id, "deferred", reason)
    with (house.tmp_path / "ftp" / "b.csv").open("w") as writer:
        writer.write("1")
        writer.flush()
        house.say(Path(writer.name), Source.HOOK)
        (now,) = told(house, writer.name)["now"]
        assert (now["state"], now["reason"]) == ("noticed", "it is being written")


def test_of_a_path_that_is_written_again_and_again_the_latest_uploads_are_told(
    house: House,
) -> None:
    path = house.tmp_path / "ftp" / "a.csv"
    for n in range(LATEST + 5):
        house.write("a.csv", "x" * n)
        house.say(path)
        (upload,) = house.take()
        house.dispatcher.pipeline.report([Report(upload, State.DONE)])
        eventually(lambda n=n: house.dispatcher.pipeline.settled[State.DONE.value] == n + 1)
    found = told(house, path)
    assert [record["event"] for record in found["story"]] == ["accepted", "done"] * LATEST
    assert found["earlier"] == 5
    assert found["story"][-2]["state"][2] == LATEST + 4


def test_an_upload_is_told_with_where_it_went_and_each_answer(house: House) -> None:
    path = house.write("a.csv")
    upload_id = house.say(path, Source.HOOK).detail
    for number, answer in enumerate(("refused", "refused", "full", "full", "refused")):
        (upload,) = house.take()
        deferred = Report(upload, State.DEFERRED, answer, tried=number != 3)
        house.dispatcher.pipeline.report([deferred])
    (upload,) = house.take()
    sent = {"queue": "tables", "answer": "confirmed"}
    house.dispatcher.pipeline.report([Report(upload, State.DONE, sent=sent)])
    eventually(lambda: house.dispatcher.pipeline.settled[State.DONE.value] == 1)
    for _ in range(2):
        for subject in (path, upload_id, upload_id[:9]):
            (one,) = told(house, subject)["uploads"]
            assert one.keys() == set(FIELDS)
            known = ("id", "state", "path", "broker", "queue", "exchange", "size", "source")
            assert [one[name] for name in known] == [
                *(upload_id, "done", str(path), "b", "tables", None, 6, "hook")
            ]
            answers = [(n["number"], n["place"], n["answer"]) for n in one["tries"]]
            assert answers == [
                (1, "broker:b", "refused"),
                (3, "broker:b", "full"),
                (4, "broker:b", "refused"),
                (5, "broker:b", "confirmed"),
            ]
        house.restart()
        assert house.rows() == []


def test_a_record_of_a_try_settles_nothing(house: House) -> None:
    """Nor for an earlier version, which takes what has an `id` and no file for an end."""
    house.say(house.write("a.csv"))
    (upload,) = house.take()
    house.dispatcher.pipeline.report([Report(upload, State.DEFERRED, "away", tried=True)])
    eventually(lambda: "tried" in events(house, upload.path))
    (record,) = [one for one in told(house, upload.path)["story"] if one["event"] == "tried"]
    assert record.keys() == {"event", "at", "of", "place", "try", "answer"}
    house.restart()
    (again,) = house.take()
    assert again.id == upload.id
    (one,) = told(house, upload.path)["uploads"]
    assert (one["state"], [n["answer"] for n in one["tries"]]) == ("accepted", ["away"])


def test_what_was_settled_before_routes_were_written_down_is_told_without(house: House) -> None:
    path = house.write("a.csv")
    house.say(path)
    house.settle(house.take()[0])
    (one,) = told(house, path)["uploads"]
    assert (one["state"], one["queue"], one["exchange"]) == ("done", None, None)
    assert [(n["number"], n["answer"]) for n in one["tries"]] == [(1, "sent")]


def test_answers_that_are_new_each_time_are_written_down_some_times(house: House) -> None:
    house.say(house.write("a.csv"))
    for number in range(ANSWERS + 5):
        (upload,) = house.take()
        report = Report(upload, State.DEFERRED, f"answer {number}", tried=True)
        house.dispatcher.pipeline.report([report])
    house.settle(house.take()[0])
    (one,) = told(house, upload.path)["uploads"]
    assert len(one["tries"]) == ANSWERS + 1
    assert one["tries"][-1]["number"] == ANSWERS + 6
