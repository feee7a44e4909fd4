"""The whole daemon with RabbitMQ and Redis: routes and refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.brokers import RabbitServer, RedisServer
from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.publishing import consume, declare

Start = Callable[..., Daemon]

INI = """
[broker:b]
url = {url}
declare = no
[watch:in]
path = {tmp}/in
[task:csv]
pattern = *.csv
broker = b
task = tests.record
queue = {queue}
"""


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    directory = tmp_path / "in"
    directory.mkdir()
    return directory


ROUTED = """
{celery}
[broker:amqp]
url = {amqp}
{broker}
[broker:redis]
url = {redis}
{broker}
[watch:in]
path = {tmp}/in
[task:amqp]
pattern = *.amqp.tif
broker = amqp
task = lizard_nxt.tasks.import_raster_task
[task:redis]
pattern = *.redis.tif
broker = redis
task = lizard_nxt.tasks.import_raster_task
"""

ROUTES = "{'lizard_nxt.tasks.import_raster_task': {'queue': 'single_worker'}}"


@pytest.mark.parametrize(
    ("section", "name", "setting"),
    [
        ("celery", "celeryconfig.py", "CELERY_ROUTES"),
        ("celery", "celeryconfig", "task_routes"),
        ("broker", "celeryconfig.py", "task_routes"),
        ("broker", "celeryconfig", "CELERY_ROUTES"),
    ],
)
def test_the_routes_of_a_celeryconfig_beside_the_ini_file_are_taken(
    section: str,
    name: str,
    setting: str,
    tmp_path: Path,
    incoming: Path,
    start_watchman: Start,
    rabbit_server: RabbitServer,
    redis_server: RedisServer,
) -> None:
    (tmp_path / "celeryconfig.py").write_text(f"{setting} = {ROUTES}\n")
    config = f"config = {name}"
    ini = ROUTED.replace("{celery}", f"[celery]\n{config}" if section == "celery" else "")
    ini = ini.replace("{broker}", config if section == "broker" else "")
    ini = ini.replace("{amqp}", rabbit_server.url).replace("{redis}", redis_server.url)
    daemon = start_watchman(ini)
    for broker in ("amqp", "redis"):
        (incoming / f"a.{broker}.tif").write_text("1")
        explained = daemon.run("explain", str(incoming / f"a.{broker}.tif"))
        assert "queue     single_worker\n" in explained.stdout
    eventually(lambda: daemon.status()["uploads"]["done"] == 2)
    assert len(consume(rabbit_server.url, "single_worker")) == 1
    assert len(consume(redis_server.url, "single_worker")) == 1


def test_what_rabbitmq_has_no_queue_for_is_shown_kept_and_sent_in_order_once_it_has(
    tmp_path: Path, incoming: Path, start_watchman: Start, rabbit_server: RabbitServer
) -> None:
    queue = "not-yet"
    daemon = start_watchman(INI.replace("{url}", rabbit_server.url).replace("{queue}", queue))
    for n in range(10):
        (incoming / f"{n}.csv").write_text("1")
    rows = eventually(lambda: len(rows := daemon.queue()) == 10 and rows)
    eventually(lambda: {row["state"] for row in daemon.queue()} == {"deferred"})
    assert "NO_ROUTE" in daemon.queue()[0]["reason"]
    status = daemon.status()
    assert not status["healthy"]
    assert status["brokers"]["b"]["state"] == "up"
    assert f"broker b does not take tasks for queue '{queue}'" in status["problems"][0]
    daemon.kill()
    for n in range(10, 20):
        (incoming / f"{n}.csv").write_text("1")
    daemon.start()
    eventually(lambda: [bool(row["id"]) for row in daemon.queue()] == [True] * 20)
    rows = daemon.queue()
    ids = [row["id"] for row in sorted(rows, key=lambda row: row["since"])]
    declare(rabbit_server.url, queue)
    eventually(lambda: daemon.queue() == [])
    eventually(lambda: daemon.status()["healthy"])
    assert consume(rabbit_server.url, queue) == ids
