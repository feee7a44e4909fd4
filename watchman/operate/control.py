"""Answers what commands ask of the running daemon."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from watchman.config.settings import Settings
from watchman.dispatch.dispatcher import Dispatcher
from watchman.errors import WatchmanError
from watchman.operate.history import History
from watchman.operate.interventions import Interventions
from watchman.operate.overview import Overview
from watchman.operate.queue_view import ORDER, QueueView, Selection
from watchman.sinks.pauses import ALL, KINDS, Pauses
from watchman.sinks.sinks import Movers, Publishers
from watchman.sources.finders import Finders
from watchman.store.journal import Journal

Rows = Iterable[Mapping[str, Any] | None]


class Control:
    """The daemon as seen from its socket. Called in the listener's thread for queries."""

    def __init__(
        self,
        settings: Settings,
        *,
        dispatcher: Dispatcher,
        journal: Journal,
        pauses: Pauses,
        finders: Finders,
        publishers: Publishers,
        movers: Movers,
        reload: Callable[[], list[str]],
    ) -> None:
        #: Replaced by a reload.
        self.settings = settings
        self._dispatcher = dispatcher
        self._pauses = pauses
        self._reload = reload
        sinks: dict[str, Publishers | Movers] = {"broker": publishers, "move": movers}
        queue_view = QueueView(
            dispatcher.pipeline,
            journal=journal,
            sinks=lambda: {kind: one.status() for kind, one in sinks.items()},
        )
        self._queue_view = queue_view
        self._history = History(
            journal=journal, queue_view=queue_view, hold_queue=dispatcher.hold_queue
        )
        self._interventions = Interventions(
            queue_view, dispatcher=dispatcher, hurry=lambda kind, name: sinks[kind].hurry(name)
        )
        self._overview = Overview(
            dispatcher=dispatcher,
            queue_view=queue_view,
            pauses=pauses,
            finders=finders,
            publishers=publishers,
            movers=movers,
        )

    def query(self, event: str, fields: Mapping[str, str]) -> Rows:
        """Answer one query, or raise WatchmanError: now or while the answer is iterated over."""
        match event:
            case "status":
                return [self._overview.status(self.settings)]
            case "queue":
                return self._queue(fields.get("limit", ""))
            case "explain":
                return self._history.tell(fields.get("path") or fields.get("id", ""))
            case "retry":
                return self._intervene(self._interventions.retry, fields)
            case "drop":
                return self._intervene(self._interventions.drop, fields)
            case "pause":
                return self._pause(fields.get("name", ALL))
            case "resume":
                return self._resume(fields.get("name", ALL))
            case "reload":
                return [{"changed": self._reload()}]
        raise WatchmanError(f"unknown query {event!r}")

    def _queue(self, limit: str) -> Iterator[Mapping[str, Any]]:
        rows = itertools.chain(self._queue_view.rows(), self._dispatcher.hold_queue.rows())
        return itertools.islice(rows, int(limit) if limit else None)

    def _intervene(
        self, act: Callable[[Mapping[str, str]], Rows], fields: Mapping[str, str]
    ) -> Iterator[Mapping[str, Any] | None]:
        """Act on uploads, unless they are those for a broker that is unknown."""
        broker = fields.get("broker", "")
        if broker and broker not in self.settings.brokers:
            of_it = Selection(states=frozenset(ORDER), broker=broker)
            for found in self._queue_view.select(of_it):
                if found is not None:
                    break
                yield None
            else:
                known = ", ".join(self.settings.brokers) or "none"
                raise WatchmanError(f"no broker is called {broker}; there are: {known}")
        yield from act(fields)

    def _pause(self, name: str) -> Rows:
        kind, _, section = name.partition(":")
        sections = {
            "watch": list(self.settings.watches),
            "task": [task.name for task in self.settings.tasks],
            "broker": list(self.settings.brokers),
        }
        if name != ALL and section not in sections.get(kind, []):
            known = ", ".join(f"{kind}:{one}" for kind in KINDS for one in sections[kind])
            raise WatchmanError(f"nothing is called {name}; what can be paused is {known}")
        self._pauses.pause(name)
        return self._apply_pauses()

    def _resume(self, name: str) -> Rows:
        paused = self._pauses.since()
        if name not in paused and (name != ALL or not paused):
            known = f"what is paused is {', '.join(paused)}" if paused else "nothing is paused"
            raise WatchmanError(f"{name} is not paused; {known}")
        self._pauses.resume(name)
        return self._apply_pauses()

    def _apply_pauses(self) -> Rows:
        """Have them take effect; they are durable."""
        paused = self._pauses.since()
        self._dispatcher.call(lambda: self._dispatcher.pipeline.backlogs.pause(paused))
        return [{"name": name, "since": since} for name, since in paused.items()]
