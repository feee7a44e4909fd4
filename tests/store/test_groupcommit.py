"""The thread that decides: it outlives whatever goes wrong with one piece of work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal


class Faulty:
    """Callables that raise, as often as they are told to."""

    def __init__(self) -> None:
        self.faults = 0
        self.called = 0

    def __call__(self, *_: object) -> float:
        self.called += 1
        if self.faults:
            self.faults -= 1
            raise RuntimeError("for the test")
        return 0.01


class Committing:
    """A group commit whose timer and idle work may raise."""

    def __init__(self, directory: Path) -> None:
        self.timer, self.idle = Faulty(), Faulty()
        self.journal = Journal(str(directory / "journal"), str(directory / "history"))
        list(self.journal.replay())
        self.commit = GroupCommit(
            self.journal,
            timer=self.timer,
            committed=lambda: None,
            idle=lambda: self.idle() and None,
        )
        self.commit.start()

    def works(self) -> bool:
        """Whether what is staged still becomes durable."""
        return self.commit.call(lambda: self.commit.stage({"event": "probed"}) is None)


@pytest.fixture
def committing(tmp_path: Path) -> Iterator[Committing]:
    one = Committing(tmp_path)
    yield one
    one.commit.stop()
    one.commit.join()
    one.journal.close()


@pytest.mark.parametrize("part", ["timer", "idle"])
def test_the_thread_outlives_a_timer_and_idle_work_that_raise(
    committing: Committing, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    faulty: Faulty = getattr(committing, part)
    before, faulty.faults = faulty.called, 1
    eventually(lambda: faulty.called > before + 1)
    assert committing.works()
    assert "for the test" in caplog.text


def test_the_thread_outlives_work_that_raises(
    committing: Committing, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = Faulty()
    faulty.faults = 1
    committing.commit.bring(faulty)
    assert committing.works()
    assert "for the test" in caplog.text


def test_what_follows_on_one_record_raising_is_done_for_the_others(committing: Committing) -> None:
    faulty, done = Faulty(), []
    faulty.faults = 1

    def work() -> None:
        committing.commit.stage({"event": "a"}, faulty)
        committing.commit.stage({"event": "b"}, done.append)

    committing.commit.call(work)
    assert faulty.called == len(done) == 1
    assert committing.journal.read(done[0])["event"] == "b"
    assert committing.works()


def test_what_a_sink_reports_is_done_before_what_sources_have_brought(tmp_path: Path) -> None:
    one = Committing(tmp_path)
    blocked, free = threading.Event(), threading.Event()
    done: list[str] = []
    one.commit.bring(lambda: blocked.set() or free.wait(10))
    assert blocked.wait(10)
    for n in range(100):
        one.commit.bring(partial(done.append, f"source {n}"))
    one.commit.bring_first(lambda: done.append("sink 0"))
    one.commit.bring_first(lambda: done.append("sink 1"))
    free.set()
    one.commit.stop()
    one.commit.join()
    one.journal.close()
    assert done == ["sink 0", "sink 1", *(f"source {n}" for n in range(100))]


def test_idle_work_finds_all_durable_that_was_staged(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"), str(tmp_path / "history"))
    list(journal.replay())
    steps: list[str] = []
    commit = GroupCommit(
        journal, timer=lambda: 1.0, committed=lambda: None, idle=lambda: steps.append("idle")
    )

    def follow(_: int) -> None:
        steps.append("first")
        commit.stage({"event": "b"}, lambda _: steps.append("second"))

    commit.bring(lambda: commit.stage({"event": "a"}, follow))
    commit.start()
    eventually(lambda: "second" in steps)
    commit.stop()
    commit.join()
    journal.close()
    assert "idle" not in steps[steps.index("first") : steps.index("second")]


def test_what_follows_on_the_last_records_is_durable_at_the_end(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"), str(tmp_path / "history"))
    list(journal.replay())
    commit = GroupCommit(journal, timer=lambda: 1.0, committed=lambda: None, idle=lambda: None)
    durable: list[int] = []

    def follow(number: int, _: int) -> None:
        durable.append(number)
        if number < 4:
            commit.stage({"event": "next"}, partial(follow, number + 1))

    commit.bring(lambda: commit.stage({"event": "first"}, partial(follow, 1)))
    commit.stop()
    commit.start()
    commit.join()
    journal.close()
    assert durable == [1, 2, 3, 4]
