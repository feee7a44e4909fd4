"""One user floods the socket, and another one's words are answered all the same."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import Daemon, published
from tests.deadline import eventually
from tests.floods import FLOODS, INI, answered, flooded, furnish, hanging
from tests.needs import need
from tests.users import ALICE, speak

pytestmark = pytest.mark.root

#: Answers that are awaited, and the seconds that none of them may take, on a busy machine: without
#: turns they took 13 and more. `make bench` measures how many it is.
AWAITED, LIMIT = 40, 5.0


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
    eventually(lambda: len(published(public_path / "broker")) >= AWAITED)
    assert len(daemon.log) < 100_000
