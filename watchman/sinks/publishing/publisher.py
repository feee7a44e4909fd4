"""The publisher of one broker: takes uploads, sends their tasks, reports, backs off."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from watchman.config.settings import BrokerSettings
from watchman.errors import BrokerUnavailable, TaskRefused
from watchman.sinks.publishing.celeryapp import make_app
from watchman.sinks.publishing.confirms import ConfirmingSender
from watchman.sinks.publishing.messages import Message
from watchman.sinks.publishing.pushes import PushingSender
from watchman.sinks.publishing.sender import Sender, Sent, explain
from watchman.sinks.publishing.templates import Composer
from watchman.sinks.sink import LONGEST_DELAY, PATIENCE, BackOff, Sink, Take
from watchman.uploads.upload import Report, State, Upload

logger = logging.getLogger(__name__)

#: Uploads that are sent and confirmed together. If we are killed before it is written down, all of
#: them are sent again. With 16 of them an upload costs a third more CPU time.
BATCH = 64

#: Seconds that `join` waits after `stop`: longer than the timeouts of a connection.
HUNG = 10.0

#: Seconds after `hurry` until a route counts as open, in which the backlog gives out the uploads
#: that waited for it. Uploads that were taken before join those, so that they do not overtake them.
HURRY = 0.1

#: Seconds within which a send fails if the broker had closed the connection while it was idle.
AT_ONCE = 1.0

#: What `status` shows as the error of a broker that has raised an alarm.
BLOCKED = "it is short of memory or disk, and takes no tasks until that is over"


class Publisher(Sink):
    """The thread of one broker, with its app and its connection.

    `take` returns uploads, oldest first, or none. `report` is called by this thread with each
    upload once, and with those that were sent together in one call. Tasks with the same exchange
    and routing key are sent in order.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        *,
        take: Take,
        report: Callable[[Sequence[Report]], None],
    ) -> None:
        """Raises ConfigError for settings that Celery cannot use; does not connect."""
        super().__init__({f"publisher:{broker.name}": self._run}, hung=HUNG)
        self._broker = broker
        self._take = take
        self._report = report
        self._app = make_app(broker)
        self._composer = Composer(self._app)
        self._sender: Sender | None = None
        self._back_off = BackOff()
        #: Failures so far. With a failover list, each new connection begins with another host.
        self._failures = 0
        #: Routes that the broker refuses, and when each is tried again.
        self._refused: dict[str, BackOff] = {}
        #: Ends a wait early. Set by `hurry` and `stop`.
        self._roused = threading.Event()

    def stop(self) -> None:
        """Tell the thread to end. It still sends what it has taken, or gives up after a timeout."""
        super().stop()
        self._roused.set()

    def hurry(self) -> None:
        """Try refused routes and the broker itself again at once. Any thread may call it."""
        for back_off in list(self._refused.values()):
            back_off.until = min(back_off.until, time.monotonic() + HURRY)
        self._roused.set()

    def status(self) -> dict[str, Any]:
        """Return whether the broker is up, down, blocked or not needed yet. Any thread may call it.

        `refused` has the routes that it refuses, and why.
        """
        # If a route's back-off has ended long ago, it was not refused again. It works, or it has no
        # uploads any more.
        since = time.monotonic() - LONGEST_DELAY
        refused = self._refused.copy().items()
        return {**super().status(), "refused": {r: b.reason for r, b in refused if b.until > since}}

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                asked = time.monotonic()
                # While the broker is down we connect even without uploads. Otherwise `status` would
                # show it as down until the next upload.
                is_down = self._status["state"] == "down"
                uploads = self._take(BATCH, 0.0 if is_down else PATIENCE, self._stopping.is_set)
                if uploads or is_down:
                    self._publish(uploads, asked)
            # No error of `take` or `report` may end this thread. The journal has the uploads that
            # were not reported.
            except Exception:
                logger.exception("Uploads for broker %s are stuck.", self._broker.name)
                self._rest(self._back_off.fail(time.monotonic(), "stuck"))
        if self._sender is not None:
            self._sender.close()

    def _publish(self, uploads: Sequence[Upload], asked: float) -> None:
        """Send the tasks of uploads, and report each upload. Waits if the broker is down.

        The uploads were asked for at `asked` (monotonic). If their route was left alone at that
        time, older uploads may be waiting for it. So these join them and do not overtake, even if
        the route is open by now.
        """
        messages = []
        for upload in uploads:
            try:
                message = self._composer.compose(upload)
            except TaskRefused as e:
                self._fail(upload, str(e))
                continue
            refused = self._refused.get(str(message.route)) if self._refused else None
            if refused and refused.until > asked:
                self._defer_for_route(message, refused.reason, tried=False)
            else:
                messages.append(message)
        if uploads and not messages:
            return
        try:
            self._send(messages)
        except Exception as e:
            if not isinstance(e, BrokerUnavailable) and self._status["state"] != "down":
                # We carry on after any exception. py-amqp, for instance, is known to raise
                # AttributeError for a lost connection.
                logger.exception("Publishing to broker %s failed.", self._broker.name)
            self._defer_for_broker(messages, explain(e))

    def _defer_for_broker(self, messages: Sequence[Message], reason: str) -> None:
        """Defer the messages that were not reported, and wait, because the broker is down."""
        self._failures += 1
        delay = self._back_off.fail(time.monotonic(), reason)
        if not self._stopping.is_set():
            self._say("down", reason, delay)
        self._report(
            [
                Report(message.upload, State.DEFERRED, reason, delay=delay, tried=True)
                for message in messages
            ]
        )
        self._rest(delay)

    def _rest(self, delay: float) -> None:
        self._roused.wait(delay)
        if not self._stopping.is_set():
            self._roused.clear()

    def _send(self, messages: list[Message]) -> None:
        """Send messages and report them; those that were reported are removed from `messages`.

        If the connection was stale, they are sent again at once over a new one. The broker may have
        closed a connection that was idle, and then the first send fails.
        """
        was_open, began = self._sender is not None, time.monotonic()
        try:
            if self._sender is None:
                self._sender = self._connected()
            answered: list[Sent] = []
            for sent in self._sender.send(tuple(messages)):
                if sent:
                    self._say("up")
                for one in sent:
                    messages.remove(one.message)
                self._settle(sent)
                answered += sent
            self._say("up")
            if self._refused:
                self._forgive(answered)
        except BaseException as e:
            if self._sender is not None:
                self._sender.discard()
                self._sender = None
            quickly = time.monotonic() - began < AT_ONCE
            is_stale = was_open and quickly and isinstance(e, BrokerUnavailable)
            if not is_stale or self._stopping.is_set():
                raise
            self._send(messages)

    def _connected(self) -> Sender:
        driver = self._app.connection_for_write().transport.driver_type
        kinds = {"amqp": ConfirmingSender, "redis": PushingSender}
        return kinds.get(driver, Sender)(
            self._app,
            declare=self._broker.declare,
            skip=self._failures,
            stopping=self._stopping,
            blocked=self._on_blocked,
        )

    def _on_blocked(self, blocked: bool) -> None:
        self._say("blocked" if blocked else "up", BLOCKED if blocked else None)

    def _settle(self, sent: Sequence[Sent]) -> None:
        """Report messages, first those that are done, so that this is written down soon."""
        if done := [one.message for one in sent if one.state is State.DONE]:
            answer = {"answer": self._sender.ANSWER if self._sender else ""}
            self._report(
                [
                    Report(message.upload, State.DONE, sent=message.route.record() | answer)
                    for message in done
                ]
            )
        for message in done:
            logger.info(
                "Sent upload %s to broker %s, %s.",
                message.upload.id,
                self._broker.name,
                message.route,
            )
        for one in sent:
            if one.state is State.FAILED:
                self._fail(one.message.upload, one.reason)
            elif one.state is State.DEFERRED:
                self._defer_for_route(one.message, one.reason, tried=True)

    def _forgive(self, answered: Sequence[Sent]) -> None:
        """End the back-off of refused routes that took a message, or shorten it if some failed."""
        states: dict[str, set[State]] = {}
        for one in answered:
            states.setdefault(str(one.message.route), set()).add(one.state)
        for route in self._refused.keys() & states.keys():
            if State.DONE in states[route]:
                if State.DEFERRED in states[route]:
                    self._refused[route].attempts = 1
                else:
                    del self._refused[route]
                    logger.info("Broker %s takes %s again.", self._broker.name, route)

    def _fail(self, upload: Upload, reason: str) -> None:
        logger.error(
            "Task of upload %s cannot be sent to broker %s: %s. No retry would change that.",
            upload.id,
            self._broker.name,
            reason,
        )
        self._report([Report(upload, State.FAILED, reason)])

    def _defer_for_route(self, message: Message, reason: str, *, tried: bool) -> None:
        """Defer an upload whose route the broker refuses; other routes go on."""
        upload, lane, now = message.upload, str(message.route), time.monotonic()
        back_off = self._refused.setdefault(lane, BackOff())
        tried = tried and back_off.until <= now
        if tried:
            delay = back_off.fail(now, reason)
            if back_off.attempts == 1:
                logger.warning(
                    "Broker %s does not take upload %s: %s. Retrying in %.1f seconds.",
                    self._broker.name,
                    upload.id,
                    reason,
                    delay,
                )
        delay = max(0.0, back_off.until - now)
        self._report([Report(upload, State.DEFERRED, reason, lane=lane, delay=delay, tried=tried)])
        # The route must not open before its lane in the backlog does. Otherwise a younger upload
        # from another lane could overtake those in it.
        back_off.until = max(back_off.until, time.monotonic() + delay)

    def _say(self, state: str, error: str | None = None, delay: float = 0.0) -> None:
        """Set what `status` returns, and log it if the state has changed."""
        before, name = self._status["state"], self._broker.name
        if state == "up":
            self._back_off.attempts = 0
        if state == before == "up":
            return
        if state != before:
            if state == "down":
                logger.warning(
                    "Broker %s is down: %s. Retrying in %.1f seconds.", name, error, delay
                )
            elif state == "blocked":
                logger.warning("Broker %s has blocked us: %s.", name, error)
            elif before in ("down", "blocked"):
                logger.info("Broker %s is back.", name)
        self._stand(state, error, self._back_off.attempts, delay)
