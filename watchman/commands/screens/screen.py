"""The parts of every screen: coloured and folded on a terminal, plain and in whole lines elsewhere.

Every text from outside goes through `text`, because it may be hostile: rich finds no markup in it,
and the terminal no command.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from watchman.uploads.text import printable

#: Columns if there is no terminal: no line is folded, so a search finds each path and id.
UNBOUNDED = 1 << 20

#: The columns of a table, by header: the field of a row to show, or what makes a text of the row.
Columns = Mapping[str, str | Callable[[Mapping[str, Any]], Any]]


def console() -> Console:
    """Return the console on standard output. $NO_COLOR makes it colourless, see no-color.org."""
    return Console(
        width=None if sys.stdout.isatty() else UNBOUNDED,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        markup=False,
        emoji=False,
        highlight=False,
    )


def show(*parts: RenderableType, on: Console | None = None) -> None:
    """Print parts of a screen below one another."""
    if on is None:
        on = console()
        on.size = on.size  # or rich would ask for the size again and again
    with on.capture() as drawn:
        on.print(Group(*parts))
    # rich fills up cells with blanks, which nobody wants to copy.
    print(*(line.rstrip() for line in drawn.get().split("\n")), sep="\n", end="", flush=True)


def text(value: object, style: str = "") -> Text:
    """Return a text from outside, safe to show. A line that is too long is folded, never cut."""
    return Text(printable(str(value)), style, overflow="fold")


def cell(value: object) -> Text:
    return text("-" if value is None or value == "" else value)


def table(columns: Columns, rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table whose last column takes the room that is left. Numbers go to the right."""
    shown = [
        [cell(row.get(what) if isinstance(what, str) else what(row)) for what in columns.values()]
        for row in rows
    ]
    drawn = _without_lines(show_header=True, header_style="bold")
    *_, last = columns
    for header, *column in zip(columns, *shown, strict=True):
        is_number = any(one.plain.replace(",", "").isdecimal() for one in column)
        drawn.add_column(header, justify="right" if is_number else "left", no_wrap=header != last)
    for row in shown:
        drawn.add_row(*row)
    return drawn


def named(columns: Columns, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of a JSON object's values, each with its key as `name`."""
    return table(columns, ({"name": name, **row} for name, row in rows.items()))


def details(pairs: Iterable[tuple[str, object]], *, width: int = 0) -> Table:
    """Return names with their values beside them. The names take at least `width` columns."""
    drawn = _without_lines(show_header=False)
    drawn.add_column(style="dim", min_width=width, no_wrap=True)
    drawn.add_column()
    for name, value in pairs:
        drawn.add_row(text(name), value if isinstance(value, Text) else text(value))
    return drawn


def aligned(cells: Sequence[Text], widths: Sequence[int]) -> Table:
    """Return one row of a table that comes row by row. Cells but the last have minimum widths."""
    drawn = _without_lines(show_header=False)
    for width in widths:
        drawn.add_column(min_width=width, no_wrap=True)
    drawn.add_row(*cells)
    return drawn


def item(value: object, *, style: str = "", mark: str = "-", mark_style: str = "") -> Table:
    """Return an item of a list. Its further lines begin below the text, not below the mark."""
    drawn = Table.grid(padding=(0, 1, 0, 0))
    drawn.add_row(Text(mark, mark_style), text(value, style))
    return drawn


def indented(part: RenderableType, columns: int = 2) -> Padding:
    return Padding(part, (0, 0, 0, columns), expand=False)


def _without_lines(**options: Any) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), **options)
