"""The tails: each running `watchman tail`, and the steps that it was not sent yet."""

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

#: Most steps that wait for one tail. It misses the steps beyond these.
WAITING = 1_000

#: Most tails at the same time, because each step is sent to all of them.
MOST = 16

#: The event that a tail is sent first, and the event in the place of steps that it has missed.
FOLLOWING, MISSED = "following", "missed"

Rows = Generator[Mapping[str, Any], None, None]


class Tail:
    """The steps that one `watchman tail` was not sent yet. No thread waits for the command."""

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
        """Take a step, if the command asked for it. Called in the thread that has made the step."""
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
        """Return the steps since the last call, in order, and how many were missed."""
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
    """Yield each step that the fields select, without an end. Yield LATER if there is none now.

    Raises WatchmanError for a watch or a task that is not in the INI file.
    """
    watch, task = fields.get("watch"), fields.get("task")
    _insist("watch", watch, list(settings.watches))
    _insist("task", task, [one.name for one in settings.tasks])
    if len(steps.lookers) >= MOST:
        raise WatchmanError(f"{MOST} others run watchman tail already")
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
