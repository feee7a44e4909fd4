"""One user floods watchman, and another one's words are answered and files sent all the same."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.floods import FLOODS, INI, answered, flooded, furnish, hanging
from tests.support.needs import need
from tests.support.users import ALICE, BOB, speak

pytestmark = pytest.mark.root

#: Answers that are awaited, and the seconds that none of them may take, on a busy machine: without
#: turns they took 13 and more. `make bench` measures how many it is.
AWAITED, LIMIT = 40, 5.0

#: Files that one user brings before the other one's.
BULK = 300

#: The same, where it must take longer to decide about them than to find them.
MANY = 1_000


@pytest.mark.parametrize("name", FLOODS)
def test_another_users_words_are_answered_meanwhile(
    name: str, public_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    need("bindfs", "prlimit")
    furnish(public_path, AWAITED)
    daemon = start_watchman(INI, directory=public_path)
    with hanging(public_path) if name == "hanging" else contextlib.nullcontext():
        with flooded(name, public_path):
            assert answered(public_path, AWAITED)[-1] < LIMIT
            assert daemon.run("status").returncode in (0, 1)
        began = time.monotonic()
        assert speak(ALICE, public_path / "watchman.sock", b"event=ended\0\0") == ["OK"]
        assert time.monotonic() - began < LIMIT
    eventually(lambda: names(public_path, "alice") == AWAITED)
    lines = daemon.log.splitlines()
    if name == "burst":
        # Each upload has its own.
        lines = [line for line in lines if " upload " not in line]
    assert len("\n".join(lines)) < 100_000
    daemon.kill()


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
def test_one_users_bulk_delays_no_other_users_tasks(
    restarted: bool, public_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    furnish(public_path, 0)
    daemon = start_watchman(INI, directory=public_path)
    daemon.ask("pause", name="broker:b")
    for user, count in ((BOB, BULK), (ALICE, 2)):
        for number in range(count):
            with (public_path / "bulk" / f"{user}-{number}.csv").open("w") as file:
                os.fchown(file.fileno(), user, user)
    eventually(lambda: daemon.status()["uploads"]["waiting"] == BULK + 2, timeout=30)
    if restarted:
        daemon.kill()
        daemon.start()
    daemon.ask("resume", name="broker:b")
    eventually(lambda: len(published(public_path / "broker")) == BULK + 2, timeout=60)
    # Those of one millisecond are in no order.
    assert names(public_path, f"{ALICE}-", first=BULK // 5) == 2


@pytest.mark.parametrize("source", ["inotify", "scan"])
def test_what_one_user_brings_at_once_holds_up_no_other_users_files(
    source: str, public_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    furnish(public_path, 0)
    daemon = start_watchman(INI, directory=public_path)
    eventually(lambda: daemon.status()["watches"]["bulk"]["last_scan"])
    if source == "scan":
        daemon.stop()
    else:
        daemon.signal(signal.SIGSTOP)
    for user, count in ((BOB, MANY), (ALICE, 2)):
        for number in range(count):
            with (public_path / "bulk" / f"{user}-{number}.csv").open("w") as file:
                os.fchown(file.fileno(), user, user)
    if source == "scan":
        daemon.start()
    else:
        daemon.signal(signal.SIGCONT)
    accepted = eventually(lambda: accepted_by(daemon, source, MANY + 2), timeout=60)
    # A scan finds them one by one, while the first are decided about.
    assert sum(f"/{ALICE}-" in line for line in accepted[: MANY // 2]) == 2


def accepted_by(daemon: Daemon, source: str, count: int) -> list[str]:
    """Return what the log says of that many uploads, in the order of their decision."""
    lines = [line for line in daemon.log.splitlines() if f", noticed by {source}:" in line]
    return lines if len(lines) == count else []


def names(directory: Path, prefix: str, first: int | None = None) -> int:
    """Return how many of the tasks, or of the first ones, are of files with such a name."""
    tasks = published(directory / "broker")[:first]
    return sum(Path(task["args"][0]).name.startswith(prefix) for task in tasks)
