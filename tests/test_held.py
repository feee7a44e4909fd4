"""How many files are held, and in what order they are looked at again."""

import os
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from tests import bulk
from tests.deadline import eventually
from tests.house import House
from watchman.dispatcher import FINDS
from watchman.held import AT_ONCE, FOUND, Held
from watchman.sessions import session_of
from watchman.settings import WatchSettings
from watchman.upload import Answer, Kind, Notification, Outcome, Source


def hold(held: Held, path: str, source: Source, *, watch: str = "", wait: float = 9.0) -> None:
    word = Notification(Kind.COMPLETED, path, source)
    held.hold(path, word, held.get(path), state=None, reason="", wait=wait, watch=watch)


def test_scans_find_no_more_of_a_watch_than_is_held_at_once() -> None:
    held = Held()
    for n in range(FOUND):
        hold(held, f"/told/{n}", Source.HOOK)
        assert held.takes("in", f"/in/{n}")
        hold(held, f"/in/{n}", Source.SCAN, watch="in")
        hold(held, f"/in/{n}", Source.SCAN, watch="in")
    assert not held.takes("in", "/in/new")
    assert held.takes("in", "/in/0"), "it is held already"
    assert held.takes("other", "/other/new"), "no other watch waits for this one"
    for n in range(FOUND // 2):
        assert not held.takes("in")
        held.pop(f"/in/{n}")
    assert held.takes("in")
    held.remove(lambda path: path.startswith("/in/"))
    for n in range(FOUND):
        hold(held, f"/in/{n}", Source.SCAN, watch="in")
        assert held.takes("in", "/in/new") == (n < FOUND - 1)


def test_what_is_due_is_looked_at_again_in_turns() -> None:
    held, now = Held(), time.monotonic()
    for n in range(3 * AT_ONCE):
        hold(held, f"/in/{n}", Source.SCAN, watch="in", wait=1.0)
    later = now + 60
    turns: list[list[str]] = []
    while turn := held.due(later):
        assert held.patience(later) == (0.0 if len(turns) < 2 else 1.0)
        turns.append([noticed.path for noticed in turn])
    assert [len(turn) for turn in turns] == [AT_ONCE] * 3
    assert list(chain(*turns)) == [f"/in/{n}" for n in range(3 * AT_ONCE)]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(
        tmp_path,
        watches=(WatchSettings("ftp", str(tmp_path / "ftp"), proftpd=True, confirm=0.1),),
    )
    house.open()
    yield house
    house.close()


def test_a_hooks_word_passes_what_scans_have_found_and_what_is_due(house: House) -> None:
    found = list(bulk.create(Path(house.settings.watches["ftp"].path), range(2_000)))
    path = house.write("hooked.csv")
    answers: list[Answer] = []
    for n, file in enumerate(found):
        house.dispatcher.submit_find(Notification(Kind.COMPLETED, file, Source.SCAN))
        if n == 1_000:
            # No more than these are before it, and the one that is being heard.
            assert house.dispatcher.heard["scan"] >= n - FINDS
            hook = Notification(Kind.COMPLETED, str(path), Source.HOOK)
            house.dispatcher.submit(hook, answers.append)
    assert eventually(lambda: answers)[0].outcome is Outcome.OK
    taken = []
    eventually(lambda: taken.extend(house.take()) or len(taken) == 2_001)
    assert {upload.path for upload in taken} == {str(path), *found}


def test_what_waits_for_a_transfer_is_looked_at_when_that_is_over(tmp_path: Path) -> None:
    house = House(
        tmp_path, watches=(WatchSettings("ftp", str(tmp_path / "ftp"), proftpd=True, confirm=0.1),)
    )
    house.open()
    session = session_of(os.getpid())
    path = house.write("a.csv")

    def tell(kind: Kind, where: Path | str) -> Answer:
        return house.hear(Notification(kind, str(where), Source.HOOK, session=session))

    # A transfer begins over a file that another program has written, and is refused.
    tell(Kind.STARTED, path)
    assert house.say(path) == Answer(Outcome.IGNORED, "ProFTPD is receiving it")
    tell(Kind.FAILED, "")
    assert [upload.path for upload in house.take(patience=5)] == [str(path)]
    house.close()
