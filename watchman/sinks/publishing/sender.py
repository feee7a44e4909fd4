"""One connection to a broker: sends messages and says what became of each."""

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

#: What client libraries raise for a message that cannot be put on the wire.
REFUSALS = (TypeError, ValueError, struct.error)

#: How Redis begins to refuse one key and no other. All else it says (OOM, READONLY, MISCONF,
#: LOADING, ...) is about the server, whatever is sent.
OF_ONE_KEY = (
    "WRONGTYPE",
    "No permissions to access a key",
    "NOPERM No permissions to access a key",
)


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a message: DONE, FAILED for good, or DEFERRED because of its route."""

    message: Message
    state: State
    reason: str = ""


class Sender:
    """A connection through any of kombu's transports. Thrown away after any failure of it.

    Without confirmations: what a transport took without complaint counts as sent. Redis answers
    each command, the embedded broker has written to disk.

    A route is tried alone first, so that a refusal has one culprit and order is kept when a queue
    has gone; then its messages share windows with others. After a refusal they go one by one for a
    while: of a window a queue that is nearly full may refuse the first and take the second.
    """

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

        `skip` hosts of a failover list are tried last. `blocked` hears when the broker asks to be
        left alone, and when no more; `stopping` ends that wait.
        """
        self._app = app
        self._declare = declare
        self._stopping = stopping
        self._tell_blocked = blocked
        #: Routes that have led somewhere; that have refused something lately; that have done so in
        #: this `send`, and why.
        self._proven: set[Route] = set()
        self._wary: set[Route] = set()
        self._refused: dict[Route, str] = {}
        self._window: list[Message] = []
        self._settled: list[Sent] = []
        #: What kombu sends for a template's messages, cut where they differ. The first of each is
        #: sent by kombu, which also declares its queue.
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
        """Send in order, and tell what became of messages as soon as it is known.

        What has not been yielded when BrokerUnavailable is raised is unknown.
        """
        self._refused = {}
        try:
            for message in messages:
                if reason := self._refused.get(message.route):
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
            self._wary -= {message.route for message in messages} - self._refused.keys()
        except self.faults as e:
            yield self._taken()
            raise BrokerUnavailable(explain(e)) from e

    def _tried(self, message: Message) -> list[Sent]:
        """Send a message alone: what the broker objects to is the message's route."""
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
        """Whether the connection can go on after what a message that was tried alone has raised."""
        return isinstance(error, NotEquivalentError) or explain(error).startswith(OF_ONE_KEY)

    def _refuse(self, message: Message, reason: str) -> Sent:
        self._proven.discard(message.route)
        self._wary.add(message.route)
        self._refused[message.route] = reason
        # Declared once per connection; the queue may have been deleted since.
        self._connection.declared_entities.clear()
        self._cuts.clear()
        return Sent(message, State.DEFERRED, reason)

    def _publish(self, message: Message) -> None:
        """Send a message, or keep it for the next flush where that sends many at once."""
        self._window.append(message)
        if not self._producer.supports_batch_publish:
            self._flush()

    def _flush(self) -> None:
        """Send what is left to send, and wait until the broker has answered for all of it."""
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
        """Return a message's template if what kombu makes of its messages can be cut."""
        return None if message.options["compression"] else message.template

    def _prepared(self, message: Message) -> Any:
        """Return what kombu's producer hands to the channel for a message, and send nothing."""
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
        """Whether kombu would drop the message without a word, having no queue for it.

        The exchanges of virtual transports know no `mandatory`; the nameless one needs no binding.
        """
        if not message.route.exchange or not isinstance(self._channel, virtual.Channel):
            return False
        for queue in message.options["declare"] or ():
            # A virtual exchange is nowhere but in this process, which must know its type.
            self._producer.maybe_declare(queue if self._declare else queue.exchange)
        return not self._channel._lookup(message.route.exchange, message.route.routing_key)

    def _taken(self) -> list[Sent]:
        taken, self._settled = self._settled, []
        return taken

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
    text = " ".join(str(error).split())
    # redis-py puts the command before the server's words, and our whole message is in it.
    text = text.rpartition(" of pipeline caused error: ")[2]
    return text[:300].rstrip(".") or type(error).__name__
