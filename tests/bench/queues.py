"""The brokers that are measured, and how many messages wait there."""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from kombu.connection import Connection
from kombu.entity import Queue

from tests.servers.brokers import RabbitServer, RedisServer, Server

#: Celery's own.
QUEUE = "celery"

#: Seconds between two looks at a queue, and the longest that messages may take.
LOOK, PATIENCE = 0.005, 300.0

BROKERS = {"Redis": RedisServer, "RabbitMQ": RabbitServer}


class Broker:
    """A running broker with Celery's queue."""

    def __init__(self, name: str, server: RedisServer | RabbitServer) -> None:
        self.name = name
        self.server: Server = server
        self.url = server.url
        self._channel: Any = Connection(server.url).default_channel
        self._redis = redis.Redis(port=server.port)
        Queue(QUEUE, QUEUE, QUEUE)(self._channel).declare()

    def length(self) -> int:
        if self.name == "Redis":
            return int(self._redis.llen(QUEUE))
        return int(self._channel.queue_declare(QUEUE, passive=True).message_count)

    def purge(self) -> None:
        self._channel.queue_purge(QUEUE)

    def take(self) -> str:
        """Wait for the next message, and return the path in it."""
        assert self.name == "Redis"
        taken: Any = self._redis.brpop([QUEUE], timeout=10)
        assert taken is not None, "no message came"
        [path], _, _ = json.loads(base64.b64decode(json.loads(taken[1])["body"]))
        return str(path)

    def wait_for(self, count: int, patience: float = PATIENCE) -> float:
        """Return when so many messages wait, and how long ago, as `time.monotonic()` tells it."""
        deadline = time.monotonic() + patience
        while (length := self.length()) < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} has {length:,} of {count:,} messages")
            time.sleep(LOOK)
        return time.monotonic()


@contextlib.contextmanager
def broker(name: str) -> Iterator[Broker]:
    with tempfile.TemporaryDirectory() as directory, BROKERS[name](Path(directory)) as server:
        yield Broker(name, server)
