"""What a task becomes: where it goes, and the message that Celery makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kombu.serialization import dumps

from watchman.errors import TaskRefused
from watchman.uploads.upload import Task, Upload

#: AMQP's short strings, among them names of exchanges and routing keys, hold so many bytes.
SHORT_STRING = 255

#: What else Celery resolves for a message, as `explain` shows it.
RESOLVED = ("priority", "expiration", "serializer", "compression", "delivery_mode")

#: Headers in which messages of one template differ, beside those that tell a time.
VARYING = ("id", "root_id", "argsrepr", "kwargsrepr", "watchman")


@dataclass(frozen=True, slots=True)
class Route:
    """Where messages go: equal for those that the broker treats alike."""

    exchange: str
    routing_key: str
    queue: str = field(default="", compare=False)
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        if not self.exchange:
            return f"queue {self.routing_key!r}"
        return f"exchange {self.exchange!r} with routing key {self.routing_key!r}"


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """What messages have in common, as Celery made it for the first; equal to itself alone.

    They differ in body, correlation id, the headers named in VARYING and in `moments`: headers that
    tell a time, as many seconds from when the message is made.
    """

    route: Route
    headers: Mapping[str, Any]
    options: Mapping[str, Any]
    #: What stands in the body beside the arguments.
    embedded: Mapping[str, Any]
    moments: Mapping[str, float]

    def shared(self) -> dict[str, Any]:
        """Return the headers that are the same in all its messages."""
        return {n: v for n, v in self.headers.items() if n not in (*VARYING, *self.moments)}

    def own(self, headers: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of a message's headers that are its own."""
        return {name: headers[name] for name in (*VARYING, *self.moments)}


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """A task ready for `kombu.Producer.publish(body, **options)`; nothing has been sent."""

    upload: Upload
    route: Route
    body: bytes
    options: Mapping[str, Any]
    template: Template | None = None


class _Recorder:
    """Stands where Celery expects a producer and keeps what it would have published."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.published: list[tuple[Any, dict[str, Any]]] = []

    def publish(self, body: Any, **options: Any) -> None:
        self.published.append((body, options))


class _NoResult:
    """Stands for the AsyncResult, whose mere construction imports the result backend."""

    def __init__(self, task_id: str) -> None:
        self.id = task_id


def compose(app: Any, upload: Upload) -> Message:
    """Make the message for an upload, routed by Celery. Raises TaskRefused; connects to nothing."""
    assert upload.task is not None
    try:
        body, options = record(app, upload.task, upload.id, header_of(upload))
        content_type, encoding, encoded = dumps(body, serializer=options["serializer"])
        if isinstance(encoded, str):
            encoded = encoded.encode(encoding)
        found = route_of(options)
    # Nothing has been sent yet, so no broker and no retry can change it.
    except Exception as e:
        raise TaskRefused(f"{type(e).__name__}: {e}") from e
    options |= {"content_type": content_type, "content_encoding": encoding}
    return Message(upload, found, encoded, options)


def route(app: Any, task: Task) -> Route:
    """Where a task would go, and how. Raises TaskRefused; connects to nothing."""
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
        # Or a result backend that is down would hang it.
        ignore_result=True,
        result_cls=_NoResult,
        add_to_parent=False,
        **task.options,
    )
    return recorder.published[0]


def route_of(options: Mapping[str, Any]) -> Route:
    """Return where what Celery would publish goes. Raises ValueError for names too long."""
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
    header = {
        "id": upload.id,
        "original": upload.original,
        "size": upload.state.size,
        "source": upload.source.value,
        "user": upload.user,
        "client": upload.client,
        "protocol": upload.protocol,
    }
    return {name: value for name, value in header.items() if value != ""}
