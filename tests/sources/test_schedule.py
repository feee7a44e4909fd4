import threading
import time

from tests.support.watching import Clock
from watchman.sources.scan.schedule import MOST, Request, Schedule


def test_requests_are_served_in_order_and_equal_ones_once() -> None:
    schedule = Schedule({"in": 0})
    for subpath in ("b", "a", "b"):
        schedule.request("in", subpath)
    assert [schedule.take(), schedule.take()] == [Request("in", "b"), Request("in", "a")]
    assert not schedule.is_waiting("in")
    assert schedule.take_subtree() is None


def test_a_request_for_a_parent_covers_those_below_it_before_and_after() -> None:
    schedule = Schedule({"in": 0, "out": 0})
    for watch, subpath in (
        ("in", "a/b/c"),
        ("in", "a"),
        ("in", "a/d"),
        ("in", "ab"),
        ("out", "a/b"),
    ):
        schedule.request(watch, subpath)
    taken = [schedule.take() for _ in range(3)]
    assert taken == [Request("in", "a"), Request("in", "ab"), Request("out", "a/b")]
    schedule.request("in", "a/b")
    schedule.request("in")
    assert schedule.is_waiting("in")
    assert schedule.take() == Request("in", "")
    assert schedule.take_subtree() is None


def test_a_request_while_the_same_is_under_way_is_served_again() -> None:
    schedule = Schedule({"in": 0})
    schedule.request("in", "a")
    assert schedule.take() == Request("in", "a")
    schedule.request("in", "a")
    assert schedule.take() == Request("in", "a")


def test_a_subtree_can_be_taken_before_whole_watches() -> None:
    schedule = Schedule({"in": 0, "out": 0})
    schedule.request("in")
    schedule.request("out", "a")
    assert schedule.take_subtree() == Request("out", "a")
    assert schedule.take_subtree() is None
    assert schedule.take() == Request("in", "")


def test_each_watch_is_due_after_its_period_and_one_with_none_never() -> None:
    clock = Clock(time.monotonic)
    schedule = Schedule({"in": 100, "out": 300, "never": 0}, clock=clock)
    clock.advance(101)
    assert schedule.take() == Request("in", "", periodic=True)
    clock.advance(200)
    assert schedule.take() == Request("in", "", periodic=True)
    assert schedule.take() == Request("out", "", periodic=True)


def test_a_requested_scan_puts_the_periodic_one_off() -> None:
    clock = Clock(time.monotonic)
    schedule = Schedule({"in": 100, "out": 150}, clock=clock)
    clock.advance(99)
    schedule.request("in")
    assert schedule.take() == Request("in", "")
    clock.advance(98)
    assert schedule.take() == Request("out", "", periodic=True)


def test_what_was_postponed_comes_when_its_time_has_come() -> None:
    clock = Clock(time.monotonic)
    schedule = Schedule({"in": 100}, clock=clock)
    schedule.postpone("in", "a", 60)
    schedule.request("in", "b")
    assert schedule.take() == Request("in", "b")
    clock.advance(61)
    assert schedule.take() == Request("in", "a")


def test_take_waits_for_a_request_and_ends_when_closed() -> None:
    schedule = Schedule({"in": 0})
    taken: list[Request | None] = []

    def take() -> None:
        while request := schedule.take():
            taken.append(request)
        taken.append(None)

    thread = threading.Thread(target=take)
    thread.start()
    schedule.request("in", "a")
    schedule.close()
    thread.join(5)
    assert taken[-1] is None
    assert not thread.is_alive()


def test_beyond_many_requests_whole_watches_are_asked_for() -> None:
    schedule = Schedule({"in": 0, "out": 0})
    for n in range(MOST + 1_000):
        schedule.request("in", str(n))
    schedule.request("out", "a")
    taken = [schedule.take() for _ in range(2)]
    assert taken == [Request("in", ""), Request("out", "")]
    assert schedule.take_subtree() is None
