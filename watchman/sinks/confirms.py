"""AMQP: windows of messages, each confirmed, returned or refused by the broker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from watchman.errors import BrokerUnavailable
from watchman.sinks.celeryapp import ANSWER_TIMEOUT, Message, Route
from watchman.sinks.sender import REFUSALS, Sender, Sent, explain
from watchman.upload import State


class ConfirmingSender(Sender):
    """An AMQP connection that counts nothing as sent before the broker has confirmed it.

    A route is tried alone first, so that a channel error names its culprit and order is kept when a
    queue has gone; then its messages share windows with others.
    """

    def _open(self) -> None:
        super()._open()
        self._tag = 0
        self._pending: dict[int, Message] = {}
        #: Why the broker returned messages, by correlation id. A return comes before its ack.
        self._returned: dict[str, str] = {}
        self._settled: list[Sent] = []
        self._proven: set[Route] = set()
        self._refused: dict[Route, str] = {}
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)

    def send(self, messages: Sequence[Message]) -> Iterator[Sent]:
        self._refused = {}
        try:
            for message in messages:
                if message.route not in self._proven | self._refused.keys():
                    yield from self._confirmed()
                    yield from self._tried(message)
                elif message.route in self._refused:
                    yield Sent(message, State.DEFERRED, self._refused[message.route])
                else:
                    self._publish(message)
            yield from self._confirmed()
        except self.faults as e:
            yield from self._taken()
            raise BrokerUnavailable(explain(e)) from e

    def _tried(self, message: Message) -> list[Sent]:
        """Send a message alone: what the broker objects to is the message's route."""
        try:
            self._publish(message)
            return self._confirmed()
        except self._connection.channel_errors as e:
            # 403, 404, 406: the channel is gone, and a late answer must not meet a later message.
            refused = self._refused | {message.route: explain(e)}
            self.discard()
            self._connection = self._app.connection_for_write()
            self._open()
            self._refused = refused
            return [Sent(message, State.DEFERRED, refused[message.route])]

    def _publish(self, message: Message) -> None:
        try:
            self._producer.publish(message.body, mandatory=True, **message.options)
        except REFUSALS as e:
            # py-amqp encodes the whole message before it writes the first byte.
            self._settled.append(Sent(message, State.FAILED, explain(e)))
        else:
            self._tag += 1
            self._pending[self._tag] = message

    def _confirmed(self) -> list[Sent]:
        """Wait until nothing is pending, as long as answers keep coming."""
        deadline = time.monotonic() + ANSWER_TIMEOUT
        pending = len(self._pending)
        while self._pending:
            try:
                self._connection.drain_events(timeout=max(0.001, deadline - time.monotonic()))
            except TimeoutError as e:
                raise BrokerUnavailable(
                    f"{len(self._pending)} tasks not confirmed within {ANSWER_TIMEOUT:.0f} s"
                ) from e
            if len(self._pending) < pending:
                pending = len(self._pending)
                deadline = time.monotonic() + ANSWER_TIMEOUT
        return self._taken()

    def _taken(self) -> list[Sent]:
        taken, self._settled = self._settled, []
        return taken

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for message in self._answered(tag, multiple):
            if reason := self._returned.pop(message.upload.id, ""):
                self._refuse(message, reason)
            else:
                self._proven.add(message.route)
                self._settled.append(Sent(message, State.DONE))

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for message in self._answered(tag, multiple):
            self._refuse(message, f"{message.route} refused it, as a full queue does")

    def _on_return(self, error: Any, exchange: str, routing_key: str, message: Any) -> None:
        reason = f"{Route(exchange, routing_key)} cannot be reached: {error.reply_text}"
        self._returned[message.properties["correlation_id"]] = reason

    def _answered(self, tag: int, multiple: bool) -> list[Message]:
        tags = [pending for pending in self._pending if pending <= tag] if multiple else [tag]
        return [self._pending.pop(tag) for tag in tags if tag in self._pending]

    def _refuse(self, message: Message, reason: str) -> None:
        self._proven.discard(message.route)
        self._refused[message.route] = reason
        # Declared once per connection; the queue may have been deleted since.
        self._connection.declared_entities.clear()
        self._settled.append(Sent(message, State.DEFERRED, reason))

    def discard(self) -> None:
        # pyamqp's collect() closes the socket without the closing handshake, for which a broken
        # connection would keep us waiting.
        with contextlib.suppress(Exception):
            self._connection.collect()
