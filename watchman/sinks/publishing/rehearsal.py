"""Finds out whether a broker would take a task, without sending one. `watchman check` uses it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from watchman.errors import BrokerUnavailable, TaskRefused
from watchman.sinks.publishing.confirms import ConfirmingSender
from watchman.sinks.publishing.messages import Message
from watchman.sinks.publishing.publisher import BLOCKED
from watchman.sinks.publishing.sender import Sender, Sent
from watchman.uploads.upload import State

#: The type that a key must have, as TYPE names it, for a command that kombu sends.
HOLDS = {"LPUSH": "list", "SADD": "set"}


def connect(app: Any, *, declare: bool) -> Sender | None:
    """Return a sender that tells what would happen to messages, but sends none.

    None if the transport cannot tell that. Raises BrokerUnavailable.
    """
    driver = app.connection_for_write().transport.driver_type
    kinds = {"amqp": _RolledBack, "redis": _NeverExecuted}
    sender = kinds.get(driver, Sender)(
        app, declare=declare, stopping=threading.Event(), blocked=lambda _: None
    )
    if driver in kinds:
        return sender
    sender.close()
    return None


class _RolledBack(ConfirmingSender):
    """AMQP: publishes in a transaction that is rolled back.

    RabbitMQ checks rights and the exchange when a message arrives, but routes it only at the
    commit. Queues and exchanges that the first task would declare are declared, because only that
    shows whether we may and whether they agree with those that exist. New ones are deleted again.
    """

    def _publish(self, message: Message) -> None:
        declaring = _Declaring(self._channel)
        try:
            for queue in (message.options["declare"] or ()) if self._declare else ():
                queue(self._channel).declare(channel=declaring)
            if not message.route.exchange:
                self._channel.queue_declare(message.route.routing_key, passive=True)
            self._publish_and_roll_back(message)
        finally:
            declaring.undo()
        notes = []
        if declaring.made:
            notes.append(f"the first task makes {' and '.join(declaring.made)}")
        if message.route.exchange and not message.route.queue:
            notes.append("only a task can tell whether a queue is bound to it")
        self._settled.append(Sent(message, State.DONE, "; ".join(notes)))

    def _publish_and_roll_back(self, message: Message) -> None:
        """Publish on a connection of its own: during an alarm the broker stops reading from it."""
        connection = self._app.connection_for_write()
        try:
            channel = connection.default_channel
            connection.connection.on_blocked = _raise_blocked
            channel.tx_select()
            producer = self._app.amqp.Producer(channel, auto_declare=False)
            producer.publish(message.body, **{**message.options, "declare": ()})
            channel.tx_rollback()
        finally:
            with contextlib.suppress(Exception):
                connection.collect()


def _raise_blocked(_reason: str) -> None:
    raise BrokerUnavailable(BLOCKED)


class _Declaring:
    """An AMQP channel that remembers which queues and exchanges it has made."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.made: list[str] = []
        self._undo = contextlib.ExitStack()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def exchange_declare(self, exchange: str, **options: Any) -> Any:
        return self._make("exchange", exchange, options, if_unused=True)

    def queue_declare(self, queue: str, **options: Any) -> Any:
        return self._make("queue", queue, options, if_unused=True, if_empty=True)

    def _make(self, kind: str, name: str, options: dict[str, Any], **unless: bool) -> Any:
        """Declare something; a passive declaration before that tells whether it existed."""
        declare = getattr(self._channel, f"{kind}_declare")
        try:
            declare(name, **{**options, "passive": True})
        except self._channel.connection.channel_errors as e:
            if e.code != 404:
                raise
        else:
            return declare(name, **options)
        answer = declare(name, **options)
        self.made.append(f"{kind} {name!r}")
        self._undo.callback(getattr(self._channel, f"{kind}_delete"), name, **unless)
        return answer

    def undo(self) -> None:
        """Delete what was made, the last first, unless somebody uses it already."""
        with contextlib.suppress(*self._channel.connection.channel_errors):
            self._undo.close()


class _NeverExecuted(Sender):
    """Redis: sends the commands in a MULTI that is never executed.

    The server checks each command when it is queued. So it reports missing rights, a lack of
    memory, or that it is a read-only replica.
    """

    def _open(self, channel: Any) -> None:
        super()._open(channel)
        self._recorder = _Recorder(channel._create_client(), channel.sep)
        channel.conn_or_acquire = lambda *_: contextlib.nullcontext(self._recorder)

    def _send_one(self, message: Message) -> Sent:
        sent = super()._send_one(message)
        return sent if sent.reason else Sent(message, State.DONE, self._recorder.ask())


class _Recorder:
    """Takes the place of kombu's Redis client: answers reads, and keeps writes for `ask`."""

    def __init__(self, client: Any, separator: str) -> None:
        self._client = client
        self._separator = separator
        self._pipeline = client.pipeline()
        self._is_transaction = False
        self._kept: list[tuple[Any, ...]] = []

    def pipeline(self, transaction: bool = True) -> _Recorder:
        self._is_transaction |= transaction
        return self

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def execute(self) -> list[Any]:
        """Do nothing; `ask` will send the commands."""
        return []

    def reset(self) -> None:
        """Do nothing; `ask` needs the commands."""

    def smembers(self, key: str) -> set[Any]:
        """Return the bindings of an exchange, including those that would have been made by now."""
        words = [word for kept in self._kept if key in kept for word in kept]
        return {*self._client.smembers(key), *(w for w in words if self._separator in str(w))}

    def __getattr__(self, command: str) -> Callable[..., _Recorder]:
        def keep(*words: Any) -> _Recorder:
            self._kept.append(words)
            getattr(self._pipeline, command)(*words)
            return self

        return keep

    def ask(self) -> str:
        """Send all kept commands without executing them. Raises the server's errors.

        Return what could not be found out, "" if nothing.
        """
        from redis.exceptions import NoPermissionError, ResponseError

        commands = [words for words, _ in self._pipeline.command_stack]
        self._pipeline.reset()
        pool = self._client.connection_pool
        connection = pool.get_connection()

        def answer(*words: Any) -> Any:
            connection.send_command(*words)
            return connection.read_response()

        try:
            for command, key, *_ in commands:
                # Without the right to run TYPE, the type is not checked.
                with contextlib.suppress(NoPermissionError):
                    _check_type(key, answer("TYPE", key).decode(), HOLDS.get(command))
            try:
                answer("MULTI")
            except NoPermissionError:
                if self._is_transaction:
                    raise
                return "only a task can tell whether it is taken, for the user may not run MULTI"
            for words in commands:
                answer(*words)
            # The server discards the transaction when the connection ends.
            connection.disconnect()
            if self._is_transaction:
                try:
                    answer("EXEC")
                except ResponseError as e:  # "EXEC without MULTI" says that the user may run EXEC
                    if "NOPERM" in str(e):
                        raise
        finally:
            connection.disconnect()
            pool.release(connection)
        return ""


def _check_type(key: Any, found: str, needed: str | None) -> None:
    if needed and found not in (needed, "none"):
        raise TaskRefused(f"WRONGTYPE: the key {key!r} is a {found}, and would be a {needed}")
