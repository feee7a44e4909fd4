"""Tells systemd the state of the daemon, if systemd has started it. See sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from watchman.uploads.text import printable

logger = logging.getLogger(__name__)

#: Seconds between two status texts, unless systemd's watchdog needs messages more often.
STATUS_EVERY = 30.0

#: Seconds that a message may wait for systemd, which normally takes each at once.
PATIENCE = 5.0

#: Most characters of a status text.
LONGEST = 200


class Systemd:
    """Sends messages to the socket that systemd has named. Does nothing without systemd."""

    def __init__(self) -> None:
        # Taken out of the environment, so that no program that we start sends messages as us.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        meant = os.environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        watchdog = int(microseconds) / 1e6 if meant and microseconds.isdecimal() else 0.0
        #: Seconds between two messages: half of the time after which systemd takes us for hung, as
        #: sd_watchdog_enabled(3) recommends.
        self._interval = min(watchdog / 2 or STATUS_EVERY, STATUS_EVERY)
        self._has_watchdog = bool(watchdog)
        self._reloading = False
        self._stopping = threading.Event()
        self._dead: list[str] = []

    def starting(self) -> None:
        self._tell(STATUS="Starting.")

    def ready(self, dead: Callable[[], list[str]], status: Callable[[], Mapping[str, Any]]) -> None:
        """Say that the daemon has started, and start a thread that goes on telling its state.

        `dead` returns the parts whose threads have ended, `status` what `watchman status` shows.
        """
        if not self._address:
            return
        self._tell(READY=1, STATUS=text(status()))
        thread = threading.Thread(
            target=self._go_on, args=(dead, status), name="systemd", daemon=True
        )
        thread.start()

    def reloading(self) -> None:
        """Say that a reload begins. Until `reloaded`, parts may be stopped."""
        self._reloading = True
        # systemd compares it with the time at which it asked for the reload.
        self._tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def reloaded(self) -> None:
        self._reloading = False
        self._tell(READY=1)

    def stopping(self, patience: float) -> None:
        """Say that a stop begins. It may take `patience` seconds, whatever the unit says."""
        self._stopping.set()
        self._tell(STOPPING=1, STATUS="Stopping.", EXTEND_TIMEOUT_USEC=int(patience * 1e6))

    def _go_on(
        self, dead: Callable[[], list[str]], status: Callable[[], Mapping[str, Any]]
    ) -> None:
        while not self._stopping.wait(self._interval):
            if not self._is_alive(dead):
                continue
            self._tell(WATCHDOG=1)
            try:
                self._tell(STATUS=text(status()))
            except Exception:
                logger.exception("systemd was not told the status.")

    def _is_alive(self, dead: Callable[[], list[str]]) -> bool:
        if self._reloading or not (parts := dead()) or self._stopping.is_set():
            return True
        if parts != self._dead:
            self._dead = parts
            logger.critical(
                "%s ended by itself, so watchman cannot do its work.%s",
                ", ".join(parts).capitalize(),
                " Waiting for systemd to restart it." if self._has_watchdog else " Restart it.",
            )
        return False

    def _tell(self, **fields: str | int) -> None:
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        # An @ stands for the NUL of an abstract socket, see unix(7).
        address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(PATIENCE)
                sender.sendto(message.encode(), address)
        except OSError as e:
            logger.warning("systemd was not told %r: %s.", message, e)


def text(status: Mapping[str, Any]) -> str:
    """Return a status as one line."""
    problems, uploads = status["problems"], status["uploads"]
    waiting = uploads["noticed"] + uploads["waiting"] + uploads["deferred"]
    count = f"{waiting} uploads in hand, {uploads['failed']} failed."
    if not problems:
        return f"Healthy. {count}"
    more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
    first = printable(problems[0])
    first = first if len(first) <= LONGEST else f"{first[:LONGEST]}..."
    return f"Not healthy: {first}{more}. {count}"
