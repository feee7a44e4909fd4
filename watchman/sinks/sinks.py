"""All sinks of one kind: the publishers of all brokers, or the movers of all moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from watchman.config.settings import BrokerSettings, MoveSettings, Settings, WatchSettings
from watchman.sinks.sink import Sink

S = TypeVar("S")


class Sinks(Generic[S]):
    """One sink for each section `S`; a reload replaces those whose section changed."""

    def __init__(self, sections: Mapping[str, S], make: Callable[[S], Sink]) -> None:
        """Raises ConfigError for settings that Celery cannot use."""
        self._make = make
        #: By name; replaced as a whole, for other threads read it.
        self._sinks: dict[str, tuple[S, Sink]] = {}
        self._sinks = self.prepare(sections)

    def start(self) -> None:
        for _, sink in self._sinks.values():
            sink.start()

    def stop(self) -> None:
        for _, sink in self._sinks.values():
            sink.stop()

    def join(self) -> None:
        for _, sink in self._sinks.values():
            sink.join()

    def prepare(self, sections: Mapping[str, S]) -> dict[str, tuple[S, Sink]]:
        """Return what `change` takes: those there are where nothing changed, else new ones.

        Raises ConfigError for settings that Celery cannot use.
        """
        prepared = {}
        for name, section in sections.items():
            old = self._sinks.get(name)
            same = old is not None and old[0] == section
            prepared[name] = old if old and same else (section, self._make(section))
        return prepared

    def change(self, prepared: dict[str, tuple[S, Sink]]) -> None:
        """Stop the sinks that are not among them, start the new ones.

        Waits for what the old ones have in hand: two of one section would break its order.
        """
        old, self._sinks = self._sinks, prepared
        kept = {sink for _, sink in prepared.values()}
        running = {sink for _, sink in old.values()}
        for sink in running - kept:
            sink.stop()
        for sink in running - kept:
            sink.join()
        for sink in kept - running:
            sink.start()

    def hurry(self, name: str) -> None:
        """Have what is backed off from tried at once."""
        if name in self._sinks:
            self._sinks[name][1].hurry()

    def status(self) -> dict[str, dict[str, Any]]:
        """Return each sink's, by its section's name; from any thread."""
        return {name: sink.status() for name, (_, sink) in self._sinks.items()}


Publishers = Sinks[BrokerSettings]
Movers = Sinks[tuple[MoveSettings, Mapping[str, WatchSettings]]]


def moves_of(settings: Settings) -> dict[str, tuple[MoveSettings, Mapping[str, WatchSettings]]]:
    """Return the sections of the movers, each with the watches whose files it moves."""
    return {name: (move, settings.watches) for name, move in settings.moves.items()}
