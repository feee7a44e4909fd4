"""Uploads are taken in order of arrival, past those that are held up."""

import threading
import time

from tests.support.deadline import eventually
from watchman.sinks.backlog import ASIDE, Backlog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def filled(*positions: int) -> tuple[Backlog, Clock]:
    clock = Clock()
    backlog = Backlog(clock)
    for position in positions:
        backlog.add(position)
    return backlog, clock


def test_the_oldest_are_taken_first() -> None:
    backlog, _ = filled(3, 1, 2)
    assert backlog.take(2, 0) == [1, 2]
    assert backlog.take(2, 0) == [3]
    assert backlog.take(2, 0) == []


def test_what_is_put_back_goes_back_to_its_place() -> None:
    backlog, _ = filled(1, 2, 3)
    for position in backlog.take(2, 0):
        backlog.put_back(position)
    assert backlog.take(3, 0) == [1, 2, 3]


def test_a_lane_that_is_shut_holds_up_nobody_else() -> None:
    backlog, clock = filled(1, 2, 3)
    for position in backlog.take(2, 0):
        backlog.put_back(position, "route", 10.0, "returned")
    assert backlog.take(3, 0) == [3]
    clock.now = 10.0
    backlog.add(4)
    assert backlog.take(3, 0) == [1, 2, 4]


def test_a_lane_tells_how_often_it_was_shut_and_why() -> None:
    backlog, clock = filled(1, 2)
    for _ in range(3):
        for position in backlog.take(2, 0):
            backlog.put_back(position, "route", 10.0, "returned")
        clock.now += 10.0
    lane = dict(backlog.lanes())["route"]
    assert (lane.positions, lane.attempts, lane.reason) == ([1, 2], 3, "returned")


def test_what_is_taken_counts_until_it_is_settled() -> None:
    backlog, _ = filled(1, 2)
    backlog.take(1, 0)
    assert len(backlog) == 2
    assert backlog.in_hand() == 2
    assert sorted(dict(backlog.lanes())[""].positions) == [1, 2]
    backlog.settle(1)
    assert len(backlog) == 1


def test_a_waiting_take_gets_what_arrives_and_ends_when_closed() -> None:
    backlog = Backlog()
    got: list[list[int]] = []

    def take_twice() -> None:
        got.append(backlog.take(1, 60))
        got.append(backlog.take(1, 60))

    thread = threading.Thread(target=take_twice)
    thread.start()
    backlog.add(7)
    backlog.offer()
    assert eventually(lambda: list(got)) == [[7]]
    backlog.close()
    thread.join(10)
    assert got == [[7], []]


def test_a_waiting_take_ends_when_it_is_woken_to_end() -> None:
    backlog, ended = Backlog(), threading.Event()
    got: list[list[int]] = []
    thread = threading.Thread(
        target=lambda: got.append(backlog.take(1, 60, ended=ended.is_set)), daemon=True
    )
    thread.start()
    backlog.wake()
    thread.join(0.2)
    assert thread.is_alive(), "it was woken, and not told to end"
    ended.set()
    backlog.wake()
    thread.join(10)
    assert got == [[]]


def test_a_lane_that_is_opened_gives_at_once_what_it_held() -> None:
    backlog, _ = filled(1, 2)
    for position in backlog.take(2, 0):
        backlog.put_back(position, "route", 10.0, "returned")
    assert backlog.take(2, 0) == []
    backlog.open("route")
    assert backlog.take(2, 0) == [1, 2]


def test_what_is_held_back_waits_for_the_end_of_its_pause_and_then_in_its_place() -> None:
    backlog, clock = filled(1, 2, 3)
    backlog.pause({"watch:a", "watch:b"}, whole=False)
    one, two = backlog.take(2, 0)
    backlog.hold_back(one, "watch:a")
    backlog.hold_back(two, "watch:b")
    backlog.open("paused watch:a")
    clock.now += 1e9
    assert backlog.take(3, 0) == [3]
    backlog.put_back(3)
    backlog.pause({"watch:b"}, whole=False)
    assert backlog.take(3, 0) == [1, 3]
    assert len(backlog) == 3


def test_a_pause_that_ended_meanwhile_holds_nothing_back() -> None:
    backlog, _ = filled(1)
    [one] = backlog.take(1, 0)
    backlog.hold_back(one, "watch:a")
    assert backlog.take(1, 0) == [1]


def test_a_backlog_that_is_paused_gives_nothing_and_has_nothing_in_hand() -> None:
    backlog, _ = filled(1)
    backlog.pause((), whole=True)
    assert (backlog.take(1, 0), backlog.in_hand(), len(backlog)) == ([], 0, 1)
    backlog.pause((), whole=False)
    assert backlog.take(1, 0) == [1]


