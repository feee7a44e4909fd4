"""What a terminal shows at night: aligned columns, ages, times."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from watchman.uploads.text import printable

#: By each column's header: the field of a row that it shows, or what makes its text of the row.
Columns = Mapping[str, str | Callable[[Mapping[str, Any]], Any]]


def table(columns: Columns, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of aligned columns, the last as wide as it comes; numbers to the right."""
    shown = [
        [_cell(row.get(what) if isinstance(what, str) else what(row)) for what in columns.values()]
        for row in rows
    ]
    aligned = []
    for column in zip(columns, *shown, strict=True):
        width = max(map(len, column))
        align = str.rjust if any(map(str.isdecimal, column)) else str.ljust
        aligned.append([align(cell, width) for cell in column])
    return ["  ".join(line).rstrip() for line in zip(*aligned, strict=True)]


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def age(seconds: float) -> str:
    """A duration by its largest unit, as `3m`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def ago(epoch: float | None) -> str:
    return "-" if epoch is None else age(time.time() - epoch)


def until(epoch: float | None) -> str:
    return "-" if epoch is None else age(epoch - time.time())


def clock(epoch: float) -> str:
    """Local time, as the log has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def count(number: int, one: str, more: str = "") -> str:
    """`1 file`, `2 files`; `more` where that is no plain s."""
    return f"{number} {one if number == 1 else more or one + 's'}"
