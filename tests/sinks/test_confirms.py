"""The publisher with a real RabbitMQ: confirmed, returned and refused messages."""

import logging
import time
from collections.abc import Callable, Iterator

import pytest

from tests.servers.brokers import CeleryWorker, RabbitServer
from tests.support.backlog import upload
from tests.support.deadline import eventually
from tests.support.needs import need
from tests.support.publishing import Publishers, consume, delete, lines
from watchman.sinks.publishing.celeryapp import ANSWER_TIMEOUT
from watchman.sinks.publishing.publisher import BATCH
from watchman.uploads.upload import State


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """A queue name of the test's own, since the server is shared."""
    return str(request.node.name)[:60]


def test_a_stock_worker_on_rabbitmq_receives_arguments_id_and_header(
    rabbit_server: RabbitServer,
    publish: Publishers,
    celery_worker: Callable[..., CeleryWorker],
    queue: str,
) -> None:
    worker = celery_worker(rabbit_server.url, queues=[queue])
    _, uploads = publish(rabbit_server.url)
    uploads.add(upload("caf\udce9.csv", queue=queue, priority=5, kwargs={"a": 1}))
    (received,) = worker.wait_for(1)
    assert received["id"] == "id-caf?.csv"
    assert received["args"] == ["/srv/ftp/caf\udce9.csv"]
    assert received["kwargs"] == {"a": 1}
    assert received["delivery"]["priority"] == 5
    assert received["watchman"]["original"] == "/srv/ftp/caf\udce9.csv"
    eventually(lambda: uploads.ids(State.DONE))


def test_a_thousand_uploads_arrive_in_order_and_once(
    rabbit_server: RabbitServer, publish: Publishers, queue: str
) -> None:
    _, uploads = publish(rabbit_server.url)
    names = [f"{number:04d}" for number in range(1000)]
    uploads.add(*(upload(name, queue=queue) for name in names))
    eventually(lambda: uploads.unsettled == 0, timeout=20)
    assert consume(rabbit_server.url, queue) == [f"id-{name}" for name in names]
    assert not uploads.ids(State.DEFERRED)


def test_a_queue_that_was_deleted_is_declared_again(
    rabbit_server: RabbitServer, publish: Publishers, queue: str
) -> None:
    _, uploads = publish(rabbit_server.url)
    uploads.add(upload("a", queue=queue))
    eventually(lambda: uploads.ids(State.DONE) == ["id-a"])
    delete(rabbit_server.url, queue)
    uploads.add(upload("b", queue=queue), upload("c", queue=queue))
    eventually(lambda: uploads.unsettled == 0)
    assert consume(rabbit_server.url, queue) == ["id-b", "id-c"]


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """A RabbitMQ that may be killed; it is up again, and all is well, at the end of each test."""
    need("rabbitmq-server", "epmd")
    with RabbitServer(tmp_path_factory.mktemp("fragile")) as server:
        yield server


def test_nothing_is_lost_when_rabbitmq_freezes_and_is_killed_under_load(
    rabbit: RabbitServer, publish: Publishers, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watchman")
    publisher, uploads = publish(rabbit.url)
    names = [f"{number:04d}" for number in range(4000)]
    uploads.add(*(upload(name, queue=queue) for name in names))
    eventually(lambda: len(uploads.ids(State.DONE)) >= 200)
    rabbit.freeze()
    eventually(lambda: publisher.status()["state"] == "down", timeout=15)
    rabbit.thaw()
    eventually(lambda: publisher.status()["state"] == "up")
    rabbit.kill()
    eventually(lambda: publisher.status()["state"] == "down")
    rabbit.start()
    eventually(lambda: uploads.unsettled == 0, timeout=30)
    arrived = consume(rabbit.url, queue)
    assert set(arrived) == {f"id-{name}" for name in names}
    assert len(arrived) <= 4000 + 2 * BATCH
    assert changes(caplog) == ["is down:", "is back.", "is down:", "is back."]


def test_a_rabbitmq_that_raises_an_alarm_is_waited_for_and_gets_nothing_twice(
    rabbit: RabbitServer, publish: Publishers, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watchman")
    publisher, uploads = publish(rabbit.url)
    uploads.add(upload("first", queue=queue))
    eventually(lambda: uploads.unsettled == 0)
    rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    names = [f"{number:03d}" for number in range(500)]
    uploads.add(*(upload(name, queue=queue) for name in names))
    eventually(lambda: publisher.status()["state"] == "blocked")
    # It is not tried again and again: what was sent is waited for.
    taken = uploads.taken
    with pytest.raises(AssertionError):
        eventually(lambda: publisher.status()["state"] != "blocked", timeout=ANSWER_TIMEOUT + 1)
    assert uploads.taken == taken
    rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1GB")
    eventually(lambda: uploads.unsettled == 0)
    assert consume(rabbit.url, queue) == [f"id-{name}" for name in ["first", *names]]
    assert changes(caplog) == ["has blocked", "is back."]


def test_a_stop_does_not_wait_for_the_end_of_an_alarm(
    rabbit: RabbitServer, publish: Publishers, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    publisher, uploads = publish(rabbit.url)
    uploads.add(upload("last", queue=queue))
    eventually(lambda: publisher.status()["state"] == "blocked")
    began = time.monotonic()
    publisher.stop()
    publisher.join()
    assert time.monotonic() - began < 2
    assert uploads.unsettled == 1
    assert changes(caplog) == ["has blocked"]
    rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1GB")


def changes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of the broker named test, without the reasons."""
    return [" ".join(line.split()[2:4]) for line in lines(caplog.records)]
