"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random

#: Seconds before the first retry, doubled for each further one up to the longest.
FIRST_DELAY = 0.5


class BackOff:
    """When to try again what has failed `attempts` times in a row, and why it did."""

    def __init__(self, longest: float) -> None:
        """`longest` is the most seconds between two tries."""
        self._longest = longest
        self.attempts = 0
        self.until = 0.0
        self.reason = ""

    def fail(self, now: float, reason: str) -> float:
        """Count a failure and return how many seconds to wait, not the same for everyone."""
        self.attempts += 1
        self.reason = reason
        delay = min(self._longest, FIRST_DELAY * 2.0 ** min(self.attempts - 1, 16))
        delay *= random.uniform(0.75, 1.0)
        self.until = now + delay
        return delay
