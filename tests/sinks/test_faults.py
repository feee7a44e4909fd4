"""What brokers do at night: each fault defers, holds up nothing else, and ends in ten seconds."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import kombu
import pytest

from tests.servers.brokers import RabbitServer, RedisServer, free_port
from tests.support.backlog import upload
from tests.support.deadline import eventually
from tests.support.needs import need
from tests.support.publishing import Publishers, consume, declare, delete, lines
from watchman.sinks.publishing.publisher import BATCH
from watchman.uploads.upload import State

#: Seconds after the cure of a fault within which everything has arrived.
RECOVERED = 10.0

#: Seconds that a publisher may take to stop, whatever its broker does.
STOPPED = 6.0


@dataclass
class Fault:
    """Something wrong with one queue: how it comes, how it is cured, what the reason says."""

    make: Callable[[RabbitServer, str], None]
    cure: Callable[[RabbitServer, str], None]
    reason: str
    exchange: bool = False
    declare: bool = True
    url: Callable[[RabbitServer], str] = lambda server: server.url


def nothing(server: RabbitServer, queue: str) -> None:
    pass


def exchange_of(queue: str) -> kombu.Exchange:
    return kombu.Exchange(queue, type="direct")


def make_exchange(server: RabbitServer, queue: str) -> None:
    with kombu.Connection(server.url) as connection, closing(connection.channel()) as channel:
        exchange_of(queue).bind(channel).declare()


def bind(server: RabbitServer, queue: str) -> None:
    declare(server.url, queue, exchange_of(queue), "key")


def declare_otherwise(server: RabbitServer, queue: str) -> None:
    declare(server.url, queue, **{"x-max-length": 7})


def declare_full(server: RabbitServer, queue: str) -> None:
    declare(server.url, queue, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    with kombu.Connection(server.url) as connection, closing(connection.channel()) as channel:
        kombu.Producer(channel).publish("", routing_key=queue, headers={"id": "full"})


def make_room(server: RabbitServer, queue: str) -> None:
    """Nobody can change a queue's arguments, so a new one takes the place of the full one."""
    delete(server.url, queue)
    declare(server.url, queue)


def forbid(server: RabbitServer, queue: str) -> None:
    server.ctl("add_user", "limited", "secret")
    server.ctl("set_permissions", "limited", f"^(?!{queue}$).*", ".*", ".*")


def allow(server: RabbitServer, queue: str) -> None:
    server.ctl("set_permissions", "limited", ".*", ".*", ".*")


