"""Uploads are taken in order of arrival, past those that are held up."""

import threading

from tests.deadline import eventually
from watchman.backlog import Backlog


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
    assert dict(backlog.lanes())[""].positions == [1, 2]
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
    assert eventually(lambda: list(got)) == [[7]]
    backlog.close()
    thread.join(10)
    assert got == [[7], []]
