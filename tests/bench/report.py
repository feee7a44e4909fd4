"""What was kept of the latest runs, as tables for a terminal and README.rst, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tests.bench.loops import LOOPS
from tests.bench.rows import KEPT, Row, figure, kept

PICTURE = KEPT / "bench.svg"

#: Of the benchmarks burst and latency: the rows that have every loop, and how short they are named.
LOOP_ROWS = {
    "burst to Redis": "Redis files/s",
    "CPU, burst to Redis": "CPU us/file",
    "burst to RabbitMQ": "RabbitMQ files/s",
    "CPU, burst to RabbitMQ": "CPU us/file",
    "close to broker, median": "median ms",
    "close to broker, p99": "p99 ms",
}

#: Pictures beside one another: what is in each, by these rows, and what its bars are called.
PANELS = {
    "burst, files/s": {"burst to Redis": "Redis", "burst to RabbitMQ": "RabbitMQ"},
    "burst, CPU us/file": {"CPU, burst to Redis": "Redis", "CPU, burst to RabbitMQ": "RabbitMQ"},
    "closed to broker at 50 files/s, ms": {
        "close to broker, median": "median",
        "close to broker, p99": "p99",
    },
}

#: Shares of the room that each side has for its bars.
BARS = 0.8

#: Benchmarks with what is asked of watchman, and the one about costs that must not grow.
ASKED = "burst", "latency", "upload", "inside", "intake", "answers", "scale", "idle"
GROWTH = "growth"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A simple table of reStructuredText, whose first column has no empty cell."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rule = " ".join("=" * width for width in widths)
    text = (
        " ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *lines)
    )
    first, *others = text
    return "\n".join([rule, first, rule, *others, rule, ""])


def loop_rows() -> dict[str, Row]:
    """Those that were measured, by what they are about."""
    rows = {row.what: row for benchmark in ("burst", "latency") for row in kept(benchmark)}
    return {what: rows[what] for what in LOOP_ROWS if what in rows}


def loops() -> str:
    """watchman beside each loop."""
    rows = loop_rows()
    sides = ["watchman", *LOOPS, "sending alone"]
    lines = [[side, *(cell(row, side) for row in rows.values())] for side in sides]
    return table(["side", *(LOOP_ROWS[what] for what in rows)], lines)


def cell(row: Row, side: str) -> str:
    values = row.ours if side == "watchman" else row.others.get(side)
    return figure(median(values)) if values else ""


def asked(*, limits: bool) -> str:
    """What is asked of watchman; with the limits, and which of them are reached, or else without
    what the table of loops has already.
    """
    head, width = ["what", "watchman", "beside", "ratio", "at least", "aim", "reached"], 4
    lines = [
        [
            row.what,
            f"{figure(median(row.ours))} {row.unit}",
            f"{figure(median(row.others[row.best]))} {row.best}" if row.best else "",
            f"{row.reached:.2f}" if row.best else "",
            f"{row.least:g}",
            f"{row.aim:g}",
            row.verdict,
        ]
        for benchmark in ASKED
        for row in kept(benchmark)
        if row.verdict and (limits or row.what not in LOOP_ROWS)
    ]
    if not limits:
        head, lines = head[:width], [line[:width] for line in lines]
    return table(head, lines)


def growth() -> str:
    """What a file costs where there is little and where there is much."""
    lines = [
        [
            row.what,
            figure(median(row.ours)),
            f"{figure(median(row.others[row.best]))} with {row.best}",
            f"{row.reached:.2f}",
        ]
        for row in kept(GROWTH)
    ]
    return table(["what", "CPU us", "beside", "ratio"], lines)


def say(*, limits: bool = True) -> None:
    """Print all tables; without limits they are what README.rst has."""
    for text in (loops(), asked(limits=limits), growth()):
        print(f"\n{text}", end="")


def draw() -> None:
    """Draw watchman beside the loops as SVG, once they were measured."""
    if len(loop_rows()) < len(LOOP_ROWS):
        return
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "watchman", "font.size": 9}
    rows, sides = loop_rows(), ["watchman", *LOOPS]
    page = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, (title, bars) in zip(page.subplots(1, 3, sharey=True), PANELS.items(), strict=True):
        width = BARS / len(bars)
        for number, (what, label) in enumerate(bars.items()):
            row = rows[what]
            values = [median(row.others.get(side, row.ours)) for side in sides]
            places = [place + (number - 0.5) * width for place in range(len(sides))]
            axes.barh(places, values, width, label=label)
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=7)
        axes.set_yticks(range(len(sides)), sides)
        axes.spines[["top", "right"]].set_visible(False)
    page.axes[0].invert_yaxis()
    page.savefig(PICTURE, metadata={"Date": None})
    print(f"\nDrawn: {PICTURE}")
