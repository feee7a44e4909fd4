"""Sending alone: ready paths through Celery, as fast as kombu and py-amqp can.

`python -m tests.bench.alone URL COUNT` prints the seconds and the processor time it took.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from celery import Celery

#: Messages that are sent, or confirmed, together.
WINDOW = 64


def in_batches(app: Celery, connection: Any, paths: Sequence[str]) -> None:
    """To Redis: one pipeline for each window."""
    producer = app.amqp.Producer(connection.default_channel)
    assert producer.supports_batch_publish
    with producer.batch(WINDOW):
        for path in paths:
            app.send_task("tests.record", [path], producer=producer, ignore_result=True)


def in_windows(app: Celery, connection: Any, paths: Sequence[str]) -> None:
    """To RabbitMQ: a window is sent when the one before it is confirmed."""
    channel = connection.default_channel
    producer = app.amqp.Producer(channel)
    channel.confirm_select()
    confirmed = 0

    def confirm(tag: int, _multiple: bool) -> None:
        nonlocal confirmed
        confirmed = max(confirmed, tag)

    channel.events["basic_ack"].add(confirm)
    for begin in range(0, len(paths), WINDOW):
        window = paths[begin : begin + WINDOW]
        for path in window:
            app.send_task(
                *("tests.record", [path]), producer=producer, ignore_result=True, mandatory=True
            )
        while confirmed < begin + len(window):
            connection.drain_events(timeout=5)


def main() -> None:
    url, count = sys.argv[1], int(sys.argv[2])
    app = Celery(broker=url)
    send = in_batches if url.startswith("redis") else in_windows
    with app.connection_for_write() as connection:
        # So that Celery has made what it makes once, and the connection stands.
        send(app, connection.clone(), ["/srv/ftp/in/first.csv"])
        assert connection.default_channel
        paths = [f"/srv/ftp/in/{n % 20}/{n}.csv" for n in range(count)]
        began, busy = time.perf_counter(), time.process_time()
        send(app, connection, paths)
        print(time.perf_counter() - began, time.process_time() - busy)


if __name__ == "__main__":
    main()
