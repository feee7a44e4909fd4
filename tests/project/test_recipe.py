"""The recipe in docs/, word for word but for places: real brokers, real workers, the whole way."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.project.test_docs import snippets
from tests.servers.brokers import CeleryWorker, RabbitServer, RedisServer
from tests.servers.daemon import Daemon

#: Where the recipe has its brokers.
LIZARD = "rabbitmq.example.org:5672"
THREEDI = "redis://redis.example.org:6379/0"

#: What is uploaded, and the task it becomes: broker, queue, name, args, kwargs, priority, expires.
EXPECTED: dict[str, tuple[str, str, str, list[str], dict[str, str], int, bool]] = {
    "alice/events/a.csv": (
        *("lizard", "events", "lizard_nxt.tasks.import_events", ["{path}"]),
        *({"filename": "a.csv", "bytes": "5"}, 9, True),
    ),
    "alice/b.csv": (
        *("lizard", "celery", "lizard_nxt.tasks.import_timeseries", ["{path}"], {}, 0, True),
    ),
    "bob/c.tif": (
        *("lizard", "single_worker", "lizard_nxt.tasks.import_raster_task", ["{path}"]),
        *({}, 0, False),
    ),
    "bob/events/d.nc": (
        *("3di", "grids", "threedi.tasks.import_grid", []),
        *({"path": "{path}", "source": "ftp"}, 0, False),
    ),
}


@pytest.fixture
def vhost(rabbit_server: RabbitServer) -> None:
    """The recipe's login and virtual host."""
    rabbit_server.ctl("add_vhost", "lizard")
    rabbit_server.ctl("add_user", "watchman", "secret")
    rabbit_server.ctl("set_permissions", "-p", "lizard", "watchman", ".*", ".*", ".*")


def recipe(tmp_path: Path, rabbit: RabbitServer, redis: RedisServer) -> str:
    (ini,) = snippets("cfg")
    places = {
        "/var/lib/watchman\n": f"{tmp_path}/spool\nsocket = {tmp_path}/watchman.sock\n",
        "/srv/ftp": f"{tmp_path}/ftp",
        "/srv/archive": f"{tmp_path}/archive",
        LIZARD: f"127.0.0.1:{rabbit.port}",
        THREEDI: redis.url,
    }
    for old, new in places.items():
        assert old in ini
        ini = ini.replace(old, new)
    return ini


def filled(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return {name: one.replace("{path}", path) for name, one in value.items()}
    return [one.replace("{path}", path) for one in value]


@pytest.mark.usefixtures("vhost")
def test_uploads_go_to_the_brokers_queues_and_workers_of_the_recipe(
    tmp_path: Path,
    rabbit_server: RabbitServer,
    redis_server: RedisServer,
    start_watchman: Callable[..., Daemon],
    celery_worker: Callable[..., CeleryWorker],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIZARD_PASSWORD", "secret")
    (settings,) = snippets("python")
    (tmp_path / "celeryconfig.py").write_text(settings)
    (tmp_path / "ftp").mkdir()
    (tmp_path / "archive").mkdir()
    daemon = start_watchman(recipe(tmp_path, rabbit_server, redis_server))
    for name in EXPECTED:
        (tmp_path / "ftp" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ftp" / name).write_text("12345")
    (tmp_path / "ftp" / "alice" / "e.txt").write_text("no section matches it")
    tasks = {expected[2] for expected in EXPECTED.values()}
    url = f"amqp://watchman:secret@127.0.0.1:{rabbit_server.port}/lizard"
    (priorities,) = re.findall(r"CELERY_QUEUE_MAX_PRIORITY = (\d+)", settings)
    workers = {
        # One that declares its queues as the recipe's settings have it.
        "lizard": celery_worker(
            url,
            queues=["events", "celery", "single_worker"],
            tasks=tasks,
            settings={"task_queue_max_priority": int(priorities)},
        ),
        "3di": celery_worker(redis_server.url, queues=["grids"], tasks=tasks),
    }
    received = {
        task["watchman"]["original"]: (broker, task)
        for broker, worker in workers.items()
        for task in worker.wait_for(3 if broker == "lizard" else 1)
    }
    assert len(received) == len(EXPECTED)
    for name, (broker, queue, task, args, kwargs, priority, expires) in EXPECTED.items():
        path = f"{tmp_path}/archive/{name}"
        where, got = received[f"{tmp_path}/ftp/{name}"]
        assert Path(path).read_text() == "12345"
        assert not (tmp_path / "ftp" / name).exists()
        assert {"accepted", "rejected"} < {one.name for one in Path(path).parent.iterdir()}
        assert (where, got["task"]) == (broker, task)
        assert (got["args"], got["kwargs"]) == (filled(args, path), filled(kwargs, path))
        assert got["delivery"]["routing_key"] == queue
        assert (got["delivery"]["priority"] or 0) == priority
        assert bool(got["headers"]["expires"]) == expires
        explained = daemon.run("explain", f"{tmp_path}/ftp/{name}").stdout
        assert f"queue     {queue}\n" in explained
    assert (
        "[task:timeseries] would match as well"
        in daemon.run("explain", f"{tmp_path}/ftp/alice/events/a.csv").stdout
    )
    status = daemon.status()
    # What no task matches is moved all the same.
    assert (status["uploads"]["done"], status["watches"]["ftp"]["unmatched"]) == (5, 0)
    assert (tmp_path / "archive" / "alice" / "e.txt").exists()
    sent_again = daemon.send(f"{tmp_path}/archive/alice/b.csv")
    assert sent_again.returncode == 0, sent_again.stderr
    (again,) = workers["lizard"].wait_for(4)[3:]
    assert again["args"] == [f"{tmp_path}/archive/alice/b.csv"]
    assert again["watchman"]["original"] == f"{tmp_path}/ftp/alice/b.csv"
    assert daemon.run("check", "--brokers").returncode == 0