FAULTS = {
    "declared_otherwise_406": Fault(
        declare_otherwise, lambda server, queue: delete(server.url, queue), "PRECONDITION_FAILED"
    ),
    "forbidden_403": Fault(
        forbid,
        allow,
        "ACCESS_REFUSED",
        url=lambda server: server.url.replace("guest:guest", "limited:secret"),
    ),
    "no_exchange_404": Fault(nothing, bind, "no exchange", exchange=True),
    "no_binding": Fault(make_exchange, bind, "NO_ROUTE", exchange=True),
    "no_queue_and_not_declared_by_us": Fault(
        nothing, lambda server, queue: declare(server.url, queue), "NO_ROUTE", declare=False
    ),
    "full_queue_that_rejects": Fault(declare_full, make_room, "refused", declare=False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_one_queue_holds_up_only_that_and_keeps_its_order(
    name: str, rabbit_server: RabbitServer, publish: Publishers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watchman")
    fault, good = FAULTS[name], f"{name}-good"
    declare(rabbit_server.url, good)
    fault.make(rabbit_server, name)
    publisher, uploads = publish(fault.url(rabbit_server), declare=fault.declare)
    options = {"exchange": name, "routing_key": "key"} if fault.exchange else {"queue": name}
    for n in range(100):
        uploads.add(upload(f"bad{n:03d}", **options), upload(f"good{n:03d}", queue=good))
    eventually(lambda: len(uploads.ids(State.DONE)) == 100)
    route = f"exchange {name!r} with routing key 'key'" if fault.exchange else f"queue {name!r}"
    eventually(lambda: fault.reason in publisher.status()["refused"].get(route, ""))
    assert publisher.status()["state"] == "up"
    # It is tried again and again, more comes in meanwhile, and others go on.
    eventually(lambda: uploads.ids(State.DEFERRED).count("id-bad000") >= 3)
    uploads.add(*(upload(f"bad{n:03d}", **options) for n in range(100, 200)))
    began = time.monotonic()
    uploads.add(upload("good100", queue=good))
    eventually(lambda: "id-good100" in uploads.ids(State.DONE), timeout=1)
    assert time.monotonic() - began < 1
    fault.cure(rabbit_server, name)
    eventually(lambda: uploads.unsettled == 0, timeout=RECOVERED)
    assert consume(rabbit_server.url, name) == [f"id-bad{n:03d}" for n in range(200)]
    assert consume(rabbit_server.url, good) == [f"id-good{n:03d}" for n in range(101)]
    refused, again = lines(caplog.records)
    assert refused.startswith("Broker test does not take upload id-bad000: ")
    assert again == f"Broker test takes {route} again."
    eventually(lambda: not publisher.status()["refused"])


def test_tasks_of_a_queue_that_is_nearly_full_keep_their_order(
    rabbit_server: RabbitServer, publish: Publishers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watchman")
    queue = "nearly-full"
    declare(rabbit_server.url, queue, **{"x-max-length": 3, "x-overflow": "reject-publish"})
    publisher, uploads = publish(rabbit_server.url, declare=False)
    uploads.add(*(upload(f"{n:02d}", queue=queue) for n in range(BATCH)))
    eventually(lambda: publisher.status()["refused"])
    arrived: list[str] = []

    def all_arrived() -> bool:
        arrived.extend(consume(rabbit_server.url, queue))
        return uploads.unsettled == 0

    eventually(all_arrived, timeout=30)
    assert arrived + consume(rabbit_server.url, queue) == [f"id-{n:02d}" for n in range(BATCH)]
    assert len(lines(caplog.records)) == 2


def test_without_declare_a_user_who_may_only_write_publishes_to_what_is_there(
    rabbit_server: RabbitServer, publish: Publishers
) -> None:
    rabbit_server.ctl("add_user", "writer", "secret")
    rabbit_server.ctl("set_permissions", "writer", "^$", ".*", "^$")
    declare(rabbit_server.url, "made-by-others", **{"x-max-priority": 10})
    declare(rabbit_server.url, "bound-by-others", exchange_of("theirs"), "key")
    _, uploads = publish(rabbit_server.url.replace("guest:guest", "writer:secret"), declare=False)
    uploads.add(
        upload("low", queue="made-by-others", priority=1),
        upload("high", queue="made-by-others", priority=9),
        upload("bound", exchange="theirs", routing_key="key"),
    )
    eventually(lambda: uploads.unsettled == 0)
    assert not uploads.ids(State.DEFERRED)
    # With a queue that was declared for it RabbitMQ takes high numbers first.
    assert consume(rabbit_server.url, "made-by-others") == ["id-high", "id-low"]
    assert consume(rabbit_server.url, "bound-by-others") == ["id-bound"]


@dataclass
class Outage:
    """Something wrong with a whole RabbitMQ for one user or virtual host."""

    reason: str
    url: str
    cure: tuple[tuple[str, ...], ...]
    make: tuple[tuple[str, ...], ...] = ()


OUTAGES = {
    "login": Outage(
        "ACCESS_REFUSED",
        "clerk:right@{host}//",
        (("change_password", "clerk", "right"),),
        (("add_user", "clerk", "wrong"), ("set_permissions", "clerk", ".*", ".*", ".*")),
    ),
    "vhost": Outage(
        "NOT_ALLOWED",
        "guest:guest@{host}/new",
        (("add_vhost", "new"), ("set_permissions", "-p", "new", "guest", ".*", ".*", ".*")),
    ),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_a_login_or_virtual_host_that_is_refused_is_said_once_and_tried_again(
    name: str, rabbit_server: RabbitServer, publish: Publishers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watchman")
    outage = OUTAGES[name]
    for command in outage.make:
        rabbit_server.ctl(*command)
    url = f"amqp://{outage.url.replace('{host}', f'127.0.0.1:{rabbit_server.port}')}"
    publisher, uploads = publish(url)
    uploads.add(*(upload(f"{n}", queue=f"outage-{name}") for n in range(100)))
    eventually(lambda: publisher.status()["attempts"] >= 3, timeout=20)
    assert publisher.status()["state"] == "down"
    assert outage.reason in publisher.status()["error"]
    for command in outage.cure:
        rabbit_server.ctl(*command)
    eventually(lambda: uploads.unsettled == 0, timeout=RECOVERED)
    assert consume(url, f"outage-{name}") == [f"id-{n}" for n in range(100)]
    down, back = lines(caplog.records)
    assert down.startswith("Broker test is down: ")
    assert outage.reason in down
    assert back == "Broker test is back."


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, which may be maltreated."""
    need("redis-server")
    with RedisServer(tmp_path / "redis", durable=True) as server:
        yield server


REDIS_OUTAGES = {
    "out_of_memory": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "maxmemory"),
    "replica": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "read only replica"),
    "too_few_replicas": (
        "CONFIG SET min-replicas-to-write 1",
        "CONFIG SET min-replicas-to-write 0",
        "NOREPLICAS",
    ),
    "password": ("CONFIG SET requirepass x", "", "Authentication required"),
}


@pytest.mark.parametrize("name", REDIS_OUTAGES)
def test_what_redis_says_of_itself_backs_off_from_all_of_it(
    name: str, redis: RedisServer, publish: Publishers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watchman")
    make, cure, reason = REDIS_OUTAGES[name]
    publisher, uploads = publish(redis.url)
    uploads.add(upload("first"))
    eventually(lambda: uploads.ids(State.DONE))
    if name == "password":
        # What is connected stays logged in.
        redis.ask("CLIENT", "KILL", "TYPE", "normal")
    assert redis.ask(*make.split()) == b"+OK"
    uploads.add(*(upload(f"{n}", queue=f"q{n % 5}") for n in range(100)))
    eventually(lambda: publisher.status()["attempts"] >= 3)
    assert reason in publisher.status()["error"]
    assert uploads.lanes() == {""}
    if cure:
        assert redis.ask(*cure.split()) == b"+OK"
    else:
        redis.kill()
        redis.start()
    eventually(lambda: uploads.unsettled == 0, timeout=RECOVERED)
    for n in range(5):
        assert redis.task_ids(f"q{n}") == [f"id-{m}" for m in range(n, 100, 5)]
    down, back = lines(caplog.records)
    assert down.startswith("Broker test is down: ")
    assert "LPUSH" not in down
    assert back == "Broker test is back."


def test_a_key_of_the_wrong_kind_in_redis_holds_up_only_its_own_queue(
    redis: RedisServer, publish: Publishers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "watchman")
    publisher, uploads = publish(redis.url)
    uploads.add(upload("bad-1", queue="bad"))
    eventually(lambda: uploads.ids(State.DONE))
    # One that was in order when the connection was made, and one that never was.
    for queue in ("bad", "worse"):
        redis.ask("DEL", queue)
        redis.ask("SET", queue, "text")
    for n in range(100):
        uploads.add(*(upload(f"{queue}{n}", queue=queue) for queue in ("bad", "good", "worse")))
    eventually(lambda: sum("good" in done for done in uploads.ids(State.DONE)) == 100)
    eventually(lambda: publisher.status()["refused"].keys() == {"queue 'bad'", "queue 'worse'"})
    assert publisher.status()["state"] == "up"
    assert "WRONGTYPE" in uploads.reasons(State.DEFERRED)["id-bad0"]
    for queue in ("bad", "worse"):
        redis.ask("DEL", queue)
    eventually(lambda: uploads.unsettled == 0, timeout=RECOVERED)
    for queue in ("bad", "worse"):
        assert redis.task_ids(queue) == [f"id-{queue}{n}" for n in range(100)]
    # Not even what was sent along with the first that Redis refused comes twice.
    assert redis.task_ids("good") == [f"id-good{n}" for n in range(100)]
    assert len(lines(caplog.records)) == 4


@pytest.fixture
def silence() -> Iterator[int]:
    """The port of a host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
@pytest.mark.parametrize("first", ["dead", "silent"])
def test_the_second_host_of_a_failover_list_is_used(
    first: str,
    scheme: str,
    silence: int,
    rabbit_server: RabbitServer,
    redis_server: RedisServer,
    publish: Publishers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server: RabbitServer | RedisServer = rabbit_server if scheme == "amqp" else redis_server
    other = f"{scheme}://127.0.0.1:{silence if first == 'silent' else free_port()}"
    queue = f"failover-{first}-{scheme}"
    _, uploads = publish(f"{other};{server.url}")
    uploads.add(*(upload(f"{n}", queue=queue) for n in range(100)))
    eventually(lambda: uploads.unsettled == 0, timeout=RECOVERED)
    assert consume(server.url, queue) == [f"id-{n}" for n in range(100)]
    assert not uploads.ids(State.DEFERRED)
    assert not caplog.records


def test_a_host_that_answers_but_takes_nothing_is_left_for_the_next(
    redis: RedisServer, redis_server: RedisServer, publish: Publishers
) -> None:
    redis.ask("REPLICAOF", "127.0.0.1", "1")
    _, uploads = publish(f"{redis.url};{redis_server.url}")
    uploads.add(upload("a", queue="after-a-replica"))
    eventually(lambda: uploads.ids(State.DONE) == ["id-a"])
    assert redis_server.length("after-a-replica") == 1


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_host_that_never_answers_delays_neither_others_nor_a_stop(
    scheme: str, silence: int, redis_server: RedisServer, publish: Publishers
) -> None:
    publisher, uploads = publish(f"{scheme}://127.0.0.1:{silence}")
    _, others = publish(redis_server.url)
    uploads.add(upload("a"))
    eventually(lambda: uploads.taken == 1)
    began = time.monotonic()
    others.add(*(upload(f"{n}", queue=f"beside-{scheme}") for n in range(100)))
    eventually(lambda: others.unsettled == 0, timeout=2)
    publisher.stop()
    publisher.join()
    assert time.monotonic() - began < STOPPED
    assert uploads.ids(State.DEFERRED) == ["id-a"]


def test_a_broker_that_is_back_is_said_to_be_up_although_nothing_waits_any_more(
    redis: RedisServer, publish: Publishers
) -> None:
    redis.kill()
    publisher, uploads = publish(redis.url)
    uploads.add(upload("a"))
    eventually(lambda: publisher.status()["state"] == "down")
    uploads.drop(0)
    redis.start()
    eventually(lambda: publisher.status()["state"] == "up", timeout=RECOVERED)
    assert redis.length() == 0


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_after_long_and_repeated_outages_nothing_is_lost_and_little_repeated(
    scheme: str, tmp_path: Path, publish: Publishers
) -> None:
    """Killed and frozen under load, for up to a minute; back in ten seconds each time."""
    need("redis-server", "rabbitmq-server", "epmd")
    server: RabbitServer | RedisServer = (
        RabbitServer(tmp_path / "rabbit")
        if scheme == "amqp"
        else RedisServer(tmp_path / "redis", durable=True)
    )
    names: list[str] = []
    with server:
        publisher, uploads = publish(server.url)
        for number, (freeze, seconds) in enumerate(
            [(False, 5), (True, 20), (False, 60), (True, 60), (False, 1), (True, 8)]
        ):
            done = len(uploads.ids(State.DONE))
            more = [f"{number}-{n:04d}" for n in range(3000)]
            names += more
            uploads.add(*map(upload, more))
            eventually(lambda done=done: len(uploads.ids(State.DONE)) > done + 100, timeout=30)
            server.freeze() if freeze else server.kill()
            eventually(lambda: publisher.status()["state"] == "down", timeout=15)
            over = time.monotonic() + seconds
            eventually(lambda over=over: time.monotonic() > over, timeout=seconds + 5)
            server.thaw() if freeze else server.start()
            eventually(lambda: publisher.status()["state"] == "up", timeout=RECOVERED)
            eventually(lambda: uploads.unsettled == 0, timeout=60)
        arrived = consume(server.url)
    assert set(arrived) == {f"id-{name}" for name in names}
    assert len(arrived) < 1.02 * len(names) + 64
    # But for repeats all are in order.
    assert list(dict.fromkeys(arrived)) == [f"id-{name}" for name in names]
