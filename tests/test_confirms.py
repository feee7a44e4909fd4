"""The publisher with a real RabbitMQ: confirmed, returned and refused messages."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

from tests.backlog import Uploads, upload
from tests.brokers import CeleryWorker, RabbitServer
from tests.deadline import eventually
from tests.needs import need
from watchman.settings import BrokerSettings
from watchman.sinks.publisher import Publisher
from watchman.upload import State

Publish = Callable[..., tuple[Publisher, Uploads]]


@pytest.fixture
def publish() -> Iterator[Publish]:
    """Starts a publisher on a url with a backlog."""
    publishers = []

    def start(url: str, **celery: Any) -> tuple[Publisher, Uploads]:
        uploads = Uploads()
        settings = BrokerSettings("rabbit", url, celery)
        publisher = Publisher(settings, take=uploads.take, report=uploads.report)
        publisher.start()
        publishers.append(publisher)
        return publisher, uploads

    yield start
    for publisher in publishers:
        publisher.stop()
    for publisher in publishers:
        publisher.join(15)


@pytest.fixture
def queue(request: pytest.FixtureRequest) -> str:
    """A queue name of the test's own, since the server is shared."""
    return str(request.node.name)[:60]


def consume(url: str, queue: str) -> list[str]:
    """The task ids that wait in a queue, taken out of it, oldest first."""
    ids = []
    with kombu.Connection(url) as connection:
        channel = connection.channel()
        while message := channel.basic_get(queue, no_ack=True):
            ids.append(channel.message_to_python(message).headers["id"])
    return ids


def declare(url: str, queue: str, **arguments: Any) -> None:
    with kombu.Connection(url) as connection:
        kombu.Queue(queue, routing_key=queue, queue_arguments=arguments).bind(
            connection.channel()
        ).declare()


def delete(url: str, queue: str) -> None:
    with kombu.Connection(url) as connection:
        connection.channel().queue_delete(queue)


def test_a_stock_worker_on_rabbitmq_receives_arguments_id_and_header(
    rabbit_server: RabbitServer,
    publish: Publish,
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
    rabbit_server: RabbitServer, publish: Publish, queue: str
) -> None:
    _, uploads = publish(rabbit_server.url)
    names = [f"{number:04d}" for number in range(1000)]
    uploads.add(*(upload(name, queue=queue) for name in names))
    eventually(lambda: uploads.unsettled == 0, timeout=20)
    assert consume(rabbit_server.url, queue) == [f"id-{name}" for name in names]
    assert not uploads.ids(State.DEFERRED)


def test_an_exchange_that_is_not_there_holds_up_only_its_own_tasks(
    rabbit_server: RabbitServer, publish: Publish, queue: str
) -> None:
    _, uploads = publish(rabbit_server.url)
    lost = [upload(f"lost{n}", exchange="missing", routing_key="k") for n in range(3)]
    good = [upload(f"good{n}", queue=queue) for n in range(3)]
    uploads.add(lost[0], good[0], lost[1], good[1], lost[2], good[2])
    eventually(lambda: len(uploads.ids(State.DONE)) == 3)
    assert uploads.ids(State.DONE) == ["id-good0", "id-good1", "id-good2"]
    eventually(lambda: uploads.ids(State.DEFERRED).count("id-lost0") >= 2)
    assert uploads.lanes() == {"exchange 'missing' with routing key 'k'"}
    assert "no exchange 'missing'" in uploads.reasons(State.DEFERRED)["id-lost0"]


def test_unroutable_tasks_wait_for_a_binding_and_keep_their_order(
    rabbit_server: RabbitServer,
    publish: Publish,
    queue: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "watchman")
    with kombu.Connection(rabbit_server.url) as connection:
        exchange = kombu.Exchange(queue, type="topic").bind(connection.channel())
        exchange.declare()
    publisher, uploads = publish(rabbit_server.url)
    uploads.add(*(upload(f"{n}", exchange=queue, routing_key="a.b") for n in range(5)))
    eventually(lambda: uploads.ids(State.DEFERRED).count("id-4") >= 2)
    uploads.add(upload("5", exchange=queue, routing_key="a.b"))
    assert "NO_ROUTE" in uploads.reasons(State.DEFERRED)["id-0"]
    assert f"'{queue}' with routing key 'a.b'" in uploads.reasons(State.DEFERRED)["id-0"]
    assert publisher.status()["state"] == "up"
    with kombu.Connection(rabbit_server.url) as connection:
        kombu.Queue(queue, kombu.Exchange(queue, type="topic"), routing_key="a.*").bind(
            connection.channel()
        ).declare()
    eventually(lambda: uploads.unsettled == 0)
    assert consume(rabbit_server.url, queue) == [f"id-{n}" for n in range(6)]
    lines = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1


