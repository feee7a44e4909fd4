"""Rows of figures, of both sides: measured in turn, kept as JSON, printed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TypeVar

from tests.servers.brokers import ROOT

#: How often each side is measured; the median counts.
ROUNDS = int(os.environ.get("ROUNDS") or 5)

#: Where the figures of each round are kept, a file for each benchmark.
KEPT = ROOT / "build/bench"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of watchman and of the others, in each round.

    `least` and `aim` are about how many times the best of those that are `against` ours is, or
    about ours itself where there are none. More is better where the aim is above.
    """

    what: str
    unit: str
    ours: list[float]
    others: dict[str, list[float]] = field(default_factory=dict)
    least: float | None = None
    aim: float | None = None
    against: list[str] = field(default_factory=list)

    @property
    def more_is_better(self) -> bool:
        return self.least is not None and self.aim is not None and self.aim > self.least

    @property
    def best(self) -> str:
        """Whom ours is compared with; nobody where it is not."""
        best = max if self.more_is_better else min
        return best(self.against, key=lambda name: median(self.others[name]), default="")

    @property
    def reached(self) -> float:
        """What `least` and `aim` are about."""
        ours = median(self.ours)
        return ours / median(self.others[self.best]) if self.best else ours

    @property
    def verdict(self) -> str:
        if self.least is None or self.aim is None:
            return ""
        sign = 1 if self.more_is_better else -1
        if sign * self.reached >= sign * self.aim:
            return "aim"
        return "least" if sign * self.reached >= sign * self.least else "missed"

    def __str__(self) -> str:
        others = ", ".join(f"{name} {figure(median(all_))}" for name, all_ in self.others.items())
        line = f"{self.what}: {figure(median(self.ours))} {self.unit}"
        if others:
            line += f" ({others})"
        if self.best:
            line += f" = {self.reached:.2f} x {self.best}"
        if self.verdict:
            line += f"; at least {self.least:g}, aim {self.aim:g}: {self.verdict}"
        return line


def figure(value: float) -> str:
    """Three digits, and no more zeros than it has."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def in_turn(sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Measure each side once a round, so that what else the machine does meets all of them."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, measure in sides.items():
            found[name].append(measure())
    return found


def columns(found: Mapping[str, Sequence[tuple[float, ...]]]) -> list[dict[str, list[float]]]:
    """Of sides that measure several figures at once: each of these, by side."""
    width = {len(figures) for rounds in found.values() for figures in rounds}.pop()
    return [{name: [one[n] for one in all_] for name, all_ in found.items()} for n in range(width)]


def keep(benchmark: str, rows: Sequence[Row]) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(row) for row in rows], indent=1)
    (KEPT / f"{benchmark}.json").write_text(text + "\n")


def kept(benchmark: str) -> Iterator[Row]:
    """The rows of its latest run, if there was any."""
    path = KEPT / f"{benchmark}.json"
    if path.exists():
        yield from (Row(**row) for row in json.loads(path.read_text()))
