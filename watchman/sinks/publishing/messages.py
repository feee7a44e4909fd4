"""The message that Celery makes of a task, and its route."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kombu.serialization import dumps

from watchman.errors import TaskRefused
from watchman.uploads.upload import Task, Upload

#: Bytes that a short string of AMQP can have. Names of exchanges and routing keys are such.
SHORT_STRING = 255

#: Other options that Celery resolves for a message. `watchman explain` shows them.
RESOLVED = ("priority", "expiration", "serializer", "compression", "delivery_mode")

#: Headers that differ between messages of one template, besides those that hold a time.
VARYING = ("id", "root_id", "argsrepr", "kwargsrepr", "watchman")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message goes. Routes are equal if the broker treats their messages alike."""

    exchange: str
    routing_key: str
    queue: str = field(default="", compare=False)
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        if not self.exchange:
            return f"queue {self.routing_key!r}"
        return f"exchange {self.exchange!r} with routing key {self.routing_key!r}"

    def record(self) -> dict[str, str]:
        """Return what the journal has of it. Without an exchange, the routing key is the queue."""
        if not self.exchange:
            return {"queue": self.routing_key}
        record = {"exchange": self.exchange, "routing_key": self.routing_key}
        return record | ({"queue": self.queue} if self.queue else {})


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """What several messages have in common, taken from one that Celery made. Equal to itself only.

    Messages differ in their body, their correlation id, the headers in VARYING, and the headers in
    `moments`. Those hold a time; `moments` has how many seconds it is after the message is made.
    """

    route: Route
    headers: Mapping[str, Any]
    options: Mapping[str, Any]
    #: The third part of the body, after args and kwargs, see Celery's message protocol 2.
    embedded: Mapping[str, Any]
    moments: Mapping[str, float]

    def shared(self) -> dict[str, Any]:
        """Return the headers that all messages of the template share."""
        return {n: v for n, v in self.headers.items() if n not in (*VARYING, *self.moments)}

    def own(self, headers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the headers of a message that it does not share."""
        return {name: headers[name] for name in (*VARYING, *self.moments)}


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """A message that is ready for `kombu.Producer.publish(body, **options)`. It is not sent yet."""

    upload: Upload
    route: Route
    body: bytes
    options: Mapping[str, Any]
    template: Template | None = None


class _Recorder:
    """Takes the place of Celery's producer, and keeps what would be published."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.published: list[tuple[Any, dict[str, Any]]] = []

    def publish(self, body: Any, **options: Any) -> None:
        self.published.append((body, options))


class _NoResult:
    """Takes the place of AsyncResult. To construct that one would import the result backend."""

    def __init__(self, task_id: str) -> None:
        self.id = task_id


def compose(app: Any, upload: Upload) -> Message:
    """Have Celery make and route the message of an upload. Raises TaskRefused; does not connect."""
    assert upload.task is not None
    try:
        body, options = record(app, upload.task, upload.id, header_of(upload))
        content_type, encoding, encoded = dumps(body, serializer=options["serializer"])
        if isinstance(encoded, str):
            encoded = encoded.encode(encoding)
        found = route_of(options)
    # No broker has to do with this, so no retry can help.
    except Exception as e:
        raise TaskRefused(f"{type(e).__name__}: {e}") from e
    options |= {"content_type": content_type, "content_encoding": encoding}
    return Message(upload, found, encoded, options)


def route(app: Any, task: Task) -> Route:
    """Return the route of a task. Raises TaskRefused; does not connect."""
    try:
        return route_of(record(app, task, "", {})[1])
    except Exception as e:
        raise TaskRefused(f"{type(e).__name__}: {e}") from e


def record(
    app: Any, task: Task, task_id: str, header: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the body and options that Celery would publish. Raises whatever it raises."""
    recorder = _Recorder(app.connection_for_write())
    app.send_task(
        task.name,
        task.args,
        task.kwargs,
        task_id=task_id or None,
        producer=recorder,
        headers={"watchman": header},
        retry=False,
        # Otherwise send_task would hang if the result backend is down.
        ignore_result=True,
        result_cls=_NoResult,
        add_to_parent=False,
        **task.options,
    )
    return recorder.published[0]


def route_of(options: Mapping[str, Any]) -> Route:
    """Return the route in options that Celery would publish with. Raises ValueError.

    That is for a name that is too long for AMQP.
    """
    exchange = options["exchange"]
    exchange = getattr(exchange, "name", exchange) or ""
    routing_key = options["routing_key"] or ""
    for name in (exchange, routing_key):
        if len(name.encode(errors="surrogateescape")) > SHORT_STRING:
            raise ValueError(f"longer than {SHORT_STRING} bytes: {name!r}")
    queues = [
        queue.name
        for queue in options["declare"] or ()
        if not exchange or (queue.exchange.name, queue.routing_key) == (exchange, routing_key)
    ]
    headers = options["headers"]
    resolved = {name: options.get(name) for name in RESOLVED}
    resolved |= {name: headers.get(name) for name in ("eta", "expires")}
    limits = headers.get("timelimit") or (None, None)
    resolved |= zip(("time_limit", "soft_time_limit"), limits, strict=True)
    return Route(
        exchange,
        routing_key,
        queues[0] if queues else "" if exchange else routing_key,
        {name: value for name, value in resolved.items() if value is not None},
    )


def header_of(upload: Upload) -> dict[str, Any]:
    """Return the header `watchman` of an upload's task, without fields that are empty."""
    header = {
        "id": upload.id,
        "path": upload.path,
        "original": upload.original,
        "size": upload.state.size,
        # By it a worker knows a file that was sorted away before its task is delivered again.
        "inode": upload.state.inode,
        "source": str(upload.source),
        "user": upload.user,
        "client": upload.client,
        "protocol": upload.protocol,
        "alarm_of": upload.alarm_of,
    }
    return {name: value for name, value in header.items() if value != ""}
