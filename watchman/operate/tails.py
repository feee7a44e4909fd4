"""The tails: who looks on by `watchman tail`, and what of it each has yet to be told."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping
from typing import Any

from watchman.config.rules import compiled
from watchman.config.settings import Settings
from watchman.errors import WatchmanError
from watchman.sinks.steps import Origin, Step, Steps
from watchman.sources.socket.listener import LATER

#: Steps that wait for one who looks on. What comes beyond them, he misses.
WAITING = 1_000

#: Who may look on at the same time: each step is shown to all.
MOST = 16

#: What one who looks on is told first, and where he has missed steps.
FOLLOWING, MISSED = "following", "missed"

Rows = Generator[Mapping[str, Any], None, None]


class Tail:
    """The steps that one who looks on has yet to be told. Nobody waits for him."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        pattern = fields.get("pattern")
        self._pattern: re.Pattern[str] | None = compiled(pattern) if pattern else None
        self._watch, self._task = fields.get("watch", ""), fields.get("task", "")
        self._user = fields.get("user", "")
        #: Guards what follows, for a moment each time.
        self._changing = threading.Lock()
        self._steps: deque[Step] = deque()
        self._missed = 0

    def look(self, step: Step) -> None:
        """See a step; called in the thread that has taken it."""
        if not self._wants(step):
            return
        with self._changing:
            if len(self._steps) < WAITING and not self._missed:
                self._steps.append(step)
            else:
                self._missed += 1

    def _wants(self, step: Step) -> bool:
        return (
            self._watch in ("", step.origin.watch)
            and self._task in ("", step.origin.task)
            and self._user in ("", step.user)
            and (self._pattern is None or any(map(self._pattern.match, (step.path, step.original))))
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return what was seen since this was called last, in order, and how much was missed."""
        with self._changing:
            steps, self._steps = self._steps, deque()
            missed, self._missed = self._missed, 0
        rows = [_row(step) for step in steps]
        if missed:
            rows.append({"event": MISSED, "at": time.time(), "steps": missed})
        return rows


def _row(step: Step) -> dict[str, Any]:
    values = step._asdict()
    origin: Origin = values.pop("origin")
    return values | origin._asdict()


def follow(steps: Steps, settings: Settings, fields: Mapping[str, str]) -> Rows:
    """Yield each step that the fields select, for as long as it is asked; LATER where none came.

    Raises WatchmanError for a watch or a task that is not in the INI file.
    """
    watch, task = fields.get("watch"), fields.get("task")
    _insist("watch", watch, list(settings.watches))
    _insist("task", task, [one.name for one in settings.tasks])
    if len(steps.lookers) >= MOST:
        raise WatchmanError(f"{MOST} others look on already")
    tail = Tail(fields)
    steps.look_on(tail.look)
    try:
        yield {"event": FOLLOWING, "at": time.time()}
        while True:
            yield from tail.rows()
            yield LATER
    finally:
        steps.look_away(tail.look)


def _insist(kind: str, name: str | None, known: list[str]) -> None:
    if name and name not in known:
        raise WatchmanError(f"no {kind} is called {name}; there are: {', '.join(known) or 'none'}")
