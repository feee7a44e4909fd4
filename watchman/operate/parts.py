"""The parts that the running daemon is made of."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from watchman.config.settings import Settings
from watchman.dispatch.dispatcher import Dispatcher
from watchman.operate.metrics.exporter import Exporter
from watchman.sinks.pauses import Pauses
from watchman.sinks.sinks import Movers, Publishers
from watchman.sources.finders import Finders
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger


@dataclass(slots=True)
class Parts:
    """The parts that queries read or change. A reload replaces `settings` and `ledgers`."""

    settings: Settings
    ledgers: Mapping[str, Ledger]
    journal: Journal
    pauses: Pauses
    dispatcher: Dispatcher
    publishers: Publishers
    movers: Movers
    finders: Finders
    #: The moves for which the daemon lacks rights. The last reload began to look for them.
    forbidden: Future[list[str]] | None = None
    exporter: Exporter = field(init=False)

    def sinks(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the status of each mover ("move") and publisher ("broker") by name."""
        return {"move": self.movers.status(), "broker": self.publishers.status()}

    def hurry(self, kind: str, name: str) -> None:
        """Have a broker or a move tried at once, without waiting for the end of its back-off."""
        (self.movers if kind == "move" else self.publishers).hurry(name)
