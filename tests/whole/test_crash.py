"""The daemon is killed at its system calls and at random; nothing is lost, no task has two ids.

Here at some of its calls, others each day; `make soak` does it at all of them, and for long.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.crashes import (
    REPEATED,
    WAYS,
    Load,
    Moment,
    Place,
    chance,
    kill_at_random,
    sample,
)
from tests.support.needs import need
from tests.support.nursery import Nursery

#: Calls at which the daemon is killed in each test, about.
KILLS = 10

#: Share of them that must be reached. The threads of a start or an end take turns as they like.
REACHED = {"work": 0.9, "start": 0.75, "stop": 0.75}

#: Tries for a call that does not come.
TRIES = 4

#: Kills at random of each way to move, uploads a second and kind, seconds that a daemon lives.
ROUNDS, RATE, LONGEST = 7, 40.0, 2.0


@pytest.fixture
def elsewhere(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path | None]:
    """Another filesystem, for those who copy to it; all need strace."""
    need("strace")
    way = request.node.callspec.params.get("way") if hasattr(request.node, "callspec") else "copy"
    if way != "copy":
        yield None
        return
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


MOVES = ["stay", "rename", pytest.param("copy", marks=pytest.mark.root)]


@pytest.mark.parametrize("way", MOVES)
@pytest.mark.parametrize("what", ["work", "start", "stop"])
def test_killed_at_a_call_it_makes_all_good_when_it_is_started_again(
    what: str, way: str, nursery: Nursery, elsewhere: Path | None, tmp_path: Path
) -> None:
    def place(name: str) -> Place:
        return Place(nursery, tmp_path / name, way, elsewhere=elsewhere)

    moment = Moment(what)
    counted = moment.points([place(f"counted{n}") for n in range(2)])
    assert len(counted) > 15
    points = sample(counted, KILLS)

    def kill(number: int) -> bool:
        # How many calls there are depends on how many are done at once: further tries for those.
        for attempt in range(TRIES):
            hit, findings = Moment(what).kill(place(f"{number}-{attempt}"), points[number])
            assert not findings.wrong, (points[number], findings.wrong)
            if hit:
                return True
        return False

    with ThreadPoolExecutor(4) as pool:
        hits = sum(pool.map(kill, range(len(points))))
    assert hits >= REACHED[what] * len(points)


@pytest.mark.root
def test_killed_at_random_under_load_it_loses_nothing_and_repeats_little(
    nursery: Nursery, elsewhere: Path, tmp_path: Path
) -> None:
    def storm(way: str) -> tuple[int, int, int]:
        rng = chance(way)
        # Small, so that segments come and go, and ledgers are written all the time.
        place = Place(nursery, tmp_path / way, way, elsewhere=elsewhere, segment=32_768, delta=200)
        with Load(place, rng, rate=RATE):
            alive = sum(kill_at_random(place, rng, LONGEST) for _ in range(ROUNDS))
        findings = place.recover()
        assert not findings.wrong, findings.wrong
        return alive, findings.uploads, findings.repeated

    began = time.monotonic()
    with ThreadPoolExecutor(len(WAYS)) as pool:
        alive, uploads, repeated = map(sum, zip(*pool.map(storm, WAYS), strict=True))
    # In all: of a single kill nobody can say.
    print(f"{repeated} of {uploads} repeated in {time.monotonic() - began:.0f} seconds")
    assert alive > 0.8 * len(WAYS) * ROUNDS
    assert repeated <= REPEATED * len(WAYS) * ROUNDS
