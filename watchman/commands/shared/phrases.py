"""Ages, times and numbers, as text for people."""

import time
from collections.abc import Iterable, Mapping
from typing import Any


def age(seconds: float) -> str:
    """Return a duration in its largest unit, as `3m`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def ago(epoch: float | None) -> str:
    return "-" if epoch is None else age(time.time() - epoch)


def before(epoch: float | None) -> str:
    return "never" if epoch is None else f"{ago(epoch)} ago"


def until(epoch: float | None) -> str:
    return "-" if epoch is None else age(epoch - time.time())


def clock(epoch: float) -> str:
    """Return the local time, as the log has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def count(number: int, one: str, more: str = "") -> str:
    """Return `1 file` or `2,000 files`; `more` is the plural if it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def programs(of_file: Iterable[Mapping[str, Any]]) -> str:
    """Return the names of the programs that have a file open, see `writers`."""
    return ", ".join(f"{one['program']} (pid {one['pid']}, {one['user']})" for one in of_file)
