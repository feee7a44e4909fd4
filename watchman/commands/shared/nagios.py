"""The output of monitoring plugins: https://www.monitoring-plugins.org/doc/guidelines.html."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from watchman.errors import SocketUnavailable, WatchmanError
from watchman.uploads.text import printable

#: Exit codes.
OK, WARNING, CRITICAL, UNKNOWN = range(4)

NAMES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")

#: Characters of the text. Programs that show it would cut a longer one at any place.
LIMIT = 1_000


def tell(found: Mapping[str, Any]) -> int:
    """Print the line for what `watchman status` has found, and return the exit code."""
    paused = [f"{pause['name']} is paused" for pause in found.get("paused", ())]
    doubts = [*paused, *found.get("warnings", ())]
    code = OK if found["healthy"] else CRITICAL
    if doubts and code == OK:
        code = WARNING
    told = [*found["problems"], *doubts] or ["healthy"]
    return _say(code, "; ".join(told), " ".join(_values(found)))


def guarded(ask: Callable[[], int]) -> int:
    """Call `ask`; if it fails, print that as a plugin does. No daemon is CRITICAL."""
    try:
        return ask()
    except SocketUnavailable as error:
        is_barred = isinstance(error.__cause__, PermissionError)
        return _say(UNKNOWN if is_barred else CRITICAL, str(error))
    except (WatchmanError, OSError) as error:
        return _say(UNKNOWN, str(error))


def _say(code: int, text: str, values: str = "") -> int:
    # What follows a `|` is performance data.
    text = printable(text).replace("|", "/")
    text = text if len(text) <= LIMIT else f"{text[: LIMIT - 3]}..."
    print(f"WATCHMAN {NAMES[code]} - {text}{' | ' if values else ''}{values}")
    return code


def _values(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield performance data: 'label'=value[unit];[warn];[crit];[min]. The unit c is a counter."""
    for state, number in found["uploads"].items():
        yield f"{state}={number}{'c' if state == 'done' else ''};;;0"
    oldest = found.get("oldest_waiting")
    age = 0 if oldest is None else max(0, int(time.time() - oldest))
    yield f"oldest_waiting={age}s;;;0"
