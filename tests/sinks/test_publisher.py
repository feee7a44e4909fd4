"""The publisher with a real Redis and with the embedded broker."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.servers.brokers import CeleryWorker, RedisServer, free_port
from tests.support.backlog import Uploads, upload
from tests.support.deadline import eventually
from tests.support.needs import need
from tests.support.publishing import Publishers, consume
from watchman.config.settings import BrokerSettings
from watchman.errors import ConfigError
from watchman.sinks.publishing.celeryapp import embedded_options
from watchman.sinks.publishing.publisher import BATCH, Publisher
from watchman.uploads.upload import State, Upload


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, which may be killed; it keeps what it confirmed."""
    need("redis-server")
    with RedisServer(tmp_path / "redis", durable=True) as server:
        yield server


def test_a_stock_worker_on_redis_receives_arguments_id_and_header(
    redis: RedisServer, publish: Publishers, celery_worker: Callable[..., CeleryWorker]
) -> None:
    worker = celery_worker(redis.url)
    _, uploads = publish(redis.url)
    uploads.add(upload("a.csv", kwargs={"project": "näme"}, expires=60, time_limit=9))
    (received,) = worker.wait_for(1)
    assert received["id"] == "id-a.csv"
    assert received["args"] == ["/srv/ftp/a.csv"]
    assert received["kwargs"] == {"project": "näme"}
    assert received["headers"]["expires"]
    assert received["headers"]["timelimit"] == [9, None]
    assert received["watchman"] == {
        "id": "id-a.csv",
        "path": "/srv/ftp/a.csv",
        "original": "/srv/ftp/a.csv",
        "size": 1234,
        "inode": 2,
        "source": "hook",
        "user": "alice",
        "client": "192.0.2.7",
    }
    assert uploads.ids(State.DONE) == ["id-a.csv"]


def test_a_stock_worker_consumes_from_the_embedded_broker(
    tmp_path: Path, publish: Publishers, celery_worker: Callable[..., CeleryWorker]
) -> None:
    url = f"filesystem://{tmp_path}/not yet/broker"
    _, uploads = publish(url)
    uploads.add(upload("a.csv"), upload("b.csv", kwargs={"n": 1}))
    eventually(lambda: len(uploads.ids(State.DONE)) == 2)
    worker = celery_worker(
        "filesystem://",
        settings={"broker_transport_options": embedded_options(url) | {"polling_interval": 0.1}},
    )
    received = worker.wait_for(2)
    assert [task["id"] for task in received] == ["id-a.csv", "id-b.csv"]
    assert received[1]["kwargs"] == {"n": 1}
    assert received[1]["watchman"]["original"] == "/srv/ftp/b.csv"


def test_names_that_are_not_utf8_arrive_as_they_are(
    redis: RedisServer, publish: Publishers, celery_worker: Callable[..., CeleryWorker]
) -> None:
    worker = celery_worker(redis.url)
    _, uploads = publish(redis.url)
    uploads.add(upload("caf\udce9.csv"), upload("käse \n.csv"))
    received = worker.wait_for(2)
    assert received[0]["args"] == ["/srv/ftp/caf\udce9.csv"]
    assert received[0]["watchman"]["original"] == "/srv/ftp/caf\udce9.csv"
    assert received[1]["args"] == ["/srv/ftp/käse \n.csv"]


def test_routes_from_the_settings_decide_the_queue_and_a_tasks_own_queue_beats_them(
    redis: RedisServer, publish: Publishers
) -> None:
    _, uploads = publish(redis.url, task_routes={"tests.*": {"queue": "routed"}})
    uploads.add(upload("a"), upload("b", queue="own"), upload("c", task="other.task"))
    eventually(lambda: len(uploads.ids(State.DONE)) == 3)
    assert consume(redis.url, "routed") == ["id-a"]
    assert consume(redis.url, "own") == ["id-b"]
    assert consume(redis.url) == ["id-c"]


def test_a_priority_reaches_redis_in_its_own_list(redis: RedisServer, publish: Publishers) -> None:
    _, uploads = publish(redis.url)
    uploads.add(upload("low", priority=9), upload("high", priority=0))
    eventually(lambda: len(uploads.ids(State.DONE)) == 2)
    assert consume(redis.url) == ["id-high", "id-low"]


