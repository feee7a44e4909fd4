"""Where tasks go, for commands that send none."""

from collections.abc import Mapping
from typing import Any

from watchman.config.settings import BrokerSettings
from watchman.sinks.publishing import celeryapp, messages
from watchman.uploads.upload import Task


class Routes:
    """Asks each broker's Celery app, made when it is first needed. Connects to nothing."""

    def __init__(self, brokers: Mapping[str, BrokerSettings]) -> None:
        self._brokers = brokers
        self._apps: dict[str, Any] = {}

    def app(self, broker: str) -> Any:
        """Raises ConfigError."""
        if broker not in self._apps:
            self._apps[broker] = celeryapp.make_app(self._brokers[broker])
        return self._apps[broker]

    def of(self, task: Task) -> messages.Route:
        """Raises ConfigError, or TaskRefused for a task that cannot be sent at all."""
        return messages.route(self.app(task.broker), task)
