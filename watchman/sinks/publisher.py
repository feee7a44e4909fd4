"""Sends the tasks of one broker: takes uploads, publishes, reports, backs off."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from watchman.errors import BrokerUnavailable, TaskRefused
from watchman.settings import BrokerSettings
from watchman.sinks.backoff import BackOff
from watchman.sinks.celeryapp import Message, compose, make_app
from watchman.sinks.confirms import ConfirmingSender
from watchman.sinks.sender import Sender, Sent, explain
from watchman.upload import Report, State, Upload

logger = logging.getLogger(__name__)

#: How many uploads go to the broker and are confirmed together. Beyond it little is gained.
BATCH = 64

#: Seconds that a take waits for uploads, and so the longest that stopping an idle thread takes.
PATIENCE = 1.0

#: Seconds that a join waits: longer than the timeouts of a connection.
HUNG = 10.0

#: Seconds within which a connection fails that the broker had closed while it was idle.
AT_ONCE = 1.0


class Publisher:
    """One broker's thread, app and connection.

    `take(limit, timeout)` gives uploads, oldest first, and may give none. `report` hears of each of
    them once, from this thread. Order is kept for each exchange and routing key.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        *,
        take: Callable[[int, float], Sequence[Upload]],
        report: Callable[[Report], None],
    ) -> None:
        """Raises ConfigError for settings that Celery cannot use; does not connect."""
        self._broker = broker
        self._take = take
        self._report = report
        self._app = make_app(broker)
        self._sender: Sender | None = None
        self._back_off = BackOff()
        #: Routes that the broker refuses, and when to try them again.
        self._refused: dict[str, BackOff] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"publisher:{broker.name}", daemon=True
        )
        #: Replaced as a whole, so that other threads may read it.
        self._status: dict[str, Any] = {}
        self._say("idle")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Signal the end; what has been taken is still sent, which a dead broker ends by time."""
        self._stopping.set()

    def join(self, timeout: float = HUNG) -> None:
        """Wait for the end, but not for ever on a broker that hangs beyond its timeouts."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def status(self) -> dict[str, Any]:
        """Whether the broker is up, down or has not been needed yet; any thread may ask."""
        return dict(self._status)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._publish(self._take(BATCH, PATIENCE))
            # The thread must outlive whatever take and report come to; the journal still has what
            # was not reported.
            except Exception:
                logger.exception("Uploads for broker %s are stuck.", self._broker.name)
                self._stopping.wait(self._back_off.fail(time.monotonic(), "stuck"))
        if self._sender is not None:
            self._sender.close()

    def _publish(self, uploads: Sequence[Upload]) -> None:
        """Send what was taken and report all of it; waits when the broker is down."""
        messages, now = [], time.monotonic()
        for upload in uploads:
            try:
                message = compose(self._app, upload)
            except TaskRefused as e:
                self._fail(upload, str(e))
                continue
            refused = self._refused.get(str(message.route))
            if refused and refused.until > now:
                self._defer_for_route(message, refused.reason)
            else:
                messages.append(message)
        if not messages:
            return
        try:
            self._send_or_retry(messages)
        except Exception as e:
            if not isinstance(e, BrokerUnavailable):
                # py-amqp is known to raise AttributeError for a lost connection, so we carry on.
                logger.exception("Publishing to broker %s failed.", self._broker.name)
            self._defer_for_broker(messages, explain(e))

    def _defer_for_broker(self, messages: Sequence[Message], reason: str) -> None:
        """Defer what has not been reported, and wait: nothing else can be sent either."""
        delay = self._back_off.fail(time.monotonic(), reason)
        self._say("down", reason, delay)
        for message in messages:
            self._report(Report(message.upload, State.DEFERRED, reason, delay=delay))
        self._stopping.wait(delay)

    def _send_or_retry(self, messages: list[Message]) -> None:
        """Send; once more at once over a new connection if the old one was stale."""
        was_open, began = self._sender is not None, time.monotonic()
        try:
            self._send(messages)
        except BrokerUnavailable:
            quickly = time.monotonic() - began < AT_ONCE
            if not (was_open and quickly) or self._stopping.is_set():
                raise
            self._send(messages)

    def _send(self, messages: list[Message]) -> None:
        """Send and report, taking from `messages` what has been reported."""
        try:
            if self._sender is None:
                self._sender = self._connected()
            for sent in self._sender.send(tuple(messages)):
                messages.remove(sent.message)
                self._settle(sent)
        except BaseException:
            self._discard()
            raise

    def _connected(self) -> Sender:
        driver = self._app.connection_for_write().transport.driver_type
        return ConfirmingSender(self._app) if driver == "amqp" else Sender(self._app)

    def _discard(self) -> None:
        if self._sender is not None:
            self._sender.discard()
            self._sender = None

    def _settle(self, sent: Sent) -> None:
        upload = sent.message.upload
        self._say("up")
        match sent.state:
            case State.DONE:
                if self._refused.pop(str(sent.message.route), None):
                    logger.info("Broker %s takes %s again.", self._broker.name, sent.message.route)
                logger.info(
                    "Sent upload %s to broker %s, %s.",
                    upload.id,
                    self._broker.name,
                    sent.message.route,
                )
                self._report(Report(upload, State.DONE))
            case State.FAILED:
                self._fail(upload, sent.reason)
            case _:
                self._defer_for_route(sent.message, sent.reason)

    def _fail(self, upload: Upload, reason: str) -> None:
        logger.error(
            "Task of upload %s cannot be sent to broker %s: %s. No retry would change that.",
            upload.id,
            self._broker.name,
            reason,
        )
        self._report(Report(upload, State.FAILED, reason))

    def _defer_for_route(self, message: Message, reason: str) -> None:
        """Defer an upload whose route the broker refuses; other routes go on."""
        upload, lane, now = message.upload, str(message.route), time.monotonic()
        back_off = self._refused.setdefault(lane, BackOff())
        if back_off.until <= now:
            delay = back_off.fail(now, reason)
            if back_off.attempts == 1:
                logger.warning(
                    "Broker %s does not take upload %s: %s. Retrying in %.1f seconds.",
                    self._broker.name,
                    upload.id,
                    reason,
                    delay,
                )
        delay = back_off.until - now
        self._report(Report(upload, State.DEFERRED, reason, lane=lane, delay=delay))

    def _say(self, state: str, error: str | None = None, delay: float = 0.0) -> None:
        """Keep what `status` tells, and log when the state changes."""
        before, now = self._status.get("state"), time.time()
        if state == "up":
            self._back_off.attempts = 0
            if before == "up":
                return
            if before == "down":
                logger.info("Broker %s is back.", self._broker.name)
        elif state == "down" and before != "down":
            logger.warning(
                "Broker %s is unreachable: %s. Retrying in %.1f seconds.",
                self._broker.name,
                error,
                delay,
            )
        self._status = {
            "state": state,
            "since": self._status["since"] if state == before else now,
            "attempts": self._back_off.attempts,
            "next_try": now + delay if delay else None,
            "error": error,
        }
