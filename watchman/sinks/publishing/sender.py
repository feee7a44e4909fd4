"""One connection to a broker, which sends messages and tells the result of each."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kombu.exceptions import BatchPublishError, KombuError
from kombu.transport import virtual
from kombu.transport.virtual.base import NotEquivalentError

from watchman.errors import BrokerUnavailable
from watchman.sinks.publishing.messages import Message, Route, Template
from watchman.uploads.upload import State

#: Exceptions of client libraries for a message that cannot be encoded.
REFUSALS = (TypeError, ValueError, struct.error)

#: The beginnings of Redis's errors that concern one key. All its other errors (OOM, READONLY,
#: MISCONF, LOADING, ...) concern the server, whatever is sent.
OF_ONE_KEY = (
    "WRONGTYPE",
    "No permissions to access a key",
    "NOPERM No permissions to access a key",
)


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of a message: DONE, FAILED for good, or DEFERRED because of its route."""

    message: Message
    state: State
    reason: str = ""


class Sender:
    """A connection through any of kombu's transports. After any failure it must be discarded.

    This class does not wait for confirmations: a message counts as sent if the transport raised no
    error. Redis answers each command, and the embedded broker has written the message to disk.

    The first message of a route is sent alone. So a refusal clearly concerns that message, and
    order is kept if its queue has gone. After that, messages of the route are sent together with
    others. After a refusal they are sent one by one for a while: of several at once a queue that is
    nearly full could refuse the first message and take the second.
    """

    #: The broker's answer to a message that counts as sent, as `watchman explain` tells it.
    ANSWER = "handed over"

    def __init__(
        self,
        app: Any,
        *,
        declare: bool = True,
        skip: int = 0,
        stopping: threading.Event,
        blocked: Callable[[bool], None],
    ) -> None:
        """Connect; raises BrokerUnavailable after a few seconds.

        The first `skip` hosts of a failover list are tried last. `blocked(True)` is called when the
        broker asks us not to publish, and `blocked(False)` when that ends. `stopping` ends the wait
        for that.
        """
        self._app = app
        self._declare = declare
        self._stopping = stopping
        self._tell_blocked = blocked
        #: Routes that work, so that their messages are sent together with others.
        self._proven: set[Route] = set()
        #: Routes that were refused lately, so that their messages are sent one by one.
        self._wary: set[Route] = set()
        #: Routes that were refused in this call of `send`, and why.
        self._refused: dict[Route, str] = {}
        self._window: list[Message] = []
        self._settled: list[Sent] = []
        #: By template, what kombu sends for its messages, cut where they differ. kombu itself sends
        #: the first message of a template, and declares its queue.
        self._cuts: dict[Template | None, Any] = {}
        self._connection = app.connection_for_write()
        for _ in range(skip % max(1, len(self._connection.alt))):
            self._connection.maybe_switch_next()
        self.faults = (
            *self._connection.connection_errors,
            *self._connection.channel_errors,
            KombuError,
            OSError,
        )
        try:
            self._open(self._connection.default_channel)
        except self.faults as e:
            self.discard()
            raise BrokerUnavailable(explain(e)) from e

    def _open(self, channel: Any) -> None:
        self._channel = channel
        self._producer = self._app.amqp.Producer(channel, auto_declare=False)

    def send(self, messages: Sequence[Message]) -> Iterator[list[Sent]]:
        """Send messages in order, and yield the results as soon as they are known.

        Raises BrokerUnavailable. Then nobody knows about the messages that were not yielded: they
        may have been sent or not.
        """
        self._refused = {}
        try:
            for message in messages:
                if self._refused and (reason := self._refused.get(message.route)):
                    self._settled.append(Sent(message, State.DEFERRED, reason))
                elif message.route in self._proven:
                    self._publish(message)
                else:
                    self._flush()
                    yield self._taken()
                    yield self._tried(message)
                if self._settled:
                    yield self._taken()
            self._flush()
            yield self._taken()
            if self._wary:
                self._wary -= {message.route for message in messages} - self._refused.keys()
        except self.faults as e:
            yield self._taken()
            raise BrokerUnavailable(explain(e)) from e

    def _tried(self, message: Message) -> list[Sent]:
        """Send a message alone, so that an error of the broker concerns this message's route."""
        try:
            self._publish(message)
            self._flush()
        except Exception as e:
            if not self._is_about_route(e):
                raise
            return [self._refuse(message, explain(e))]
        sent = self._taken()
        if message.route not in self._wary and any(one.state is State.DONE for one in sent):
            self._proven.add(message.route)
        return sent

    def _is_about_route(self, error: Exception) -> bool:
        """Whether an error concerns the message's route only, and the connection can go on."""
        return isinstance(error, NotEquivalentError) or explain(error).startswith(OF_ONE_KEY)

    def _refuse(self, message: Message, reason: str) -> Sent:
        self._proven.discard(message.route)
        self._wary.add(message.route)
        self._refused[message.route] = reason
        # kombu declares a queue once per connection. It may have been deleted since, so forget what
        # was declared.
        self._connection.declared_entities.clear()
        self._cuts.clear()
        return Sent(message, State.DEFERRED, reason)

    def _publish(self, message: Message) -> None:
        """Send a message, or keep it for `_flush` if the transport can send many at once."""
        self._window.append(message)
        if not self._producer.supports_batch_publish:
            self._flush()

    def _flush(self) -> None:
        """Send the messages that are left, and wait until the broker has answered for all."""
        window, self._window = self._window, []
        if window:
            with self._producer.batch(len(window)):
                sent = [self._send_one(message) for message in window]
            self._settled += sent

    def _send_one(self, message: Message) -> Sent:
        if message.route in self._refused or self._leads_nowhere(message):
            return self._refuse(message, f"no queue is bound to {message.route}")
        try:
            self._producer.publish(message.body, **self._options(message))
        except REFUSALS as e:
            return Sent(message, State.FAILED, explain(e))
        return Sent(message, State.DONE)

    def _to_be_cut(self, message: Message) -> Template | None:
        """Return a message's template if its messages can be cut, else None."""
        return None if message.options["compression"] else message.template

    def _prepared(self, message: Message) -> Any:
        """Return what kombu's producer would give the channel for a message; send nothing."""
        taken: list[Any] = []
        self._channel.basic_publish = lambda prepared, **_: taken.append(prepared)
        try:
            self._producer.publish(message.body, **{**message.options, "declare": ()})
        finally:
            del self._channel.basic_publish
        return taken[0]

    def _options(self, message: Message) -> dict[str, Any]:
        return {**message.options, **({} if self._declare else {"declare": ()})}

    def _leads_nowhere(self, message: Message) -> bool:
        """Whether kombu would drop the message silently, because no queue is bound for it.

        Virtual transports, such as Redis, ignore `mandatory`. The default exchange needs no
        binding.
        """
        if not message.route.exchange or not isinstance(self._channel, virtual.Channel):
            return False
        for queue in message.options["declare"] or ():
            # A virtual exchange exists only in this process, which must be told its type.
            self._producer.maybe_declare(queue if self._declare else queue.exchange)
        return not self._channel._lookup(message.route.exchange, message.route.routing_key)

    def _taken(self) -> list[Sent]:
        taken, self._settled = self._settled, []
        return taken

    def close(self) -> None:
        """Close the connection in order. It may wait for the broker's answer."""
        with contextlib.suppress(*self.faults):
            self._connection.release()

    def discard(self) -> None:
        """Close the connection at once, after a failure.

        It must not be used again: py-amqp would take a late ack of an old message for that of a new
        one.
        """
        # Errors of a connection that is broken anyway do not matter.
        with contextlib.suppress(Exception):
            self._connection.release()


def explain(error: BaseException) -> str:
    """Return one line that says what went wrong."""
    if isinstance(error, BatchPublishError) and error.__cause__:
        error = error.__cause__
    text = " ".join(str(error).split())
    # redis-py writes the whole command, with our message in it, before the server's error.
    text = text.rpartition(" of pipeline caused error: ")[2]
    return text[:300].rstrip(".") or type(error).__name__
