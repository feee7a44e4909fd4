"""Reads the options that the INI file has for Celery and kombu: brokers' urls, and settings."""

import os
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import parse_url

from watchman.config import options, trusted

#: Settings that say where the broker is. They are not used, because `[broker:NAME]` says it.
_PLACES = frozenset(
    "broker_" + name
    for name in (
        *("url", "read_url", "write_url", "transport"),
        *("host", "port", "user", "password", "vhost"),
    )
)

_JSON_OBJECT = options.json_of(dict, 'a JSON object, as {"key": "value"}')
_JSON_ARRAY = options.json_of(list, 'a JSON array, as ["one", "two"]')


def _list(value: str) -> list[Any]:
    return list(_JSON_ARRAY(value) if value.startswith("[") else options.words(value))


def _json_or_text(value: str) -> Any:
    return (
        options.json_of(object, "JSON")(value) if value[:1] in ("{", "[") else options.text(value)
    )


def _boolean_or_object(value: str) -> Any:
    return _JSON_OBJECT(value) if value.startswith("{") else options.boolean(value)


def _delivery_mode(value: str) -> int:
    modes = {"1": 1, "transient": 1, "2": 2, "persistent": 2}
    return modes[options.one_of(*modes)(value)]


#: The reader for each type that Celery gives an option. Other types are read as text.
_BY_TYPE: dict[Any, Callable[[str], Any]] = {
    "bool": options.boolean,
    "int": options.integer(),
    int: options.integer(),
    "float": options.number,
    "dict": _JSON_OBJECT,
    "list": _list,
    "tuple": _list,
    "any": _json_or_text,
    "bytes": str.encode,
}

#: The reader for options whose type in Celery is not what Celery makes of the value.
_BY_NAME: dict[str, Callable[[str], Any]] = {
    "broker_use_ssl": _boolean_or_object,
    "task_default_delivery_mode": _delivery_mode,
    "task_default_priority": options.integer(0, 255),
}


@cache
def _defaults() -> Any:
    # Imported here, because it takes a third of a second, and most commands do not need it.
    from celery.app import defaults

    return defaults


@cache
def types() -> dict[str, Any]:
    """Return Celery's type of each setting by name, without those that say where the broker is."""
    known = _defaults().flatten(_defaults().NAMESPACES)
    return {name: option.type for name, option in known if name not in _PLACES}


@cache
def spellings() -> tuple[str, ...]:
    """Return all names of Celery's settings in capitals: old, present, and with CELERY_ before."""
    current = [name.upper() for name in types()]
    prefixed = [f"CELERY_{name}" for name in current]
    return (*_defaults()._TO_NEW_KEY, *current, *prefixed)


def reader(name: str) -> Callable[[str], Any] | None:
    """Return the reader for Celery's setting `name`, None if Celery has no such setting.

    Raises ValueError for a name that Celery knows but that does not belong in the INI file.
    """
    if name in types():
        return _BY_NAME.get(name) or _BY_TYPE.get(types()[name], options.text)
    current = current_name(name)
    if current in _PLACES:
        raise ValueError("the broker is named by url in [broker:NAME]")
    if current:
        raise ValueError(f"Celery's old name; write {current}")
    return None


def broker_url(value: str, directory: str) -> str:
    """A url for kombu, or several with `;` between, `${NAME}` taken from the environment."""
    return _broker_urls(_with_environment(options.text(value)), directory)


def secret(value: str) -> str:
    """The first field of each line of the transfer log, `${NAME}` taken from the environment."""
    return _token(_with_environment(options.word(value)))


def url_file(value: str, directory: str) -> str:
    """The path of a file that holds what `url` takes, `${NAME}` taken from the environment.

    `${NAME}` may stand in the path. In the file it would be a part of the password.
    """
    return _broker_urls(options.text(_content(value, directory)), directory)


def token_file(value: str, directory: str) -> str:
    """The path of a file that holds the token, `${NAME}` taken from the environment."""
    return _token(_content(value, directory))


def _content(value: str, directory: str) -> str:
    """Return the content of a file with a secret, without the newline at its end.

    No error quotes the content.
    """
    file = options.path(_with_environment(options.text(value)), directory)
    try:
        return trusted.read_secret(file).decode().rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error


def _token(token: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._~+=-]{1,64}", token):
        # In LogFormat a quote or a percent sign has a meaning of its own.
        what = "1 to 64 letters, digits and . _ ~ + = - are allowed"
        raise ValueError(f"{what}, because ProFTPD writes these unchanged")
    return token


def _broker_urls(value: str, directory: str) -> str:
    return ";".join(_broker_url(part.strip(), directory) for part in value.split(";"))


def _broker_url(value: str, directory: str) -> str:
    scheme, separator, rest = value.partition("://")
    # Text that does not look like a scheme may be part of a password, so no message quotes it.
    if not separator or not re.fullmatch(r"[\w+.-]*", scheme):
        raise ValueError("give a url, as amqp://user:password@host:5672/vhost or redis://host/0")
    # kombu's transport comes before the plus, as in sqla+postgresql://.
    transport = scheme.lower().partition("+")[0]
    if transport not in TRANSPORT_ALIASES:
        hint = options.close_to(transport, TRANSPORT_ALIASES)
        raise ValueError(
            f"kombu has no transport {transport}{hint or '; amqp and redis are two of them'}"
        )
    if transport == "memory":
        raise ValueError("memory:// never leaves this process: no worker would see a task")
    if transport == "filesystem":
        return f"filesystem://{options.path(rest, directory)}"
    try:
        parse_url(f"{transport}://{rest}")
    except ValueError as error:  # Its text may quote the password.
        raise ValueError(
            "host and port cannot be read; percent-encode special characters in user and password"
        ) from error
    except KeyError as error:
        raise ValueError("ssl_cert_reqs is one of required, optional, none") from error
    except TypeError as error:
        raise ValueError("an option after ? repeats a part of the url before it") from error
    return f"{scheme}://{options.word(rest) if rest else ''}"


def _with_environment(value: str) -> str:
    names = re.findall(r"\$\{(.*?)(?:\}|$)", value)
    if missing := [name for name in names if name not in os.environ]:
        raise ValueError(f"not set in the environment: {', '.join(missing)}")
    return re.sub(r"\$\{(.*?)\}", lambda match: os.environ[match[1]], value)


def current_name(name: str) -> str | None:
    """Return the lowercase name of the setting that Celery takes `name` for, None if for none.

    `name` may be the setting's present name or its old one (CELERY_ROUTES, BROKER_URL), in upper or
    lower case. The present one may have the prefix CELERY_, which Django projects use.
    """
    lower, upper = name.lower(), name.upper()
    for candidate in (lower, _defaults()._TO_NEW_KEY.get(upper), lower.removeprefix("celery_")):
        if candidate in _defaults().SETTING_KEYS:
            return str(candidate)
    return None
