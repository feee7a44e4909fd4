"""A publisher with a backlog in memory, and what arrived in a broker's queues."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import kombu

from tests.support.backlog import Uploads
from watchman.config.settings import BrokerSettings
from watchman.sinks.publishing.publisher import Publisher


class Publishers:
    """Starts publishers, each on a backlog of its own, and stops them all."""

    def __init__(self) -> None:
        self._started: list[Publisher] = []

    def __call__(
        self, url: str, name: str = "test", *, declare: bool = True, **celery: Any
    ) -> tuple[Publisher, Uploads]:
        uploads = Uploads()
        settings = BrokerSettings(name, url, celery, declare)
        publisher = Publisher(settings, take=uploads.take, report=uploads.report)
        publisher.start()
        self._started.append(publisher)
        return publisher, uploads

    def stop(self) -> None:
        for publisher in self._started:
            publisher.stop()
        for publisher in self._started:
            publisher.join()


def consume(url: str, queue: str = "celery") -> list[str]:
    """The task ids that wait in a queue, taken out of it, oldest first."""
    ids: list[str] = []
    with kombu.Connection(url) as connection, closing(connection.channel()) as channel:
        while message := channel.basic_get(queue, no_ack=True):
            ids.append(channel.message_to_python(message).headers["id"])
    return ids


def declare(
    url: str, queue: str, exchange: kombu.Exchange | None = None, key: str = "", **arguments: Any
) -> None:
    """Make a queue, and bind it to an exchange that is made as well if there is to be one."""
    entity = kombu.Queue(queue, exchange, key or queue, queue_arguments=arguments)
    with kombu.Connection(url) as connection, closing(connection.channel()) as channel:
        entity.bind(channel).declare()


def delete(url: str, queue: str) -> None:
    with kombu.Connection(url) as connection, closing(connection.channel()) as channel:
        channel.queue_delete(queue)


def lines(records: Iterator[Any] | list[Any]) -> list[str]:
    """What was logged beside the uploads that were sent."""
    return [r.getMessage() for r in records if not r.getMessage().startswith("Sent upload")]
