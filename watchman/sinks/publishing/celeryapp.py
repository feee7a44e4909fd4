"""Celery's side of one broker: its app, where a task goes, the message that it becomes."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Loads its parts on first use, so commands that publish nothing stay quick.
import celery
from kombu.serialization import dumps
from kombu.transport import TRANSPORT_ALIASES

from watchman.config.settings import BrokerSettings
from watchman.errors import ConfigError, TaskRefused
from watchman.sinks.publishing import tls
from watchman.uploads.upload import Task, Upload

#: Seconds to wait for a TCP connection, and for an answer on one that is open.
CONNECT_TIMEOUT = 3.0
ANSWER_TIMEOUT = 5.0

#: Schemes of the brokers that we tell how long to wait.
AMQP = ("amqp", "amqps", "pyamqp")
REDIS = ("redis", "rediss", "redis+socket", "sentinel")

#: AMQP's short strings, among them names of exchanges and routing keys, hold so many bytes.
SHORT_STRING = 255

#: What else Celery resolves for a message, as `explain` shows it.
RESOLVED = ("priority", "expiration", "serializer", "compression", "delivery_mode")


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


@dataclass(frozen=True, slots=True)
class Message:
    """A task ready for `kombu.Producer.publish(body, **options)`; nothing has been sent."""

    upload: Upload
    route: Route
    body: bytes
    options: Mapping[str, Any]


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


def make_app(broker: BrokerSettings) -> Any:
    """Return a Celery app of its own for one broker. Connects to nothing; raises ConfigError."""
    where = f"[broker:{broker.name}]"
    try:
        app = celery.Celery(
            "watchman", set_as_current=False, fixups=(), loader="celery.loaders.app:AppLoader"
        )
        app.conf.update({"broker_connection_timeout": CONNECT_TIMEOUT, **broker.celery})
        url, transport, options = _transport(broker)
        # Bound here, since CELERY_BROKER_URL in the environment beats what the app was told.
        app.connection_for_write = functools.partial(
            app.connection_for_write, url, transport=transport, transport_options=options
        )
        kind = app.connection_for_write().transport.driver_type
        app.conf.broker_use_ssl = tls.options(app.conf.broker_use_ssl, kind)
        _ = app.amqp.queues, app.amqp.router, app.amqp.send_task_message
    except ImportError as e:
        raise ConfigError([f"{where}: {_missing(broker.url, e)}"]) from e
    except ConfigError as e:
        raise ConfigError([f"{where} {problem}" for problem in e.problems]) from e
    # Whatever Celery makes of settings that it cannot use; it names them in the text.
    except Exception as e:
        raise ConfigError([f"{where}: {type(e).__name__}: {e}"]) from e
    return app


def _missing(url: str, error: ImportError) -> str:
    """Say which package a transport, or a setting, needs that is not there."""
    scheme = url.partition(":")[0].partition("+")[0]
    module = TRANSPORT_ALIASES[scheme].partition(":")[0]
    # kombu names its extras for its transports.
    extra = module.rpartition(".")[2].lower()
    return (
        f"a Python package is not installed ({error}); for {scheme}: pip install 'kombu[{extra}]'"
    )


def _transport(broker: BrokerSettings) -> tuple[str, str | None, dict[str, Any]]:
    """The url, transport and transport options that make kombu end every wait."""
    hosts = broker.url.count(";") + 1
    options: dict[str, Any] = {
        # One round over the hosts, without kombu's own pauses: backing off is the publisher's.
        # Without a time that allows for all of them, kombu never leaves a first host that is a
        # black hole.
        "max_retries": hosts - 1,
        "interval_start": 0,
        "connect_retries_timeout": hosts * (CONNECT_TIMEOUT + 1),
    }
    transport = None
    url = broker.url
    scheme = url.partition(":")[0]
    if scheme == "filesystem":
        transport = "watchman.sinks.publishing.filesystem:Transport"
        options |= embedded_options(url)
        url = "filesystem://"
    elif scheme in AMQP:
        options |= {"read_timeout": ANSWER_TIMEOUT, "write_timeout": ANSWER_TIMEOUT}
    elif scheme in REDIS:
        # kombu's transport trips over a missing package while it is imported.
        importlib.import_module("redis")
        options |= {
            "socket_timeout": ANSWER_TIMEOUT,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_keepalive": True,
            "health_check_interval": 10,
        }
    options |= broker.celery.get("broker_transport_options") or {}
    if scheme in AMQP:
        # Confirmations are awaited for many messages at once, not within each publish.
        options["confirm_publish"] = False
    return url, transport, options


def embedded_options(url: str) -> dict[str, str]:
    """The transport options with which a stock worker consumes from `filesystem://DIR`."""
    folder, control = embedded_folders(url)
    return {"data_folder_in": folder, "data_folder_out": folder, "control_folder": control}


def embedded_folders(url: str) -> tuple[str, str]:
    """The directories of `filesystem://DIR`: one for messages, and one in it for bindings."""
    folder = url.removeprefix("filesystem://")
    return folder, os.path.join(folder, "control")


def compose(app: Any, upload: Upload) -> Message:
    """Make the message for an upload, routed by Celery. Raises TaskRefused; connects to nothing."""
    assert upload.task is not None
    route, body, options = _record(app, upload.task, upload.id, _header(upload))
    return Message(upload, route, body, options)


def route(app: Any, task: Task) -> Route:
    """Where a task would go, and how. Raises TaskRefused; connects to nothing."""
    return _record(app, task, "", {})[0]


def _record(
    app: Any, task: Task, task_id: str, header: Mapping[str, Any]
) -> tuple[Route, bytes, Mapping[str, Any]]:
    recorder = _Recorder(app.connection_for_write())
    try:
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
        body, options = recorder.published[0]
        content_type, content_encoding, encoded = dumps(body, serializer=options["serializer"])
        found = _route(options)
    # Nothing has been sent yet, so no broker and no retry can change it.
    except Exception as e:
        raise TaskRefused(f"{type(e).__name__}: {e}") from e
    options |= {"content_type": content_type, "content_encoding": content_encoding}
    return found, encoded, options


def _route(options: Mapping[str, Any]) -> Route:
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


def _header(upload: Upload) -> dict[str, Any]:
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