def test_a_queue_that_was_deleted_is_declared_again(
    rabbit_server: RabbitServer, publish: Publish, queue: str
) -> None:
    _, uploads = publish(rabbit_server.url)
    uploads.add(upload("a", queue=queue))
    eventually(lambda: uploads.ids(State.DONE) == ["id-a"])
    delete(rabbit_server.url, queue)
    uploads.add(upload("b", queue=queue), upload("c", queue=queue))
    eventually(lambda: uploads.unsettled == 0)
    assert consume(rabbit_server.url, queue) == ["id-b", "id-c"]


def test_a_full_queue_that_rejects_defers_its_tasks_until_there_is_room(
    rabbit_server: RabbitServer, publish: Publish, queue: str
) -> None:
    arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
    declare(rabbit_server.url, queue, **arguments)
    other = f"{queue}-other"[-60:]
    declared = [kombu.Queue(name, routing_key=name) for name in (other,)]
    declared.append(kombu.Queue(queue, routing_key=queue, queue_arguments=arguments))
    _, uploads = publish(rabbit_server.url, task_queues=declared)
    uploads.add(*(upload(f"{n}", queue=queue) for n in range(6)), upload("other", queue=other))
    eventually(lambda: "id-other" in uploads.ids(State.DONE))
    eventually(lambda: uploads.ids(State.DEFERRED).count("id-5") >= 2)
    assert "refused" in uploads.reasons(State.DEFERRED)["id-5"]
    assert repr(queue) in uploads.reasons(State.DEFERRED)["id-5"]
    arrived: list[str] = []

    def all_arrived() -> bool:
        arrived.extend(consume(rabbit_server.url, queue))
        return uploads.unsettled == 0

    eventually(all_arrived, timeout=20)
    arrived.extend(consume(rabbit_server.url, queue))
    assert arrived == [f"id-{n}" for n in range(6)]


def test_a_queue_declared_otherwise_holds_up_only_its_own_tasks(
    rabbit_server: RabbitServer, publish: Publish, queue: str
) -> None:
    declare(rabbit_server.url, queue, **{"x-max-length": 7})
    other = f"{queue}-other"[-60:]
    _, uploads = publish(rabbit_server.url)
    uploads.add(upload("a", queue=queue), upload("b", queue=other))
    eventually(lambda: uploads.ids(State.DONE) == ["id-b"])
    assert "PRECONDITION_FAILED" in uploads.reasons(State.DEFERRED)["id-a"]
    assert uploads.lanes() == {f"queue {queue!r}"}


def test_a_wrong_password_is_a_fault_of_the_broker_and_not_of_the_tasks(
    rabbit_server: RabbitServer, publish: Publish
) -> None:
    publisher, uploads = publish(rabbit_server.url.replace("guest:guest", "guest:wrong"))
    uploads.add(upload("a"))
    eventually(lambda: uploads.ids(State.DEFERRED), timeout=20)
    assert publisher.status()["state"] == "down"
    assert "ACCESS_REFUSED" in publisher.status()["error"]
    assert uploads.lanes() == {""}


@pytest.fixture
def rabbit(tmp_path: Path) -> Iterator[RabbitServer]:
    """A RabbitMQ of the test's own, which may be killed."""
    need("rabbitmq-server", "epmd")
    with RabbitServer(tmp_path / "rabbit") as server:
        yield server


def test_nothing_is_lost_when_rabbitmq_freezes_is_killed_and_raises_an_alarm(
    rabbit: RabbitServer, publish: Publish
) -> None:
    publisher, uploads = publish(rabbit.url)
    names = [f"{number:04d}" for number in range(4000)]
    uploads.add(*map(upload, names))

    eventually(lambda: len(uploads.ids(State.DONE)) >= 200)
    rabbit.freeze()
    eventually(lambda: publisher.status()["state"] == "down", timeout=15)
    rabbit.thaw()
    eventually(lambda: publisher.status()["state"] == "up", timeout=30)

    rabbit.kill()
    eventually(lambda: publisher.status()["state"] == "down")
    rabbit.start()
    eventually(lambda: publisher.status()["state"] == "up", timeout=70)

    rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    uploads.add(upload("last"))
    eventually(lambda: publisher.status()["state"] == "down", timeout=15)
    rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1GB")
    eventually(lambda: uploads.unsettled == 0, timeout=60)

    arrived = consume(rabbit.url, "celery")
    assert set(arrived) == {f"id-{name}" for name in [*names, "last"]}
    assert len(arrived) < 4001 + 10 * 64
