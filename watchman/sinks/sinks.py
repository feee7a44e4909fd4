"""All sinks of one kind: the publishers of all brokers, or the movers of all moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from watchman.config.settings import BrokerSettings, MoveSettings, Settings, WatchSettings
from watchman.sinks.sink import Sink

S = TypeVar("S")


class Sinks(Generic[S]):
    """A sink for each section of one kind. A reload replaces those whose section has changed."""

    def __init__(
        self, sections: Mapping[str, S], make: Callable[[S], Sink], wake: Callable[[], None]
    ) -> None:
        """`wake` rouses the threads that wait for uploads, after they were told to end.

        Raises ConfigError for settings that Celery cannot use.
        """
        self._make = make
        self._wake = wake
        #: By the section's name. Replaced as a whole, since other threads read it.
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

    def is_alive(self) -> bool:
        return all(sink.is_alive() for _, sink in self._sinks.values())

    def prepare(self, sections: Mapping[str, S]) -> dict[str, tuple[S, Sink]]:
        """Return the sinks for `change`. Sections that did not change keep theirs.

        Raises ConfigError for settings that Celery cannot use.
        """
        prepared = {}
        for name, section in sections.items():
            old = self._sinks.get(name)
            same = old is not None and old[0] == section
            prepared[name] = old if old and same else (section, self._make(section))
        return prepared

    def change(self, prepared: dict[str, tuple[S, Sink]]) -> None:
        """Replace the sinks: stop those that are not in `prepared`, then start the new ones.

        It waits until the old ones have ended. If two sinks served one section at the same time,
        uploads could overtake each other.
        """
        old, self._sinks = self._sinks, prepared
        kept = {sink for _, sink in prepared.values()}
        running = {sink for _, sink in old.values()}
        for sink in running - kept:
            sink.stop()
        self._wake()
        for sink in running - kept:
            sink.join()
        for sink in kept - running:
            sink.start()

    def hurry(self, name: str) -> None:
        """End the back-offs of one sink."""
        if name in self._sinks:
            self._sinks[name][1].hurry()

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the status of each sink by its section's name. Any thread may call it."""
        return {name: sink.status() for name, (_, sink) in self._sinks.items()}


Publishers = Sinks[BrokerSettings]
Movers = Sinks[tuple[MoveSettings, Mapping[str, WatchSettings]]]


def moves_of(settings: Settings) -> dict[str, tuple[MoveSettings, Mapping[str, WatchSettings]]]:
    """Return the sections of the movers, each with all watches: a mover depends on both."""
    return {name: (move, settings.watches) for name, move in settings.moves.items()}
