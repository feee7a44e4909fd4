"""One connection to a broker: sends messages and says what became of each."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kombu.exceptions import BatchPublishError, KombuError
from kombu.transport import virtual

from watchman.errors import BrokerUnavailable
from watchman.sinks.celeryapp import Message, Route
from watchman.upload import State

#: What client libraries raise for a message that cannot be put on the wire.
REFUSALS = (TypeError, ValueError, struct.error)


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a message: DONE, FAILED for good, or DEFERRED because of its route."""

    message: Message
    state: State
    reason: str = ""


class Sender:
    """A connection through any of kombu's transports. Thrown away after any failure.

    Without confirmations: what a transport took without complaint counts as sent. Redis answers
    each command, the embedded broker has written to disk.
    """

    def __init__(self, app: Any) -> None:
        """Connect; raises BrokerUnavailable after a few seconds."""
        self._app = app
        self._connection = app.connection_for_write()
        self.faults = (
            *self._connection.connection_errors,
            *self._connection.channel_errors,
            KombuError,
            OSError,
        )
        try:
            self._open()
        except self.faults as e:
            self.discard()
            raise BrokerUnavailable(explain(e)) from e

    def _open(self) -> None:
        self._channel = self._connection.default_channel
        self._producer = self._app.amqp.Producer(self._channel, auto_declare=False)

    def send(self, messages: Sequence[Message]) -> Iterator[Sent]:
        """Send in order. What has not been yielded when BrokerUnavailable is raised is unknown."""
        window = len(messages) if self._producer.supports_batch_publish else 1
        refused: dict[Route, str] = {}
        try:
            for start in range(0, len(messages), window or 1):
                yield from self._send_window(messages[start : start + window], refused)
        except self.faults as e:
            raise BrokerUnavailable(explain(e)) from e

    def _send_window(self, messages: Sequence[Message], refused: dict[Route, str]) -> list[Sent]:
        sent = []
        with self._producer.batch(len(messages)):
            for message in messages:
                sent.append(self._send_one(message, refused))
        return sent

    def _send_one(self, message: Message, refused: dict[Route, str]) -> Sent:
        if message.route not in refused and self._leads_nowhere(message):
            refused[message.route] = f"no queue is bound to {message.route}"
        if message.route in refused:
            return Sent(message, State.DEFERRED, refused[message.route])
        try:
            self._producer.publish(message.body, **message.options)
        except REFUSALS as e:
            return Sent(message, State.FAILED, explain(e))
        return Sent(message, State.DONE)

    def _leads_nowhere(self, message: Message) -> bool:
        """Whether kombu would drop the message without a word, having no queue for it.

        The exchanges of virtual transports know no `mandatory`; the nameless one needs no binding.
        """
        if not message.route.exchange or not isinstance(self._channel, virtual.Channel):
            return False
        for entity in message.options["declare"] or ():
            self._producer.maybe_declare(entity)
        return not self._channel._lookup(message.route.exchange, message.route.routing_key)

    def close(self) -> None:
        """Say goodbye to the broker and close; may wait for its answer."""
        with contextlib.suppress(*self.faults):
            self._connection.release()

    def discard(self) -> None:
        """Close without a word: what answers to old messages still come must reach nobody."""
        # What breaks while a broken connection is taken apart is of no interest.
        with contextlib.suppress(Exception):
            self._connection.release()


def explain(error: BaseException) -> str:
    """One line that says what went wrong."""
    if isinstance(error, BatchPublishError) and error.__cause__:
        error = error.__cause__
    text = " ".join(str(error).split())[:300]
    return text.rstrip(".") or type(error).__name__
