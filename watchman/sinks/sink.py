"""What publishers and movers have in common: threads, a status, and back-off."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from watchman.uploads.upload import Upload

#: Seconds before the first retry. Each further retry doubles them, up to LONGEST_DELAY.
FIRST_DELAY = 0.5

#: Seconds between two tries, at most. A try is cheap: one connection, one message or a few system
#: calls. With a connection's timeouts added, work goes on within ten seconds after the fault is
#: gone, however long it lasted.
LONGEST_DELAY = 6.0

#: Seconds that a thread waits for uploads before it asks for them again. It is woken for them, and
#: to stop.
PATIENCE = 5.0

#: Takes at most so many uploads. Waits at most so many seconds, or until it is woken and what the
#: third argument returns is true.
Take = Callable[[int, float, Callable[[], bool]], Sequence[Upload]]


class BackOff:
    """When to try again something that has failed `attempts` times in a row, and its last error."""

    def __init__(self) -> None:
        self.attempts = 0
        self.until = 0.0
        self.reason = ""

    def fail(self, now: float, reason: str) -> float:
        """Count a failure and return how many seconds to wait.

        Some of it is random, so that not all who failed together try again together.
        """
        self.attempts += 1
        self.reason = reason
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.attempts - 1, 16))
        delay *= random.uniform(0.75, 1.0)
        self.until = now + delay
        return delay


class Sink:
    """Takes uploads in threads of its own, and reports the result for each."""

    def __init__(self, threads: Mapping[str, Callable[[], None]], *, hung: float) -> None:
        """`threads` has by name the function of each thread.

        `join` waits for them until `hung` seconds after `stop`.
        """
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True) for name, work in threads.items()
        ]
        self._patience = hung
        self._stopping = threading.Event()
        #: When `join` gives up (monotonic).
        self._hung = 0.0
        #: Replaced as a whole, since other threads read it.
        self._status: dict[str, Any] = {}
        self._stand("idle")

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Tell the threads to end. They finish what they have taken, or give it back.

        Those that wait for uploads are still to be woken.
        """
        self._stopping.set()
        self._hung = time.monotonic() + self._patience

    def join(self) -> None:
        """Wait for the threads to end, after stop(), but not for one that hangs for ever.

        A broker or a filesystem may hang.
        """
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, self._hung - time.monotonic()))

    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def hurry(self) -> None:
        """End all back-offs, so that everything is tried at once. Any thread may call it."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """Return the state of the broker or destination, and its error. Any thread may call it."""
        return dict(self._status)

    def _stand(
        self, state: str, error: str | None = None, attempts: int = 0, delay: float = 0.0
    ) -> None:
        """Set what `status` returns. With a `delay` the next try is in so many seconds."""
        now = time.time()
        self._status = {
            "state": state,
            "since": self._status["since"] if self._status.get("state") == state else now,
            "attempts": attempts,
            "next_try": now + delay if delay else None,
            "error": error,
        }
