"""What a terminal shows at night: aligned columns, ages, times."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from watchman.uploads.text import printable


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of aligned columns, the last as wide as it comes; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [False] * len(header)
    for row in cells:
        right = [old or cell.isdecimal() for old, cell in zip(right, row, strict=True)]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in (list(header), *cells)
    ]


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def age(seconds: float) -> str:
    """A duration by its largest unit, as `3m`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def ago(epoch: float | None, now: float) -> str:
    return "-" if epoch is None else age(now - epoch)


def until(epoch: float | None, now: float) -> str:
    return "-" if epoch is None else age(epoch - now)


def clock(epoch: float) -> str:
    """Local time, as the log has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def count(number: int, one: str, more: str = "") -> str:
    """`1 file`, `2 files`; `more` where that is no plain s."""
    return f"{number} {one if number == 1 else more or one + 's'}"
