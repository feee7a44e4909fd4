"""How many files are held, and in what order they are looked at again."""

import os
import time
from itertools import chain
from pathlib import Path

from tests.support.house import House
from watchman.config.settings import WatchSettings
from watchman.dispatch.hold_queue import AT_ONCE, IDLE, HoldQueue
from watchman.dispatch.verdicts import Hold
from watchman.uploads.session import session_of
from watchman.uploads.upload import Answer, Kind, Notification, Outcome, Source


def hold(hold_queue: HoldQueue, path: str, source: Source, *, owner: int | None = None) -> None:
    word = Notification(Kind.COMPLETED, path, source, owner=owner)
    hold_queue.hold(path, word, hold_queue.get(path), Hold(reason="", wait=1.0))


def test_what_scans_have_found_of_an_owner_is_counted_while_it_is_held() -> None:
    hold_queue = HoldQueue()
    for n in range(10):
        hold(hold_queue, f"/told/{n}", Source.HOOK)
        for _ in range(2):
            hold(hold_queue, f"/in/{n}", Source.SCAN, owner=7)
        hold(hold_queue, f"/in/{n}", Source.INOTIFY)
    assert (hold_queue.found(7), hold_queue.found(8)) == (10, 0)
    noticed = hold_queue.pop("/in/0")
    assert noticed is not None
    assert hold_queue.found(7) == 9
    hold_queue.put_back(noticed)
    assert hold_queue.found(7) == 10
    hold_queue.remove(lambda path: path.startswith("/in/"))
    assert hold_queue.found(7) == 0


def test_what_is_due_is_looked_at_again_in_turns() -> None:
    hold_queue, now = HoldQueue(), time.monotonic()
    for n in range(3 * AT_ONCE):
        hold(hold_queue, f"/in/{n}", Source.SCAN)
    later = now + 60
    turns: list[list[str]] = []
    while turn := hold_queue.due(later):
        assert hold_queue.patience(later) == (0.0 if len(turns) < 2 else IDLE)
        turns.append([noticed.path for noticed in turn])
    assert [len(turn) for turn in turns] == [AT_ONCE] * 3
    assert list(chain(*turns)) == [f"/in/{n}" for n in range(3 * AT_ONCE)]


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