def test_what_waits_anywhere_can_be_withdrawn() -> None:
    backlog, _ = filled(1, 2, 3, 4)
    for position in backlog.take(2, 0):
        backlog.put_back(position, "route", 10.0, "returned")
    assert backlog.withdraw({2, 3, 9}, 0) == {2, 3}
    assert (backlog.take(9, 0), len(backlog)) == ([4], 4)
    backlog.settle(2)
    backlog.settle(3)
    assert len(backlog) == 2


def test_what_another_has_in_hand_is_withdrawn_when_it_gives_it_back() -> None:
    backlog = Backlog()
    for position in (1, 2, 3):
        backlog.add(position)
    backlog.take(3, 0)
    withdrawn: list[set[int]] = []
    thread = threading.Thread(target=lambda: withdrawn.append(backlog.withdraw({1, 2}, 60)))
    thread.start()
    eventually(lambda: backlog.withdraw({3}, 0) == set())
    backlog.put_back(1)
    backlog.settle(2)
    thread.join(10)
    assert withdrawn == [{1}]
    assert (backlog.take(9, 0), len(backlog)) == ([], 2)


def test_what_another_keeps_in_hand_cannot_be_withdrawn() -> None:
    backlog, _ = filled(1)
    backlog.take(1, 0)
    assert backlog.withdraw({1}, 0.01) == set()
    backlog.put_back(1)
    assert backlog.take(1, 0) == [1]


def test_a_lane_ends_with_the_last_upload_that_leaves_it() -> None:
    backlog, clock = filled(1, 2, 3)
    for position in backlog.take(2, 0):
        backlog.put_back(position, "route", 10.0, "returned")
    clock.now = 10.0
    assert backlog.take(2, 0) == [1, 2]
    backlog.settle(1)
    assert dict(backlog.lanes())["route"].attempts == 1
    backlog.put_back(2, "other", 10.0)
    assert [name for name, _ in backlog.lanes()] == ["", "other"]


def test_what_takes_long_is_taken_apart_and_held_up_by_nothing() -> None:
    backlog, _ = filled(1, 2, 3)
    assert backlog.take(1, 0) == [1]
    backlog.put_back(1, ASIDE)
    assert backlog.take(3, 0) == [2, 3]
    assert backlog.in_hand() == len(backlog) == 3
    assert [(name, lane.attempts) for name, lane in backlog.lanes()] == [("", 0), ("", 0)]
    assert backlog.take(3, 0, aside=True) == [1]
    backlog.put_back(1, "full", 10.0, "full")
    assert backlog.take(3, 0, aside=True) == []
    backlog.put_back(2, ASIDE)
    assert backlog.withdraw([2], 0) == {2}


def of_two_owners() -> Backlog:
    """Three uploads of each, all of one before those of the other."""
    backlog = Backlog()
    for position in range(1, 7):
        backlog.add(position, owner=1001 if position < 4 else 1002)
    return backlog


def test_owners_take_turns_and_the_oldest_of_each_comes_first() -> None:
    assert of_two_owners().take(9, 0) == [1, 4, 2, 5, 3, 6]
    backlog = of_two_owners()
    assert [backlog.take(1, 0) for _ in range(6)] == [[1], [4], [2], [5], [3], [6]]


def test_owners_take_turns_in_what_was_put_back_held_up_or_paused() -> None:
    backlog = of_two_owners()
    for position in backlog.take(6, 0):
        backlog.put_back(position)
    for position in backlog.take(6, 0):
        backlog.put_back(position, "route", 10.0, "returned")
    backlog.open("route")
    backlog.pause({"watch:a"}, whole=False)
    for position in backlog.take(6, 0):
        backlog.hold_back(position, "watch:a")
    backlog.pause((), whole=False)
    assert backlog.withdraw({4}, 0) == {4}
    backlog.put_back(4)
    assert backlog.take(6, 0) == [1, 4, 2, 5, 3, 6]


def test_who_comes_late_has_the_next_turn() -> None:
    backlog = of_two_owners()
    assert backlog.take(2, 0) == [1, 4]
    backlog.add(7, owner=1003)
    assert backlog.take(3, 0) == [7, 2, 5]


def test_no_more_are_out_than_may_be_until_some_are_settled() -> None:
    backlog, _ = filled(*range(5))
    assert backlog.take(2, 0, most=3) == [0, 1]
    assert backlog.take(2, 0, most=3) == [2]
    assert backlog.take(2, 0, most=3) == []
    got: list[list[int]] = []
    thread = threading.Thread(target=lambda: got.append(backlog.take(2, 60, most=3)))
    thread.start()
    for position in (0, 1):
        backlog.settle(position)
    backlog.offer()
    thread.join(10)
    assert got == [[3, 4]]


def test_who_waits_while_enough_are_out_does_not_ask_again_and_again() -> None:
    asked = []

    def clock() -> float:
        asked.append(time.monotonic())
        return asked[-1]

    backlog = Backlog(clock)
    for position in range(2):
        backlog.add(position)
    assert backlog.take(1, 0, most=1) == [0]
    asked.clear()
    assert backlog.take(1, 0.3, most=1) == []
    assert len(asked) < 10
