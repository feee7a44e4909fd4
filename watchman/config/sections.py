"""Every section and option of the INI file, one line for each option.

A new option takes a line here and a field in `settings`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from watchman.config import celery_file, celery_settings, options
from watchman.config.locations import DEFAULT_SOCKET


@dataclass(frozen=True, slots=True)
class Option:
    """How an option's text is read. If `default` is None, the one in `settings` counts.

    The reader of a `relative` option also gets the directory of the INI file. The value of an
    option with `for_` becomes the value of the option that `for_` names; an INI file may set only
    one of the two.
    """

    read: Callable[..., Any]
    default: Any = None
    required: bool = False
    relative: bool = False
    for_: str = ""


SECTIONS: dict[str, dict[str, Option]] = {
    "watchman": {
        "spool": Option(options.path, required=True, relative=True),
        "socket": Option(options.socket_path, DEFAULT_SOCKET, relative=True),
        "admins": Option(options.words, ()),
        "log_level": Option(
            options.one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), "INFO"
        ),
        "log_file": Option(options.path_or("stderr"), "", relative=True),
        "log_format": Option(options.one_of("text", "json"), "text"),
        "drain": Option(options.duration, 10.0),
        "history": Option(options.duration, 7 * 86400.0),
        "keep_failed": Option(options.duration, 30 * 86400.0),
        "on_failed": Option(options.on_failed),
        "metrics": Option(options.path_or("off"), "", relative=True),
    },
    "proftpd": {
        "transfer_log": Option(options.paths, relative=True),
        "token": Option(celery_settings.secret),
        "token_file": Option(celery_settings.token_file, relative=True, for_="token"),
    },
    "celery": {
        "config": Option(celery_file.load, relative=True),
    },
    "broker": {
        "url": Option(celery_settings.broker_url, required=True, relative=True),
        "url_file": Option(celery_settings.url_file, relative=True, for_="url"),
        "config": Option(celery_file.load, relative=True),
        "declare": Option(options.boolean, True),
    },
    "watch": {
        "path": Option(options.path, required=True, relative=True),
        "rec": Option(options.boolean),
        "auto_add": Option(options.boolean),
        "proftpd": Option(options.boolean),
        "confirm": Option(options.duration),
        "unconfirmed": Option(options.one_of("accept", "hold")),
        "settle": Option(options.duration),
        "exclude": Option(options.excludes),
        "exclude_defaults": Option(options.boolean),
        "catch_up": Option(options.boolean),
        "existing": Option(options.boolean),
        "rescan": Option(options.duration),
        "mounted": Option(options.boolean),
    },
    "move": {
        "source": Option(options.path, required=True, relative=True),
        "destination": Option(options.path, required=True, relative=True),
        "unique": Option(options.one_of("collision", "always")),
        "folders": Option(options.folders),
        "mounted": Option(options.boolean),
        "mode": Option(options.mode),
        "directory_mode": Option(options.mode),
        "owner": Option(options.user),
        "group": Option(options.group),
    },
    "task": {
        "pattern": Option(options.patterns, required=True),
        "ignore_case": Option(options.boolean),
        "broker": Option(options.word, required=True),
        "task": Option(options.word, required=True),
        "queue": Option(options.text),
        "exchange": Option(options.text),
        "routing_key": Option(options.text),
        "priority": Option(options.integer(0, 255)),
        "expires": Option(options.positive_duration),
        "countdown": Option(options.duration),
        "time_limit": Option(options.positive_duration),
        "soft_time_limit": Option(options.positive_duration),
        "args": Option(options.arguments_of(list, 'a JSON array, as ["{path}"]')),
        "kwargs": Option(options.arguments_of(dict, 'a JSON object, as {"source": "ftp"}')),
    },
}

#: Sections that exist only once, without a name. All others are `[kind:NAME]`.
SINGLE = frozenset({"watchman", "proftpd", "celery"})

#: Sections that take every Celery setting beside their own options.
_WITH_CELERY = frozenset({"celery", "broker"})


def lookup(kind: str, name: str) -> Option:
    """Return the option `name` of `[kind:...]`. Raises ValueError, with a similar name if any."""
    if name in SECTIONS[kind]:
        return SECTIONS[kind][name]
    known = list(SECTIONS[kind])
    if kind in _WITH_CELERY:
        if read := celery_settings.reader(name):
            return Option(read)
        hint = options.close_to(name, [*known, *celery_settings.types()])
        raise ValueError(f"neither an option nor a setting of Celery's{hint}")
    hint = options.close_to(name, known) or f"; known are {', '.join(known)}"
    raise ValueError(f"unknown option{hint}")
