"""The publishers of all brokers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from watchman.settings import BrokerSettings
from watchman.sinks.publisher import Publisher
from watchman.upload import Report, Upload


class Publishers:
    """One publisher for each broker; a reload replaces those whose settings changed.

    `take` is told the broker's name first.
    """

    def __init__(
        self,
        brokers: Mapping[str, BrokerSettings],
        *,
        take: Callable[[str, int, float], Sequence[Upload]],
        report: Callable[[Report], None],
    ) -> None:
        """Raises ConfigError for settings that Celery cannot use."""
        self._take = take
        self._report = report
        #: By name; replaced as a whole, for other threads read it.
        self._publishers: dict[str, tuple[BrokerSettings, Publisher]] = {}
        self._publishers = self.prepare(brokers)

    def start(self) -> None:
        for _, publisher in self._publishers.values():
            publisher.start()

    def stop(self) -> None:
        for _, publisher in self._publishers.values():
            publisher.stop()

    def join(self) -> None:
        for _, publisher in self._publishers.values():
            publisher.join()

    def prepare(
        self, brokers: Mapping[str, BrokerSettings]
    ) -> dict[str, tuple[BrokerSettings, Publisher]]:
        """Return what `change` takes: those there are where nothing changed, else new ones.

        Raises ConfigError for settings that Celery cannot use.
        """
        prepared = {}
        for name, broker in brokers.items():
            old = self._publishers.get(name)
            prepared[name] = old if old and old[0] == broker else (broker, self._make(broker))
        return prepared

    def change(self, prepared: dict[str, tuple[BrokerSettings, Publisher]]) -> None:
        """Stop the publishers that are not among them, start the new ones.

        Waits for what the old ones have in hand: two of one broker would break its order.
        """
        old, self._publishers = self._publishers, prepared
        kept = {publisher for _, publisher in prepared.values()}
        running = {publisher for _, publisher in old.values()}
        for publisher in running - kept:
            publisher.stop()
        for publisher in running - kept:
            publisher.join()
        for publisher in kept - running:
            publisher.start()

    def hurry(self, broker: str) -> None:
        """Have a broker tried at once that is backed off from."""
        if broker in self._publishers:
            self._publishers[broker][1].hurry()

    def status(self) -> dict[str, dict[str, Any]]:
        """Return each publisher's, by its broker's name; from any thread."""
        return {name: publisher.status() for name, (_, publisher) in self._publishers.items()}

    def _make(self, broker: BrokerSettings) -> Publisher:
        return Publisher(broker, take=partial(self._take, broker.name), report=self._report)
