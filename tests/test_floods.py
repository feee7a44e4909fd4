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

#: Answers that are timed, and the seconds that nine in ten of them may take: hooks give up after
#: that. `make bench` measures the rest.
TIMED, LIMIT = 40, 0.2


@pytest.mark.parametrize("name", FLOODS)
def test_another_users_words_are_answered_meanwhile(
    name: str, public_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    need("bindfs", "prlimit")
    furnish(public_path, TIMED)
    daemon = start_watchman(INI, directory=public_path)
    with hanging(public_path) if name == "hanging" else contextlib.nullcontext():
        with flooded(name, public_path):
            times = answered(public_path, TIMED)
            assert times[TIMED * 9 // 10] < LIMIT, times
            assert daemon.run("status").returncode in (0, 1)
        began = time.monotonic()
        assert speak(ALICE, public_path / "watchman.sock", b"event=ended\0\0") == ["OK"]
        assert time.monotonic() - began < 1.0
    eventually(lambda: len(published(public_path / "broker")) >= TIMED)
    assert len(daemon.log) < 100_000
