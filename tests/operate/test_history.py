"""What `watchman explain` tells of the past, and of what is not settled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deadline import eventually
from tests.support.house import House
from watchman.operate.history import LATEST, tell
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