def test_the_environment_does_not_choose_the_broker(
    redis: RedisServer, publish: Publishers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("CELERY_BROKER_WRITE_URL", "redis://127.0.0.1:1/0")
    _, uploads = publish(redis.url)
    uploads.add(upload("a", countdown=5))
    eventually(lambda: uploads.ids(State.DONE) == ["id-a"])
    assert redis.length() == 1


def test_a_result_backend_is_never_touched(redis: RedisServer, publish: Publishers) -> None:
    _, uploads = publish(redis.url, result_backend="no.such.module:Backend")
    uploads.add(upload("a"))
    eventually(lambda: uploads.ids(State.DONE) == ["id-a"])


def test_a_thousand_uploads_arrive_in_order_and_once(
    redis: RedisServer, publish: Publishers
) -> None:
    _, uploads = publish(redis.url)
    names = [f"{number:04d}" for number in range(1000)]
    uploads.add(*map(upload, names))
    eventually(lambda: uploads.unsettled == 0)
    assert consume(redis.url) == [f"id-{name}" for name in names]
    assert not uploads.ids(State.DEFERRED)


def test_what_waits_for_a_redis_that_is_down_is_sent_in_order_once_it_is_up(
    redis: RedisServer, publish: Publishers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watchman")
    redis.stop()
    publisher, uploads = publish(redis.url)
    names = [f"{number:03d}" for number in range(200)]
    uploads.add(*map(upload, names))
    eventually(lambda: publisher.status()["attempts"] >= 3)
    status = publisher.status()
    assert status["state"] == "down"
    assert "refused" in status["error"]
    assert status["next_try"] > status["since"]
    redis.start()
    eventually(lambda: uploads.unsettled == 0)
    assert consume(redis.url) == [f"id-{name}" for name in names]
    assert publisher.status()["state"] == "up"
    assert publisher.status()["error"] is None
    changes = [
        record.getMessage() for record in caplog.records if "Sent" not in record.getMessage()
    ]
    assert len(changes) == 2
    assert changes[0].startswith("Broker test is down: ")
    assert "Retrying in 0." in changes[0]
    assert changes[1] == "Broker test is back."


def test_nothing_is_lost_when_redis_is_killed_under_load(
    redis: RedisServer, publish: Publishers
) -> None:
    _, uploads = publish(redis.url)
    names = [f"{number:04d}" for number in range(2000)]
    uploads.add(*map(upload, names))
    for done in (100, 600, 1100):
        eventually(lambda done=done: len(uploads.ids(State.DONE)) >= done)
        redis.kill()
        redis.start()
    eventually(lambda: uploads.unsettled == 0, timeout=30)
    arrived = consume(redis.url)
    assert set(arrived) == {f"id-{name}" for name in names}
    # A window in flight at each kill may come twice; the rest may not.
    assert len(arrived) <= 2000 + 3 * BATCH


def test_an_idle_connection_that_redis_has_closed_is_replaced_at_once(
    redis: RedisServer, publish: Publishers, caplog: pytest.LogCaptureFixture
) -> None:
    _, uploads = publish(redis.url)
    uploads.add(upload("a"))
    eventually(lambda: uploads.ids(State.DONE) == ["id-a"])
    redis.kill()
    redis.start()
    uploads.add(upload("b"))
    eventually(lambda: uploads.ids(State.DONE) == ["id-a", "id-b"])
    assert not uploads.ids(State.DEFERRED)
    assert not caplog.records


def test_a_frozen_redis_defers_does_not_delay_another_broker_and_recovers(
    redis: RedisServer, redis_server: RedisServer, publish: Publishers
) -> None:
    publisher, uploads = publish(redis.url, "frozen")
    _, others = publish(redis_server.url, "other", task_default_queue="others")
    uploads.add(upload("first"))
    eventually(lambda: uploads.ids(State.DONE) == ["id-first"])
    redis.freeze()
    uploads.add(upload("a"), upload("b"))
    others.add(*(upload(f"{number}") for number in range(100)))
    eventually(lambda: len(others.ids(State.DONE)) == 100, timeout=3)
    eventually(lambda: uploads.reasons(State.DEFERRED).keys() == {"id-a", "id-b"}, timeout=15)
    assert publisher.status()["state"] == "down"
    redis.thaw()
    eventually(lambda: uploads.unsettled == 0, timeout=15)
    arrived = consume(redis.url)
    assert list(dict.fromkeys(arrived)) == ["id-first", "id-a", "id-b"]


def test_a_publisher_stops_within_its_time_outs_while_redis_is_frozen(
    redis: RedisServer, publish: Publishers
) -> None:
    publisher, uploads = publish(redis.url)
    redis.freeze()
    uploads.add(upload("a"))
    eventually(lambda: uploads.taken == 1)
    publisher.stop()
    began = time.monotonic()
    publisher.join()
    assert time.monotonic() - began < 7
    assert uploads.ids(State.DEFERRED) == ["id-a"]


def test_arguments_that_cannot_be_serialized_fail_alone(
    redis: RedisServer, publish: Publishers, caplog: pytest.LogCaptureFixture
) -> None:
    _, uploads = publish(redis.url)
    uploads.add(upload("a"), upload("bad", args=[object()]), upload("b"))
    eventually(lambda: uploads.unsettled == 0)
    assert consume(redis.url) == ["id-a", "id-b"]
    assert "not JSON serializable" in uploads.reasons(State.FAILED)["id-bad"]
    assert "id-bad" in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"countdown": "10"}, "TypeError"),
        ({"queue": "unknown"}, "unknown"),
        ({"exchange": "x", "routing_key": "k" * 256}, "255 bytes"),
    ],
)
def test_options_that_celery_refuses_fail_alone(
    options: dict[str, Any], reason: str, redis: RedisServer, publish: Publishers
) -> None:
    _, uploads = publish(redis.url, task_create_missing_queues=False)
    uploads.add(upload("bad", **options), upload("good"))
    eventually(lambda: uploads.unsettled == 0)
    assert uploads.ids(State.DONE) == ["id-good"]
    assert reason in uploads.reasons(State.FAILED)["id-bad"]


