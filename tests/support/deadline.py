"""Waiting for a fact with a deadline, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(fact: Callable[[], T], timeout: float = 10.0) -> T:
    """Return the first true answer of `fact`; fail with its last answer after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := fact()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {timeout} s: last answer {answer!r}")
        time.sleep(0.02)
    return answer
