"""The store of what is done: bounded, and one at a time for each upload."""

import contextlib
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from watchman.worker import store as module
from watchman.worker.store import Done, Mark, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "done.sqlite"), keep=3600.0)


def test_what_was_recorded_is_found_by_others(store: Store, tmp_path: Path) -> None:
    one, two = Done("accepted", Mark(1, 2, 2**62)), Done("", None)
    store.record("one", one)
    store.record("two", two)
    other = Store(str(tmp_path / "done.sqlite"), keep=3600.0)
    assert (other.find("one"), other.find("two"), other.find("three")) == (one, two, None)


def test_old_ids_go_faster_than_new_ones_come(store: Store, tmp_path: Path) -> None:
    for number in range(25):
        store.record(f"old-{number}", Done("", None))
    with contextlib.closing(sqlite3.connect(tmp_path / "done.sqlite")) as database:
        with database:
            database.execute("update done set at = at - 3601")
        for number in range(3):
            store.record(f"new-{number}", Done("", None))
        left = [row[0] for row in database.execute("select id from done order by id")]
    assert left == ["new-0", "new-1", "new-2"]


def test_one_upload_is_held_by_one_and_others_are_not_held_up(store: Store) -> None:
    waited: list[float] = []

    def wait() -> None:
        began = time.monotonic()
        with store.holding("one"):
            waited.append(time.monotonic() - began)

    thread = threading.Thread(target=wait)
    with store.holding("one"):
        thread.start()
        with store.holding("two"):
            pass
        time.sleep(2 * module.PAUSE)
        assert waited == []
    thread.join(10)
    assert waited[0] >= 2 * module.PAUSE


def test_only_ends_that_nobody_tells_of_are_counted(store: Store) -> None:
    assert [store.begin("one"), store.begin("one"), store.begin("two")] == [1, 2, 1]
    store.end("one")
    assert store.begin("one") == 1
    store.record("two", Done("", None))
    assert store.begin("two") == 1
