"""Translates Celery's `broker_use_ssl` for the client libraries."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Mapping
from typing import Any

from watchman.errors import ConfigError

#: How the server's certificate is checked, by name, since JSON cannot hold Python's constants.
CERT_REQS = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
}


def options(given: Any, driver: str) -> Any:
    """Return `broker_use_ssl` with the option names of py-amqp or of redis-py.

    Celery's documentation has names with and without `ssl_`; both are accepted. Raises ConfigError
    for an option that the library does not have.
    """
    if driver not in ("amqp", "redis"):
        return given
    known = _known(driver)
    if not isinstance(given, Mapping):
        # kombu's Redis transport would not use TLS at all if it got True.
        return {"ssl_cert_reqs": ssl.CERT_REQUIRED} if given and driver == "redis" else given
    found = {}
    for name, value in given.items():
        spellings = (name, f"ssl_{name}", name.removeprefix("ssl_"))
        option = next((one for one in spellings if one in known), None)
        if option is None:
            raise ConfigError([f"broker_use_ssl: no option {name}; known are {', '.join(known)}"])
        if option.endswith("cert_reqs"):
            value = _cert_reqs(name, value)
        elif option.endswith("version") and isinstance(value, str):
            what = "JSON has no TLS versions; name one in a Celery settings file (config = FILE)"
            raise ConfigError([f"broker_use_ssl: {name} = {value}: {what}"])
        found[option] = value
    return found


def unreadable(options: Any) -> list[str]:
    """Return a line for each file named in `broker_use_ssl` that cannot be read.

    The libraries only say "No such file or directory", without its name.
    """
    problems = []
    for name, path in options.items() if isinstance(options, Mapping) else ():
        if name.endswith(("ca_certs", "certfile", "keyfile")) and path is not None:
            try:
                open(path, "rb").close()
            except OSError as e:
                problems.append(f"broker_use_ssl: {name} = {path}: {e.strerror}")
    return problems


def _known(driver: str) -> list[str]:
    if driver == "amqp":
        from amqp.transport import SSLTransport

        parameters = [*inspect.signature(SSLTransport._wrap_socket_sni).parameters, "context"]
        return [name for name in parameters if name not in ("self", "sock")]
    from redis import SSLConnection

    parameters = [*inspect.signature(SSLConnection.__init__).parameters]
    return [name for name in parameters if name.startswith("ssl_")]


def _cert_reqs(name: str, value: Any) -> ssl.VerifyMode:
    if isinstance(value, str) and (key := value.lower().removeprefix("cert_")) in CERT_REQS:
        return CERT_REQS[key]
    if value in CERT_REQS.values() and not isinstance(value, bool):
        return ssl.VerifyMode(value)
    what = f"give one of {', '.join(CERT_REQS)}"
    raise ConfigError([f"broker_use_ssl: {name} = {value}: {what}"])
