"""The routes of tasks at their brokers, for commands that send no task."""

from collections.abc import Mapping
from typing import Any

from watchman.config.settings import BrokerSettings
from watchman.sinks.publishing import celeryapp, messages
from watchman.uploads.upload import Task


class Routes:
    """The routes of each broker's Celery app. Makes an app when it is needed. Never connects."""

    def __init__(self, brokers: Mapping[str, BrokerSettings]) -> None:
        self._brokers = brokers
        self._apps: dict[str, Any] = {}

    def app(self, broker: str) -> Any:
        """Return a broker's app. Raises ConfigError if Celery cannot use its settings."""
        if broker not in self._apps:
            self._apps[broker] = celeryapp.make_app(self._brokers[broker])
        return self._apps[broker]

    def of(self, task: Task) -> messages.Route:
        """Return a task's route. Raises ConfigError, or TaskRefused if it can never be sent."""
        return messages.route(self.app(task.broker), task)
