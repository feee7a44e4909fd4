"""Ends the process when a stop takes too long, whatever hangs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: Seconds that a stop may take beyond `drain`: longer than the timeouts of a connection to a
#: broker, and shorter than supervisor waits until it kills.
GRACE = 15.0

#: Exit status of a process that was ended so.
HUNG = 1


class Watchdog:
    """A thread that waits for a stop to begin, and then for it to end in time.

    A thread that hangs in a system call, as on a file server that is away, cannot be ended by
    anything but the end of the process. Nothing is lost by that: all that counts is in the journal.
    """

    def __init__(self, drain: Callable[[], float]) -> None:
        """`drain` returns the seconds that the work in hand is given."""
        self._drain = drain
        self._armed = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def arm(self) -> None:
        """Say that a stop begins; may be called in a signal handler."""
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
