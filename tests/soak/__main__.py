"""Kill the daemon for some minutes, and print a table: faults, uploads, lost, repeated, half.

Ends with 1 if an upload was lost or half, a repeat had a second id, anything was left behind, or
too much was repeated under the load that goes with the random kills.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.brokers import RedisServer
from tests.support.crashes import (
    REPEATED,
    WAYS,
    Findings,
    Load,
    Moment,
    Place,
    Point,
    day,
    kill_at_random,
)
from tests.support.nursery import Nursery

#: Kills in a place until all is looked at and another one begins.
ROUND = 25

#: Uploads a second and kind while the daemon is killed at random, and seconds that it lives at
#: most: as much as it gets done, with some to spare.
RATE = 20.0
LONGEST = 3.0

#: Of the time, what the random kills have at least: the rest goes to the calls, one by one.
AT_RANDOM = 0.4

#: Seconds between two lines that say how far it is.
PROGRESS = 15.0

MOMENTS = {"work": "at each call of three uploads", "start": "of a start", "stop": "of a stop"}


@dataclass
class Row:
    """One scenario of the table."""

    name: str
    at_random: bool
    faults: int = 0
    missed: int = 0
    uploads: int = 0
    repeated: int = 0
    wrong: dict[str, int] = field(default_factory=dict)

    def add(self, findings: Findings, faults: int, missed: int = 0) -> None:
        self.faults += faults
        self.missed += missed
        self.uploads += findings.uploads
        self.repeated += findings.repeated
        for what, paths in findings.wrong.items():
            self.wrong[what] = self.wrong.get(what, 0) + len(paths)

    def cells(self) -> list[str]:
        other = sum(n for what, n in self.wrong.items() if what not in ("lost", "half"))
        by_kill = f"{self.repeated / self.faults:.1f}" if self.faults else "-"
        counts = (self.faults, self.missed, self.uploads, self.wrong.get("lost", 0), self.repeated)
        return [
            self.name,
            *map(str, counts),
            by_kill,
            str(self.wrong.get("half", 0)),
            str(other),
        ]


HEADER = ["scenario", "faults", "missed", "uploads", "lost", "repeated", "by kill", "half", "other"]


class Soak:
    """All scenarios, some at once, until the time is over."""

    def __init__(self, directory: Path, elsewhere: Path, minutes: float) -> None:
        self._directory = directory
        self._elsewhere = elsewhere
        self._began = time.monotonic()
        self._end = self._began + 60 * minutes
        self._said = self._began
        #: Guards the rows, and what is printed.
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self.rows: dict[str, Row] = {}
        #: Places that never came to be looked at.
        self.failures = 0
        self._nursery = Nursery()
        self._redis = RedisServer(directory / "redis", durable=True)

    def run(self) -> None:
        workers = os.cpu_count() or 1
        with self._nursery, self._redis, ThreadPoolExecutor(2 * workers) as pool:
            points = self._end - AT_RANDOM * (self._end - self._began)
            # Most of the time they wait.
            self._all(pool, 2 * workers, self._points(), until=points)
            self._all(pool, workers, self._rounds(), until=self._end)

    def _all(
        self,
        pool: ThreadPoolExecutor,
        workers: int,
        works: Iterator[Callable[[], None]],
        until: float,
    ) -> None:
        """Have the workers take work, one after the other, for as long as there is time."""

        def take() -> None:
            while time.monotonic() < until:
                with self._lock:
                    work = next(works, None)
                if work is None:
                    return
                try:
                    work()
                except Exception:
                    # Said, and the rest goes on.
                    self.failures += 1
                    self._say(traceback.format_exc(limit=-2)[-2000:])

        for future in [pool.submit(take) for _ in range(workers)]:
            future.result()

    def _place(self, way: str, name: str, **options: object) -> Place:
        directory = self._directory / f"{re.sub(r'[ ,]+', '-', name)}-{next(self._numbers)}"
        return Place(self._nursery, directory, way, elsewhere=self._elsewhere, **options)

    # Every call of the short scenarios.

    def _points(self) -> Iterator[Callable[[], None]]:
        found: list[tuple[Moment, str, Point]] = []
        for what, way in itertools.product(MOMENTS, WAYS):
            moment = Moment(what)
            places = [self._place(way, f"counted {what}") for _ in range(3)]
            found += [(moment, way, point) for point in moment.points(places)]
            for place in places:
                place.remove()
            self._row(_name_of(moment, way), at_random=False)
        self._say(f"{len(found)} calls to be killed at, one by one.")
        # Mixed, so that little time sees something of all.
        random.Random(day()).shuffle(found)
        for one in found:
            yield lambda one=one: self._kill_at(*one)

    def _kill_at(self, moment: Moment, way: str, point: Point) -> None:
        name = _name_of(moment, way)
        place = self._place(way, name)
        hit, findings = Moment(moment.what).kill(place, point)
        self._count(name, place, findings, int(hit), int(not hit), f"killed at {point}")

    # At random, under load.

    def _rounds(self) -> Iterator[Callable[[], None]]:
        for number in itertools.count():
            for way in WAYS:
                for server in (None, self._redis):
                    name = f"at random, {way}, {'Redis' if server else 'embedded'}"
                    self._row(name, at_random=True)
                    yield lambda n=number, w=way, s=server, name=name: self._round(n, w, s, name)

    def _round(self, number: int, way: str, server: RedisServer | None, name: str) -> None:
        rng = random.Random(f"{day()} {number} {name}")
        # Every other one with segments and ledgers so small that they are always on the move.
        small = number % 2
        place = self._place(way, name, server=server, segment=small and 16_384, delta=small and 100)
        alive = kills = 0
        with Load(place, rng, rate=RATE):
            while kills < ROUND and time.monotonic() < self._end:
                kills += 1
                alive += kill_at_random(place, rng, LONGEST)
        self._count(name, place, place.recover(), alive, kills - alive, f"round {number}")

    # What came of it.

    def _row(self, name: str, *, at_random: bool) -> Row:
        return self.rows.setdefault(name, Row(name, at_random))

    def _count(
        self, name: str, place: Place, findings: Findings, faults: int, missed: int, what: str
    ) -> None:
        with self._lock:
            row = self.rows[name]
            row.add(findings, faults, missed)
            if findings.wrong:
                self._say(f"{name}, {what}, in {place.directory}: {findings.wrong}")
            now = time.monotonic()
            if now - self._said >= PROGRESS:
                self._said = now
                self._say(
                    f"{sum(r.faults for r in self.rows.values())} faults, "
                    f"{sum(r.uploads for r in self.rows.values())} uploads, "
                    f"{sum(r.repeated for r in self.rows.values())} repeated, "
                    f"{sum(sum(r.wrong.values()) for r in self.rows.values())} wrong."
                )
        if findings.wrong:
            place.daemon.kill()  # and left to be looked at
        else:
            place.remove()

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", flush=True)

    def table(self) -> str:
        rows = [HEADER, *(row.cells() for row in self.rows.values() if row.faults)]
        total = Row("all", at_random=False)
        for row in self.rows.values():
            total.faults += row.faults
            total.missed += row.missed
            total.uploads += row.uploads
            total.repeated += row.repeated
            for what, count in row.wrong.items():
                total.wrong[what] = total.wrong.get(what, 0) + count
        rows.append(total.cells())
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )

    def is_well(self) -> bool:
        rows = [row for row in self.rows.values() if row.at_random]
        uploads, kills, repeated = (
            sum(getattr(row, name) for row in rows) for name in ("uploads", "faults", "repeated")
        )
        print(f"Repeated: {repeated / max(kills, 1):.1f} by a kill; {REPEATED} may be.")
        wrong = any(row.wrong for row in self.rows.values())
        print(f"Places that could not be looked at: {self.failures}.")
        return uploads > 0 and repeated <= REPEATED * kills and not wrong and not self.failures


def _name_of(moment: Moment, way: str) -> str:
    return f"{MOMENTS[moment.what]}, {way}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long, about")
    minutes = parser.parse_args().minutes
    print(f"CRASH_DAY={day()}")
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    with contextlib.ExitStack() as stack:
        # A tmpfs that everyone has: another filesystem than that of the temporary directory.
        elsewhere = Path(tempfile.mkdtemp(prefix="soak-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, elsewhere, ignore_errors=True)
        soak = Soak(directory, elsewhere, minutes)
        try:
            soak.run()
        finally:
            print(soak.table())
        if not soak.is_well():
            return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
