"""What watcher and scans find is decided about in turns of the files' owners."""

from __future__ import annotations

import os
import threading
from collections import deque
from functools import partial
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.house import House
from tests.support.users import ALICE, BOB
from watchman.config.settings import WatchSettings
from watchman.dispatch import turns as module
from watchman.dispatch.turns import AT_STOP, SORTED, UNSORTED, Find, Finds
from watchman.store.inbox import Work
from watchman.uploads.upload import Kind, Notification, Source

pytestmark = pytest.mark.root


class Turns:
    """Finds that are done when a test says so; what is done is noted by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.done: list[str] = []
        self.left: list[tuple[str, int]] = []
        self._work: deque[Work] = deque()
        watch = WatchSettings("in", str(directory))
        self.finds = Finds(
            self,
            locate=lambda path: (watch, os.path.relpath(path, watch.path)),
            request_later=lambda name, owner: self.left.append((name, owner)),
        )

    def bring(self, work: Work, lane: str) -> None:
        assert lane
        self._work.append(work)

    def find(self, name: str, owner: int = BOB, old: str = "") -> None:
        """Find a file of that name, which is made unless it is there."""
        path = self.directory / name
        if not path.exists():
            path.touch()
            os.chown(path, owner, owner)
        old_path = str(self.directory / old) if old else ""
        self.finds.put([(Find(str(path), old_path), partial(self.done.append, name))])

    def take(self, count: int = 1_000_000) -> list[str]:
        """Take that many turns at the most; return what was done in them."""
        before = len(self.done)
        while self._work and count:
            count -= 1
            self._work.popleft()()
        return self.done[before:]


@pytest.fixture
def turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Turns:
    """One find is done in each turn."""
    monkeypatch.setattr(module, "AT_ONCE", 1)
    return Turns(tmp_path)


def test_a_turn_is_shared_by_the_owners_who_wait(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 4)
    for n in range(4):
        turns.find(f"bob{n}")
    assert turns.take(1) == ["bob0", "bob1", "bob2", "bob3"], "as they came: nobody waits for long"
    for n in range(10):
        turns.find(f"bob{n}")
    turns.find("alice", ALICE)
    assert turns.take(1) == ["bob0", "alice", "bob1", "bob2"]
    assert turns.take() == [f"bob{n}" for n in range(3, 10)]


def test_what_cannot_be_decided_about_leaves_the_rest_of_its_turn_alone(
    turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    turns.find("good")
    turns.finds.put([(Find("/bad"), partial(int, "no number"))])
    turns.find("other")
    assert turns.take() == ["good", "other"]
    assert "no number" in caplog.text


def test_owners_take_turns_and_what_is_one_owners_stays_in_order(turns: Turns) -> None:
    for n in range(100):
        turns.find(f"bob{n}")
    assert len(turns.take(10)) == 10
    for n in range(3):
        turns.find(f"alice{n}", ALICE)
    assert turns.take(6) == ["bob10", "alice0", "bob11", "alice1", "bob12", "alice2"]
    assert turns.take() == [f"bob{n}" for n in range(13, 100)]
    assert not turns.take(), "nothing is left"


def test_another_owners_find_waits_for_a_burst_to_be_sorted_and_no_longer(turns: Turns) -> None:
    for n in range(3 * SORTED):
        turns.find(f"bob{n}")
    turns.find("alice", ALICE)
    assert "alice" in turns.take(6)


def test_what_was_found_of_a_path_is_done_at_once_when_somebody_speaks_of_it(turns: Turns) -> None:
    for n in range(10):
        turns.find(f"{n}")
    turns.take(2)
    turns.find("5")
    turns.find("new")
    for name in ("5", "new", "never found"):
        turns.finds.decide_now(str(turns.directory / name))
    assert turns.done == ["0", "1", "5", "5", "new"]
    assert turns.take() == ["2", "3", "4", "6", "7", "8", "9"]


def test_renames_stay_in_order_whatever_else_is_found_of_their_paths(turns: Turns) -> None:
    turns.find("c")
    turns.find("b", old="a")
    turns.find("c", old="b")
    turns.finds.decide_now(str(turns.directory / "c"))
    turns.find("b")
    turns.find("c")
    assert turns.done == ["c"]
    assert turns.take() == ["b", "c", "b", "c"]


def test_who_has_too_much_to_be_looked_at_is_left_to_a_scan_and_others_are_not(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 10)
    for n in range(20):
        turns.find(f"bob{n}")
        turns.find(f"alice{n}", ALICE) if n < 5 else None
    turns.take(1)
    assert turns.left == [("in", BOB)] * 10
    assert (turns.finds.waiting(BOB), turns.finds.waiting(ALICE)) == (9, 5)
    turns.take()
    assert {name for name in turns.done if name.startswith("alice")} == {
        f"alice{n}" for n in range(5)
    }
    assert turns.finds.waiting(BOB) == turns.finds.waiting(ALICE) == 0


def test_whoever_brings_more_than_is_sorted_waits(turns: Turns) -> None:
    for _ in range(2):
        for n in range(UNSORTED):
            turns.finds.put([(Find(str(turns.directory / f"{n}")), lambda: None)], wait=False)
    bringing = threading.Thread(target=turns.find, args=["one more"])
    bringing.start()
    bringing.join(0.2)
    assert bringing.is_alive()
    turns.take(1)
    bringing.join(10)
    assert not bringing.is_alive()
    assert turns.take()[-1] == "one more"


def test_a_link_to_a_file_of_somebody_else_takes_nothing_of_his_turns(turns: Turns) -> None:
    os.chown(turns.directory, BOB, BOB)
    turns.find("alice", ALICE)
    turns.take()
    for n in range(10):
        os.link(turns.directory / "alice", turns.directory / f"link{n}")
        turns.find(f"link{n}")
    turns.find("gone", ALICE)
    os.unlink(turns.directory / "gone")
    turns.take(1)
    assert (turns.finds.waiting(ALICE), turns.finds.waiting(BOB)) == (0, 10)


def test_a_stop_leaves_to_the_next_start_what_takes_long_but_no_rename(turns: Turns) -> None:
    for n in range(AT_STOP + 10):
        turns.finds.put([(Find(f"{turns.directory}/{n}"), partial(turns.done.append, f"{n}"))])
    turns.take(10)
    turns.find("b", owner=0, old="a")
    turns.finds.close()
    turns.take()
    assert len(turns.done) == AT_STOP + 11
    assert turns.done[-1] == "b"


def test_events_and_finds_of_a_dispatcher_that_is_busy_wait_for_their_owners(house: House) -> None:
    busy, free = threading.Event(), threading.Event()

    def be_busy() -> None:
        busy.set()
        free.wait()

    threading.Thread(target=house.dispatcher.call, args=[be_busy]).start()
    busy.wait()
    for n in range(20):
        for user in (BOB, ALICE)[: 1 + (n == 19)]:
            path = house.write(f"{user}-{n}.csv")
            os.chown(path, user, user)
            if n % 2:
                word = Notification(Kind.COMPLETED, str(path), Source.INOTIFY, closed=True)
                house.dispatcher.submit_events([word])
            else:
                word = Notification(Kind.COMPLETED, str(path), Source.SCAN, owner=user)
                assert house.dispatcher.submit_find(word)
    assert house.dispatcher.takes_finds(BOB)
    free.set()
    taken = []
    eventually(lambda: taken.extend(house.take()) or len(taken) == 21)
    order = [Path(u.path).name for u in sorted(taken, key=lambda upload: upload.position)]
    assert order.index(f"{ALICE}-19.csv") < 3
