"""Ends the process if a stop takes too long."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds that a stop may take in addition to `drain`. This is longer than the timeouts of a
#: broker's connection. With `drain` it is shorter than supervisor's `stopwaitsecs`, after which
#: supervisor kills the daemon.
GRACE = 15.0

#: Exit status after the watchdog has ended the process.
HUNG = 1


class Watchdog:
    """A thread that waits for a stop to begin, and ends the process if it takes too long.

    A thread may hang in a system call, for instance on a file server that is away. Only the end of
    the process ends such a thread. No upload is lost by that: all of them are in the journal.
    """

    def __init__(self, drain: Callable[[], float]) -> None:
        """`drain` returns how many seconds the work in hand may take to finish."""
        self._drain = drain
        self._armed = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def arm(self) -> None:
        """Note that a stop begins. A signal handler may call it."""
        os.eventfd_write(self._armed, 1)

    def _run(self) -> None:
        os.eventfd_read(self._armed)
        patience = self._drain() + GRACE
        time.sleep(patience)
        others = {threading.current_thread(), threading.main_thread()}
        hung = [thread.name for thread in threading.enumerate() if thread not in others]
        logger.critical(
            "Not stopped after %.0f seconds: %s did not end. Ending watchman all the same; the next"
            " start goes on where the journal ends.",
            patience,
            ", ".join(sorted(set(hung) - {"log"})) or "nobody knows who",
        )
        logging.shutdown()
        os._exit(HUNG)
