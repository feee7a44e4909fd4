"""AMQP: windows of messages, each confirmed, returned or refused by the broker."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from watchman.errors import BrokerUnavailable
from watchman.sinks.publishing.celeryapp import ANSWER_TIMEOUT, Message, Route
from watchman.sinks.publishing.sender import REFUSALS, Sender, Sent, explain
from watchman.uploads.upload import State

#: Seconds between two looks at whether to stop, while the broker has blocked the connection.
BLOCKED_POLL = 0.5


class ConfirmingSender(Sender):
    """An AMQP connection that counts nothing as sent before the broker has confirmed it."""

    def _open(self, channel: Any) -> None:
        super()._open(channel)
        self._tag = 0
        self._pending: dict[int, Message] = {}
        #: Why the broker returned messages, by correlation id. A return comes before its ack.
        self._returned: dict[str, str] = {}
        self._blocked = False
        # An alarm (memory, disk): RabbitMQ says so to who publishes, and reads no more from it.
        self._connection.connection.on_blocked = lambda _reason: self._on_blocked(True)
        self._connection.connection.on_unblocked = lambda: self._on_blocked(False)
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)

    def _is_about_route(self, error: Exception) -> bool:
        """Whether it is a 403, 404 or 406, after which the connection goes on with a new channel.

        py-amqp has opened the old one again, but not for confirmations.
        """
        if not isinstance(error, self._connection.channel_errors):
            return False
        self._channel.close()
        self._open(self._connection.channel())
        return True

    def _publish(self, message: Message) -> None:
        try:
            self._producer.publish(message.body, mandatory=True, **self._options(message))
        except REFUSALS as e:
            # py-amqp encodes the whole message before it writes the first byte.
            self._settled.append(Sent(message, State.FAILED, explain(e)))
        else:
            self._tag += 1
            self._pending[self._tag] = message
        if self._blocked:
            # More would fill the socket, and then a write fails with all that is under way.
            self._flush()

    def _flush(self) -> None:
        """Wait until nothing is pending, as long as answers keep coming.

        While the broker blocks the connection there is no hurry: it has what was sent, and would
        get it twice over another connection.
        """
        deadline = time.monotonic() + ANSWER_TIMEOUT
        pending = len(self._pending)
        while self._pending or self._blocked:
            if self._blocked:
                if self._stopping.is_set():
                    raise BrokerUnavailable("stopped while the broker blocked the connection")
                deadline = time.monotonic() + ANSWER_TIMEOUT
            left = deadline - time.monotonic()
            if left <= 0:
                raise BrokerUnavailable(
                    f"{len(self._pending)} tasks not confirmed within {ANSWER_TIMEOUT:.0f} s"
                )
            with contextlib.suppress(TimeoutError):
                self._connection.drain_events(timeout=min(left, BLOCKED_POLL))
            if len(self._pending) < pending:
                pending = len(self._pending)
                deadline = time.monotonic() + ANSWER_TIMEOUT

    def _on_blocked(self, blocked: bool) -> None:
        self._blocked = blocked
        self._tell_blocked(blocked)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for message in self._answered(tag, multiple):
            if reason := self._returned.pop(message.upload.id, ""):
                self._settled.append(self._refuse(message, reason))
            else:
                self._settled.append(Sent(message, State.DONE))

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for message in self._answered(tag, multiple):
            reason = f"{message.route} refused it, as a full queue does"
            self._settled.append(self._refuse(message, reason))

    def _on_return(self, error: Any, exchange: str, routing_key: str, message: Any) -> None:
        reason = f"{Route(exchange, routing_key)} cannot be reached: {error.reply_text}"
        self._returned[message.properties["correlation_id"]] = reason

    def _answered(self, tag: int, multiple: bool) -> list[Message]:
        tags = [pending for pending in self._pending if pending <= tag] if multiple else [tag]
        return [self._pending.pop(tag) for tag in tags if tag in self._pending]

    def discard(self) -> None:
        # pyamqp's collect() closes the socket without the closing handshake, for which a broken
        # connection would keep us waiting.
        with contextlib.suppress(Exception):
            self._connection.collect()
