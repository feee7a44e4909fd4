"""Of each upload that has failed somebody is told, by a task of `on_failed`, or status says so."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.house import House
from tests.support.inis import INI
from watchman.config.settings import OnFailed
from watchman.uploads.upload import Report, State, Upload

ON_FAILED = OnFailed("c", "ops.upload_failed")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, on_failed=ON_FAILED)
    house.open()
    yield house
    house.close()


def fail(house: House, name: str = "a.csv") -> Upload:
    """Have an upload fail at its broker."""
    house.say(house.write(name))
    [upload] = house.take(patience=5)
    house.pipeline.report([Report(upload, State.FAILED, "no such task")])
    eventually(lambda: house.pipeline.failures.untold())
    return upload


def alarms(house: House, patience: float = 5.0) -> list[Upload]:
    return house.take("c", patience)


def untold(house: House) -> int:
    return len(house.pipeline.failures.untold())


def test_a_failed_upload_becomes_one_alarm_that_says_what_and_why(house: House) -> None:
    upload = fail(house)
    [alarm] = alarms(house)
    assert alarm.task is not None
    assert (alarm.task.name, alarm.task.args) == ("ops.upload_failed", [])
    assert alarm.task.kwargs == {
        "id": upload.id,
        "path": upload.path,
        "user": "",
        "client": "",
        "reason": "no such task",
    }
    assert alarm.alarm_of == upload.id != alarm.id
    assert untold(house) == 1, "nobody was told yet"
    house.pipeline.report([Report(alarm, State.DONE)])
    eventually(lambda: not untold(house))
    assert [row["state"] for row in house.rows()] == ["failed"], "it is still listed"
    assert house.pipeline.settled["done"] == 0, "an alarm is no upload"
    house.restart()
    assert not untold(house)
    assert alarms(house, 0.2) == [], "who was told is not told again"


def test_an_alarm_has_the_same_id_after_a_kill_whatever_was_written_by_then(house: House) -> None:
    fail(house)
    [alarm] = alarms(house)
    # It may have been sent, and that was not written down.
    house.restart()
    [again] = alarms(house)
    assert (again.id, again.task) == (alarm.id, alarm.task)
    # Killed between the record of the failure and that of the alarm.
    house.close()
    segment = next((house.tmp_path / "spool/journal").glob("*.jsonl"))
    lines = segment.read_text().splitlines(keepends=True)
    kept = [line for line in lines if f'"id":"{alarm.id}"' not in line]
    assert len(kept) == len(lines) - 1
    segment.write_text("".join(kept))
    house.open()
    [third] = alarms(house)
    assert (third.id, third.task) == (alarm.id, alarm.task)


def test_what_fails_again_is_told_again_under_another_id(house: House) -> None:
    upload = fail(house)
    [alarm] = alarms(house)
    house.pipeline.report([Report(alarm, State.DONE)])
    eventually(lambda: not untold(house))
    assert house.retry(failed="yes") == [upload.id]
    [again] = house.take(patience=5)
    house.pipeline.report([Report(again, State.FAILED, "still no such task")])
    [second] = alarms(house)
    assert second.alarm_of == upload.id
    assert second.id != alarm.id
    assert untold(house) == 1


def test_an_alarm_that_cannot_be_sent_makes_no_other_and_is_tried_with_the_next_start(
    house: House,
) -> None:
    fail(house)
    [alarm] = alarms(house)
    house.pipeline.report([Report(alarm, State.FAILED, "args cannot be encoded")])
    [failure] = eventually(lambda: [f for f in house.pipeline.failures.untold() if f.refused])
    assert failure.refused == "args cannot be encoded"
    assert alarms(house, 0.3) == []
    assert [row["state"] for row in house.rows()] == ["failed"]
    house.restart()
    [again] = alarms(house)
    assert again.id == alarm.id
    # Or with another task in the INI file.
    house.pipeline.report([Report(again, State.FAILED, "args cannot be encoded")])
    eventually(lambda: [f for f in house.pipeline.failures.untold() if f.refused])
    house.dispatcher.change(
        replace(house.settings, on_failed=OnFailed("c", "ops.other")), house.ledgers
    )
    [other] = alarms(house)
    assert other.task is not None
    assert other.task.name == "ops.other"


def test_an_alarm_waits_while_its_broker_is_away_and_no_pause_of_its_watch_holds_it_back(
    house: House,
) -> None:
    fail(house)
    house.pipeline.backlogs.pause({"watch:ftp"})
    [alarm] = alarms(house)
    house.pipeline.report([Report(alarm, State.DEFERRED, "connection refused")])
    assert untold(house) == 1
    assert [again.id for again in alarms(house)] == [alarm.id]


def test_an_operator_who_drops_alarm_or_upload_need_not_be_told(house: House) -> None:
    for name, drops_alarm in (("a.csv", True), ("b.csv", False)):
        upload = fail(house, name)
        [alarm] = alarms(house)
        if drops_alarm:
            house.dispatcher.call(lambda alarm=alarm: house.pipeline.drop(alarm))
        else:
            house.dispatcher.call(lambda upload=upload: house.pipeline.failures.drop(upload))
        eventually(lambda: not untold(house))
    house.restart()
    assert not untold(house)


def test_what_failed_before_there_was_the_option_is_told_once_there_is(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.open()
    try:
        upload = fail(house)
        assert alarms(house, 0.3) == []
        house.dispatcher.change(replace(house.settings, on_failed=ON_FAILED), house.ledgers)
        [alarm] = alarms(house)
        assert alarm.alarm_of == upload.id
        assert uuid.UUID(alarm.id)
    finally:
        house.close()


def test_a_journal_with_alarms_is_compacted_and_nothing_of_them_is_lost(tmp_path: Path) -> None:
    """Old segments go once what they hold is settled; that an alarm was sent is held."""
    house = House(tmp_path, on_failed=ON_FAILED, segment_size=2_000)
    house.open()
    try:
        told, waiting = fail(house, "told.csv"), None
        [alarm] = alarms(house)
        house.pipeline.report([Report(alarm, State.DONE)])
        eventually(lambda: not untold(house))
        waiting = fail(house, "waits.csv")
        [second] = alarms(house)
        for number in range(30):
            house.say(house.write(f"{number}.csv"))
            [upload] = house.take(patience=5)
            house.settle(upload)
        eventually(lambda: house.pipeline.settled["done"] == 30)
        segment = tmp_path / "spool/journal/00000001.jsonl"
        eventually(lambda: b'"holds"' in segment.read_bytes())
        house.restart()
        assert {row["id"] for row in house.rows()} == {told.id, waiting.id, second.id}
        assert untold(house) == 1
        assert [again.id for again in alarms(house)] == [second.id]
    finally:
        house.close()


#: A task that can never be sent: the name of its routing key is too long.
FAILING = f"""{INI}
[task:bad]
pattern = *.bad
broker = b
task = tests.record
exchange = x
routing_key = {"k" * 300}
"""


def test_status_is_not_healthy_until_somebody_was_told_or_has_dropped_it(
    tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    (tmp_path / "in").mkdir()
    daemon = start_watchman(FAILING)
    (tmp_path / "in/one.bad").write_text("1")
    [problem] = eventually(lambda: daemon.status()["problems"])
    assert problem.startswith("1 upload has failed: ")
    assert "on_failed" not in problem
    done = daemon.run("status")
    assert (done.returncode, problem in done.stdout) == (1, True)
    assert daemon.run("drop", "--failed").returncode == 0
    assert daemon.run("status").returncode == 0

    spool = f"[watchman]\nspool = {tmp_path}/spool\nsocket = {tmp_path}/watchman.sock\n"
    daemon.configure(f"{spool}on_failed = b:ops.upload_failed\n{FAILING}")
    assert daemon.run("reload").stdout == "on_failed changed\n"
    checked = daemon.run("check").stdout
    assert "on_failed       ops.upload_failed goes to broker b, queue 'celery'" in checked
    (tmp_path / "in/two.bad").write_text("1")
    eventually(lambda: [row["state"] for row in daemon.queue()] == ["failed"])
    [task] = eventually(lambda: published(tmp_path / "broker"))
    [row] = eventually(lambda: len(rows := daemon.queue()) == 1 and rows)
    assert (task["task"], task["args"]) == ("ops.upload_failed", [])
    assert (task["kwargs"]["id"], task["kwargs"]["path"]) == (row["id"], f"{tmp_path}/in/two.bad")
    assert task["kwargs"]["reason"] == row["reason"]
    assert task["watchman"]["alarm_of"] == row["id"]
    eventually(lambda: daemon.status()["healthy"])
    # The story of the file has the alarm, which is never taken for an upload of it.
    assert daemon.run("explain", task["kwargs"]["path"]).returncode == 0
    refused = daemon.send("--same-id", task["kwargs"]["path"])
    assert f"{row['id']} has failed" in refused.stderr
