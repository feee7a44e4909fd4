"""Answers the queries that commands send to the running daemon."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from watchman.errors import ConfigError, WatchmanError
from watchman.operate.forbidden import LOOKING
from watchman.operate.history import tell
from watchman.operate.interventions import Interventions
from watchman.operate.overview import status
from watchman.operate.parts import Parts
from watchman.operate.queue_view import ORDER, QueueView, Selection, known_and_open
from watchman.sinks.pauses import ALL, KINDS

Rows = Iterable[Mapping[str, Any] | None]


class Control:
    """Finds for each query who answers it. Called in the listener's thread for queries."""

    def __init__(self, parts: Parts, *, reload: Callable[[], list[str]]) -> None:
        self._started = time.time()
        self._parts = parts
        self._reload = reload
        queue_view = QueueView(parts.dispatcher.pipeline, journal=parts.journal, sinks=parts.sinks)
        self._queue_view = queue_view
        self._interventions = Interventions(
            queue_view, dispatcher=parts.dispatcher, hurry=parts.hurry
        )

    def query(self, event: str, fields: Mapping[str, str]) -> Rows:
        """Answer one query. Raises WatchmanError, now or while the caller iterates."""
        dispatcher = self._parts.dispatcher
        match event:
            case "status":
                return [status(self._parts, self._queue_view, self._started)]
            case "queue":
                rows = self._queue(fields.get("open", "[]"))
                return itertools.islice(rows, int(fields["limit"]) if "limit" in fields else None)
            case "explain":
                return tell(
                    fields.get("path") or fields["id"],
                    journal=self._parts.journal,
                    queue_view=self._queue_view,
                    hold_queue=dispatcher.hold_queue,
                )
            case "retry":
                return self._intervene(self._interventions.retry, fields)
            case "drop":
                return self._intervene(self._interventions.drop, fields)
            case "pause":
                return self._pause(fields.get("name", ALL))
            case "resume":
                return self._resume(fields.get("name", ALL))
            case "reload":
                return [self._try_reload()]
        raise WatchmanError(f"unknown query {event!r}")

    def _queue(self, open_files: str) -> Iterator[dict[str, Any]]:
        """Yield what is in hand, then which of some files that are open (JSON) may be uploads."""
        try:
            unlisted = dict.fromkeys(map(str, json.loads(open_files)))
        except (TypeError, ValueError):
            raise WatchmanError("open is no list of paths in JSON") from None
        dispatcher = self._parts.dispatcher
        for row in itertools.chain(self._queue_view.rows(), dispatcher.hold_queue.rows()):
            unlisted.pop(row["path"], None)
            yield row
        yield from known_and_open(unlisted, dispatcher.rules)

    def _try_reload(self) -> dict[str, Any]:
        """Reload the INI file. Return what changed, or everything that is wrong with it.

        Also what moves the daemon has not the rights for, unless a filesystem hangs.
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
        """Act on uploads, but refuse a broker that neither the INI file nor any upload has."""
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
