"""What publishers and movers have in common: threads, how they stand, when they try again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

#: Seconds before the first retry, doubled for each further one up to the longest.
FIRST_DELAY = 0.5

#: Seconds between two tries at the most. A try costs one connection, one message or a few system
#: calls, and with the time-outs of a connection work goes on within ten seconds of the cure,
#: however long the fault has lasted.
LONGEST_DELAY = 6.0

#: Seconds that a take waits for uploads, and so the longest that stopping an idle thread takes.
PATIENCE = 1.0


class BackOff:
    """When to try again what has failed `attempts` times in a row, and why it did."""

    def __init__(self) -> None:
        self.attempts = 0
        self.until = 0.0
        self.reason = ""

    def fail(self, now: float, reason: str) -> float:
        """Count a failure and return how many seconds to wait, not the same for everyone."""
        self.attempts += 1
        self.reason = reason
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.attempts - 1, 16))
        delay *= random.uniform(0.75, 1.0)
        self.until = now + delay
        return delay


class Sink:
    """Takes uploads in threads of its own, and reports what became of each."""

    def __init__(self, threads: Mapping[str, Callable[[], None]], *, hung: float) -> None:
        """`threads` tells by its name what each does; a join waits `hung` seconds after a stop."""
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True) for name, work in threads.items()
        ]
        self._patience = hung
        self._stopping = threading.Event()
        #: When a join gives up (monotonic).
        self._hung = 0.0
        #: Replaced as a whole, so that other threads may read it.
        self._status: dict[str, Any] = {}
        self._stand("idle")

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Signal the end; what is in hand is finished, or given up and put back."""
        self._stopping.set()
        self._hung = time.monotonic() + self._patience

    def join(self) -> None:
        """Wait for the end, after stop(); not for ever on a broker or a filesystem that hangs."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, self._hung - time.monotonic()))

    def hurry(self) -> None:
        """Try again at once what was not taken or could not be moved; any thread."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """Whether that to which it brings uploads is up, down, or not needed yet; any thread."""
        return dict(self._status)

    def _stand(
        self, state: str, error: str | None = None, attempts: int = 0, delay: float = 0.0
    ) -> None:
        """Keep what `status` tells; it is tried again in `delay` seconds."""
        now = time.time()
        self._status = {
            "state": state,
            "since": self._status["since"] if self._status.get("state") == state else now,
            "attempts": attempts,
            "next_try": now + delay if delay else None,
            "error": error,
        }