def test_an_exchange_to_which_no_queue_is_bound_holds_up_only_its_own_tasks(
    redis: RedisServer, publish: Publishers
) -> None:
    _, uploads = publish(redis.url)
    uploads.add(upload("a", exchange="x", routing_key="y"), upload("b"))
    eventually(lambda: len(uploads.ids(State.DEFERRED)) >= 2)
    assert uploads.ids(State.DONE) == ["id-b"]
    assert uploads.lanes() == {"exchange 'x' with routing key 'y'"}
    assert "no queue is bound" in uploads.reasons(State.DEFERRED)["id-a"]


def test_settings_that_celery_cannot_use_are_an_error_at_once() -> None:
    settings = BrokerSettings("test", f"redis://127.0.0.1:{free_port()}", {"task_queues": 3})
    uploads = Uploads()
    with pytest.raises(ConfigError, match=r"\[broker:test\]"):
        Publisher(settings, take=uploads.take, report=uploads.report)


def test_a_publisher_that_had_nothing_to_send_is_idle_and_stops(publish: Publishers) -> None:
    publisher, _ = publish(f"redis://127.0.0.1:{free_port()}")
    assert publisher.status()["state"] == "idle"
    began = time.monotonic()
    publisher.stop()
    publisher.join()
    assert time.monotonic() - began < 3


def test_what_was_taken_slowly_does_not_overtake_what_its_queue_has_refused(
    redis: RedisServer,
) -> None:
    uploads = Uploads()

    def take(limit: int, timeout: float, ended: Callable[[], bool]) -> Sequence[Upload]:
        """Read slowly: what was taken while its route was left alone comes when that is over."""
        taken = uploads.take(limit, timeout, ended)
        if any(one.id == "id-new" for one in taken) and "id-new" not in uploads.reported():
            eventually(lambda: uploads.open_lane("queue 'bad'"))
        return taken

    redis.ask("SET", "bad", "text")
    broker = BrokerSettings("test", redis.url)
    publisher = Publisher(broker, take=take, report=uploads.report)
    publisher.start()
    try:
        uploads.add(upload("old", queue="bad"), upload("older", queue="bad"))
        eventually(lambda: len(uploads.ids(State.DEFERRED)) >= 2)
        redis.ask("DEL", "bad")
        uploads.add(upload("new", queue="bad"))
        eventually(lambda: uploads.unsettled == 0)
    finally:
        publisher.stop()
        publisher.join()
    assert redis.task_ids("bad") == ["id-old", "id-older", "id-new"]
    assert "id-new" in uploads.ids(State.DEFERRED)
