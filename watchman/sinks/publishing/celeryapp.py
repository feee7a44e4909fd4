"""The Celery app of one broker, and how it connects.

There is one app per broker, because kombu's global pools confuse two failover lists that begin with
the same host.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

# Celery loads its parts on first use, so this import costs commands that publish nothing little.
import celery
from kombu.transport import TRANSPORT_ALIASES

from watchman.config.settings import BrokerSettings
from watchman.errors import ConfigError
from watchman.sinks.publishing import tls

#: Seconds to wait for a TCP connection, and for an answer on an open one. Without them a Redis that
#: does not answer holds up a send for ever.
CONNECT_TIMEOUT = 3.0
ANSWER_TIMEOUT = 5.0

#: Schemes of brokers for which these timeouts are set.
AMQP = ("amqp", "amqps", "pyamqp")
REDIS = ("redis", "rediss", "redis+socket", "sentinel")


def make_app(broker: BrokerSettings) -> Any:
    """Return a new Celery app for one broker. Connects to nothing; raises ConfigError."""
    where = f"[broker:{broker.name}]"
    try:
        app = celery.Celery(
            "watchman", set_as_current=False, fixups=(), loader="celery.loaders.app:AppLoader"
        )
        app.conf.update({"broker_connection_timeout": CONNECT_TIMEOUT, **broker.celery})
        url, transport, options = _transport(broker)
        # The url is bound here, because CELERY_BROKER_URL in the environment would replace the one
        # in the app's settings.
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
    # Celery raises all kinds of exceptions for settings that it cannot use. Their text names them.
    except Exception as e:
        raise ConfigError([f"{where}: {type(e).__name__}: {e}"]) from e
    return app


def _missing(url: str, error: ImportError) -> str:
    """Return a message that says which package is missing, and how to install it."""
    scheme = url.partition(":")[0].partition("+")[0]
    module = TRANSPORT_ALIASES[scheme].partition(":")[0]
    # kombu names its extras after its transports.
    extra = module.rpartition(".")[2].lower()
    return (
        f"a Python package is not installed ({error}); for {scheme}: pip install 'kombu[{extra}]'"
    )


def _transport(broker: BrokerSettings) -> tuple[str, str | None, dict[str, Any]]:
    """Return url, transport and transport options with which kombu never waits for ever."""
    hosts = broker.url.count(";") + 1
    options: dict[str, Any] = {
        # Try each host once, without kombu's pauses, because the publisher backs off itself.
        # `connect_retries_timeout` must allow for all hosts. With less kombu never goes on to the
        # second host if the first one does not answer at all.
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
        # Raises ImportError if the package is missing. kombu would fail with another error, because
        # its transport uses the package while it is imported.
        importlib.import_module("redis")
        options |= {
            "socket_timeout": ANSWER_TIMEOUT,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_keepalive": True,
            "health_check_interval": 10,
        }
    options |= broker.celery.get("broker_transport_options") or {}
    if scheme in AMQP:
        # With this option kombu would wait for a confirmation in each publish. ConfirmingSender
        # waits once for many messages.
        options["confirm_publish"] = False
    return url, transport, options


def embedded_options(url: str) -> dict[str, str]:
    """Return the transport options with which a stock worker consumes from `filesystem://DIR`."""
    folder, control = embedded_folders(url)
    return {"data_folder_in": folder, "data_folder_out": folder, "control_folder": control}


def embedded_folders(url: str) -> tuple[str, str]:
    """Return the directories of `filesystem://DIR`: for messages, and inside it for bindings."""
    folder = url.removeprefix("filesystem://")
    return folder, os.path.join(folder, "control")
