"""The readers of options: each turns an option's text in the INI file into a typed value.

A reader raises ValueError with a message that says what would be right. The first sentences of its
docstring say what it takes: the reference of the INI file (docs/) shows them to operators.
"""

import difflib
import grp
import json
import math
import os
import pwd
import re
from collections.abc import Callable, Iterable
from typing import Any

from watchman.config.rules import PLACEHOLDERS, faults
from watchman.config.settings import OnFailed

_TRUE = ("yes", "true", "on", "1")
_FALSE = ("no", "false", "off", "0")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

#: Longest duration in seconds. Dates that Celery computes with it, and timeouts of threads, would
#: overflow with a much longer one.
_LONGEST = 100 * 365 * 86400.0

#: Most bytes in a Unix socket's path, without the NUL at its end, see unix(7).
_SOCKET_PATH = 107

#: A comment after a value. configparser takes it as a part of the value.
_COMMENT = re.compile(r"\s[#;](?=\s|$)", re.MULTILINE)

#: An option, or a key in JSON, holds a secret if its name has one of these words.
_SECRET = "password|secret|token"


def close_to(name: str, known: Iterable[str]) -> str:
    """Return a hint for a mistyped `name`, "" if no known one is similar."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, 1, cutoff=0.7)
    return f"; did you mean {by_lower[found[0]]}?" if found else ""


def has_comment(value: str) -> bool:
    return bool(re.search(r"\s[#;]", value))


def holds_secret(option: str, text: str) -> bool:
    """Whether a value is or holds a secret, rather than the name of one in the environment."""
    if option.endswith("_file"):
        return False
    text = re.sub(r"\$\{\w{1,200}\}", "", text)
    for url in text.split(";"):
        user, at, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
        if at and user.partition(":")[2]:
            return True
    in_json = rf'"\w{{0,60}}({_SECRET})\w{{0,60}}"\s{{0,9}}:\s{{0,9}}"[^"]'
    return bool((text and re.search(_SECRET, option)) or re.search(in_json, text, re.IGNORECASE))


def shown(option: str, value: str) -> str:
    """Return a value for a message: on one line, not too long, without secrets."""
    if not value:
        return ""
    if (re.search(_SECRET, option) and not option.endswith("_file")) or (
        re.search("://|{", value) and re.search(_SECRET, value, re.IGNORECASE)
    ):
        return "***"
    value = " ".join(value.split())
    if "@" in value:
        user, _, host = value.rpartition("@")
        value = f"{user.partition(':')[0]}:***@{host}" if ":" in user else value
    return value if len(value) <= 80 else value[:77] + "..."


def text(value: str) -> str:
    """Text on one line."""
    if not value:
        raise ValueError("is empty")
    if "\n" in value:
        raise ValueError("give one line")
    if _COMMENT.search(value):
        raise ValueError("holds a comment; a comment goes on a line of its own")
    return value


def word(value: str) -> str:
    """A word without blanks."""
    if re.search(r"\s", text(value)):
        raise ValueError("holds a space; give one name")
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        for choice in choices:
            if value.lower() == choice.lower():
                return choice
        raise ValueError(f"give one of {', '.join(choices)}{close_to(value, choices)}")

    read.__doc__ = f"One of {', '.join(f'`{choice}`' for choice in choices)}."
    return read


def boolean(value: str) -> bool:
    """`yes` or `no`."""
    if value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError("give yes or no")


def integer(least: float = -math.inf, most: float = math.inf) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", value, re.ASCII) or not least <= int(value) <= most:
            bounds = f" from {least} to {most}" if math.isfinite(least) else ""
            raise ValueError(f"give a whole number{bounds}")
        return int(value)

    read.__doc__ = "A whole number."
    if math.isfinite(least):
        read.__doc__ = f"A whole number from {least} to {most}."
    return read


def number(value: str) -> float:
    """A number."""
    try:
        if not math.isnan(float(value)):
            return float(value)
    except ValueError:
        pass
    raise ValueError("give a number")


def duration(value: str) -> float:
    """A duration."""
    if not (match := _DURATION.fullmatch(value)):
        raise ValueError("not a duration; give seconds, or as in 90s, 15m, 2h, 7d")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > _LONGEST:
        raise ValueError("longer than 100 years")
    return seconds


def positive_duration(value: str) -> float:
    """A duration of more than 0."""
    if not (seconds := duration(value)):
        raise ValueError("must be more than 0")
    return seconds


def path(value: str, directory: str) -> str:
    """A path.

    It becomes absolute and normalized; a relative one is taken from `directory`.
    """
    if "\0" in text(value):
        raise ValueError("holds a NUL")
    if value.startswith("~"):
        raise ValueError("~ is not expanded; give the whole path")
    # normpath keeps two leading slashes (POSIX gives them a meaning that Linux does not).
    return re.sub("^//", "/", os.path.normpath(os.path.join(directory, value)))


def path_or(name: str) -> Callable[[str, str], str]:
    """Return a reader of a path. It reads `name`, which stands for none, as the empty string."""

    def read(value: str, directory: str) -> str:
        return "" if value == name else path(value, directory)

    read.__doc__ = f"A path, or `{name}`."
    return read


def on_failed(value: str) -> OnFailed | None:
    """A broker and a task, as in `main:ops.upload_failed`, or `none`."""
    if value == "none":
        return None
    broker, colon, task = word(value).partition(":")
    if not (broker and colon and task):
        raise ValueError("give BROKER:TASK, as in main:ops.upload_failed")
    return OnFailed(broker, task)


def socket_path(value: str, directory: str) -> str:
    """The path of a Unix socket."""
    whole = path(value, directory)
    if len(os.fsencode(whole)) > _SOCKET_PATH:
        raise ValueError(f"a socket's whole path has at most {_SOCKET_PATH} bytes: {whole}")
    return whole


def paths(value: str, directory: str) -> tuple[str, ...]:
    """Paths, one per line or with commas between."""
    found = (item.strip() for item in re.split(r"[,\n]", value))
    return tuple(path(item, directory) for item in found if item)


def words(value: str) -> tuple[str, ...]:
    """Words without blanks, one per line or with commas between."""
    return tuple(word(item.strip()) for item in re.split(r"[,\n]", value) if item.strip())


def folders(value: str) -> tuple[str, ...]:
    """Names of directories, one per line or with commas between."""
    names = words(value)
    for name in names:
        if "/" in name or name in (".", ".."):
            raise ValueError(f"{name} is a path; give names, as in accepted, rejected")
    return names


def mode(value: str) -> int:
    """Permissions in octal."""
    if not re.fullmatch("[0-7]{3,5}", value) or int(value, 8) > 0o7777:
        raise ValueError("give permissions in octal, as in 0640")
    return int(value, 8)


def user(value: str) -> int:
    """A user's name or number."""
    return _id(value, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group(value: str) -> int:
    """A group's name or number."""
    return _id(value, "group", lambda name: grp.getgrnam(name).gr_gid)


def _id(value: str, kind: str, look_up: Callable[[str], int]) -> int:
    if re.fullmatch(r"\d{1,9}", word(value), re.ASCII):
        return int(value)
    try:
        return look_up(value)
    except KeyError as error:
        raise ValueError(f"there is no {kind} {value}") from error


def _patterns(value: str) -> tuple[str, ...]:
    lines = tuple(line.strip() for line in value.split("\n") if line.strip())
    for line in lines:
        if _COMMENT.search(line):
            what = "holds a comment; a comment goes on a line of its own"
            raise ValueError(f"{what}; for a # in a name write [#]")
        if re.search(r",\s*[*/]", line):
            raise ValueError("patterns go one per line; for a comma in a name write [,]")
    return lines


def excludes(value: str) -> tuple[str, ...]:
    """Patterns for names, or for whole sub-paths, one per line.

    No pattern begins or ends with a slash.
    """
    lines = _patterns(value)
    for pattern in lines:
        if pattern.strip("/") != pattern:
            raise ValueError(
                f"{pattern} can never match: it is compared with names and with paths below the"
                " watch, and none of these begins or ends with a slash"
            )
    return lines


def patterns(value: str) -> tuple[str, ...]:
    """Patterns for the absolute path, one per line, at least one."""
    lines = _patterns(value)
    if not lines:
        raise ValueError("is empty; *.csv matches by name, * matches every file")
    for pattern in lines:
        if pattern[0] not in "/*?[":
            raise ValueError(
                f"{pattern} can never match: the whole path is matched, so write */{pattern}"
            )
    return lines


def json_of(kind: type, name: str) -> Callable[[str], Any]:
    def read(value: str) -> Any:
        try:
            parsed = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error}); give {name}") from error
        if not isinstance(parsed, kind):
            raise ValueError(f"give {name}")
        return parsed

    read.__doc__ = f"{name[:1].upper()}{name[1:]}."
    return read


def arguments_of(kind: type, name: str) -> Callable[[str], Any]:
    """Return a reader of JSON whose strings may hold placeholders."""
    read_json = json_of(kind, name)

    def read(value: str) -> Any:
        arguments = read_json(value)
        if problems := [_placeholder_problem(fault) for fault in faults(arguments)]:
            raise ValueError("; ".join(problems))
        return arguments

    read.__doc__ = f"{name[:1].upper()}{name[1:]}."
    return read


def _placeholder_problem(fault: str) -> str:
    if fault in ("{", "}"):
        return f"a lone {fault}; for a brace write {fault * 2}"
    name = fault[1:-1]
    hint = close_to(name, PLACEHOLDERS) or f"; known are {', '.join(PLACEHOLDERS)}"
    return f"unknown placeholder {fault}{hint} ({{{{ is a brace)"


def _no_constant(name: str) -> Any:
    # Only Python takes NaN and Infinity for JSON. Workers in other languages refuse the message.
    raise ValueError(f"{name} is not JSON")
