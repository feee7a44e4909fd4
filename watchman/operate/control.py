"""Answers the queries that commands send to the running daemon."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from watchman.errors import ConfigError, WatchmanError
from watchman.operate.history import tell
from watchman.operate.interventions import Interventions
from watchman.operate.overview import Health, status
from watchman.operate.parts import Parts
from watchman.operate.queue_groups import gather
from watchman.operate.queue_view import ORDER, QueueView, Selection, known_and_open
from watchman.operate.tails import follow
from watchman.sinks.moving.forbidden import LOOKING
from watchman.sinks.pauses import ALL, KINDS

logger = logging.getLogger(__name__)

#: Seconds after which the daemon looks again at its health, if nobody asks.
LOOK = 5.0

Rows = Iterable[Mapping[str, Any] | None]


class Control:
    """Answers queries, or hands them to the part that does. Runs in the listener's query thread."""

    def __init__(self, parts: Parts, *, reload: Callable[[], list[str]]) -> None:
        self._started = time.time()
        self._health = Health(self._started)
        self._parts = parts
        self._reload = reload
        queue_view = QueueView(parts.dispatcher.pipeline, journal=parts.journal, sinks=parts.sinks)
        self._queue_view = queue_view
        self._interventions = Interventions(
            queue_view, dispatcher=parts.dispatcher, hurry=parts.hurry
        )

    def look(self) -> None:
        """Note whether the daemon is healthy, because `status` says since when it is."""
        try:
            self.status()
        except Exception:
            logger.exception("Could not find out whether all is well.")

    def status(self) -> dict[str, Any]:
        """Return what `watchman status` shows. Any thread may call it."""
        return status(self._parts, self._queue_view, self._started, self._health)

    def query(self, event: str, fields: dict[str, str]) -> Rows:
        """Answer one query. Raises WatchmanError, now or while the caller iterates."""
        dispatcher = self._parts.dispatcher
        match event:
            case "status":
                return [self.status()]
            case "queue":
                selection = Selection.of(fields)
                rows = itertools.chain(
                    self._queue_view.rows(selection), self._noticed(fields, selection)
                )
                return _first(int(fields["limit"]), rows) if "limit" in fields else rows
            case "groups":
                selection = Selection.of(fields)
                return gather(self._queue_view, selection, self._noticed(fields, selection))
            case "tail":
                return follow(dispatcher.pipeline.steps, self._parts.settings, fields)
            case "explain":
                return tell(
                    fields.get("path", ""),
                    fields.get("id", ""),
                    journal=self._parts.journal,
                    queue_view=self._queue_view,
                    hold_queue=dispatcher.hold_queue,
                )
            case "retry":
                return self._intervene(self._interventions.retry, fields)
            case "drop":
                return self._intervene(self._interventions.drop, fields)
            case "rehearse":
                what = fields.pop("what")
                if what not in ("retry", "drop"):
                    raise WatchmanError(f"what can be rehearsed is retry or drop, not {what!r}")
                act = self._interventions.retry if what == "retry" else self._interventions.drop
                return self._intervene(partial(act, rehearsed=True), fields)
            case "pause":
                return self._pause(fields.get("name", ALL))
            case "resume":
                return self._resume(fields.get("name", ALL))
            case "reload":
                return [self._try_reload()]
        raise WatchmanError(f"unknown query {event!r}")

    def _noticed(self, fields: Mapping[str, str], selection: Selection) -> Iterator[dict[str, Any]]:
        """Yield rows for the selected files that are held, then for those in `open` that may become
        uploads.
        """
        try:
            unlisted = dict.fromkeys(map(str, json.loads(fields.get("open", "[]"))))
        except (TypeError, ValueError):
            raise WatchmanError("open is not a list of paths in JSON") from None
        dispatcher = self._parts.dispatcher
        for row in dispatcher.hold_queue.rows():
            unlisted.pop(row["path"], None)
            if selection.matches_row(row):
                yield row
        known = known_and_open(unlisted, dispatcher.rules)
        yield from filter(selection.matches_row, known)

    def _try_reload(self) -> dict[str, Any]:
        """Reload the INI file. Return what changed, or everything that is wrong with it.

        The result also has the moves for which the daemon lacks rights, unless a filesystem hangs.
        """
        try:
            changed = self._reload()
        except ConfigError as error:
            return {"problems": error.problems}
        found: list[str] = []
        with contextlib.suppress(OSError):
            if self._parts.forbidden is not None:
                found = self._parts.forbidden.result(LOOKING * 2)
        return {"changed": changed, "forbidden": found}

    def _intervene(
        self, act: Callable[[Mapping[str, str]], Rows], fields: Mapping[str, str]
    ) -> Iterator[Mapping[str, Any] | None]:
        """Act on uploads. Refuse a broker that neither the INI file nor any upload names."""
        broker, brokers = fields.get("broker", ""), self._parts.settings.brokers
        if broker and broker not in brokers:
            of_it = Selection(states=frozenset(ORDER), broker=broker)
            for found in self._queue_view.select(of_it):
                if found is not None:
                    break
                yield None
            else:
                known = ", ".join(brokers) or "none"
                raise WatchmanError(f"no broker is called {broker}; there are: {known}")
        yield from act(fields)

    def _pause(self, name: str) -> Rows:
        settings = self._parts.settings
        sections = {
            "watch": settings.watches,
            "task": [task.name for task in settings.tasks],
            "broker": settings.brokers,
        }
        known = [f"{kind}:{one}" for kind in KINDS for one in sections[kind]]
        if name not in (ALL, *known):
            what = ", ".join(known)
            raise WatchmanError(f"nothing is called {name}; what can be paused is {what}")
        self._parts.pauses.pause(name)
        return self._apply_pauses()

    def _resume(self, name: str) -> Rows:
        paused = self._parts.pauses.since()
        if name not in paused and (name != ALL or not paused):
            known = f"what is paused is {', '.join(paused)}" if paused else "nothing is paused"
            raise WatchmanError(f"{name} is not paused; {known}")
        self._parts.pauses.resume(name)
        return self._apply_pauses()

    def _apply_pauses(self) -> Rows:
        """Let the pauses take effect, and return them; they are durable already."""
        dispatcher, paused = self._parts.dispatcher, self._parts.pauses.since()
        dispatcher.call(lambda: dispatcher.pipeline.backlogs.pause(paused))
        return [{"name": name, "since": since} for name, since in paused.items()]


def _first(limit: int, rows: Rows) -> Iterator[Mapping[str, Any] | None]:
    """Yield the first `limit` rows, and each None between them."""
    for row in rows:
        yield row
        limit -= row is not None
        if not limit:
            return
