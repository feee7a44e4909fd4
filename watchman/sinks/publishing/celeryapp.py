"""Celery's side of one broker: an app of its own, and how it connects."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

# Loads its parts on first use, so commands that publish nothing stay quick.
import celery
from kombu.transport import TRANSPORT_ALIASES

from watchman.config.settings import BrokerSettings
from watchman.errors import ConfigError
from watchman.sinks.publishing import tls

#: Seconds to wait for a TCP connection, and for an answer on one that is open.
CONNECT_TIMEOUT = 3.0
ANSWER_TIMEOUT = 5.0

#: Schemes of the brokers that we tell how long to wait.
AMQP = ("amqp", "amqps", "pyamqp")
REDIS = ("redis", "rediss", "redis+socket", "sentinel")


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
