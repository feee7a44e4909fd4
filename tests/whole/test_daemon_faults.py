"""One daemon with every kind of broken broker at once: none delays another, a command or a stop."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.servers.brokers import RabbitServer, RedisServer, free_port
from tests.servers.daemon import Daemon
from tests.sinks.test_faults import declare_full, declare_otherwise, make_room
from tests.support.deadline import eventually
from tests.support.needs import need
from tests.support.publishing import consume, declare, delete

Start = Callable[..., Daemon]

#: Seconds after the cure of a fault within which everything has arrived.
RECOVERED = 10.0

#: Seconds that a query may take, whatever is wrong.
ANSWERED = 2.0

#: Seconds that a stop may take beyond `drain`, whatever is wrong.
STOPPED = 8.0

DRAIN = 1

HEAD = f"""
[watchman]
spool = {{tmp}}/spool
socket = {{tmp}}/watchman.sock
drain = {DRAIN}s
[watch:in]
path = {{tmp}}/in
"""

SECTION = """
[broker:{name}]
url = {url}
declare = {declare}
[task:{name}]
pattern = */{name}-*
broker = {name}
task = tests.record
queue = {queue}
"""

#: Uploads for each broker.
COUNT = 5


@dataclass
class Broken:
    """A broker as the INI file has it, what is said of it, and how it is cured, if it can be."""

    url: str
    reason: str = ""
    cure: Callable[[], object] | None = None
    #: Where the tasks are in the end.
    found: Callable[[], list[str]] | None = None
    declare: str = "yes"
    queue: str = field(default="", init=False)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield server.getsockname()[1]


@pytest.fixture
def black_hole() -> Iterator[int]:
    """The port of a host from which nothing comes back, not even that nobody listens.

    Linux drops what would open a connection while the queue of those to be accepted is full.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = server.getsockname()[1]
        for _ in range(4):
            peer = stack.enter_context(socket.socket())
            peer.setblocking(False)
            peer.connect_ex(("127.0.0.1", port))
        with pytest.raises(TimeoutError), socket.create_connection(("127.0.0.1", port), 0.3):
            pass
        yield port


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, RedisServer]]:
    """A Redis for each way to be broken."""
    need("redis-server")
    with contextlib.ExitStack() as stack:
        names = ("dead", "frozen", "oom", "readonly")
        yield {name: stack.enter_context(RedisServer(tmp_path / name)) for name in names}


def test_every_broken_broker_at_once_delays_no_other_no_command_and_no_stop(
    tmp_path: Path,
    silent: int,
    black_hole: int,
    servers: dict[str, RedisServer],
    rabbit_server: RabbitServer,
    redis_server: RedisServer,
    start_watchman: Start,
) -> None:
    amqp, redis = rabbit_server.url, redis_server.url
    no_such = amqp.removesuffix("//")
    brokers = {
        "goodredis": Broken(redis),
        "goodamqp": Broken(amqp),
        "failoverdead": Broken(f"redis://127.0.0.1:{free_port()}/0;{redis}"),
        "failoversilent": Broken(f"amqp://127.0.0.1:{silent};{amqp}"),
        "failoverhole": Broken(f"redis://127.0.0.1:{black_hole}/0;{redis}"),
        "nobody": Broken(f"amqp://127.0.0.1:{free_port()}//", "refused"),
        "silentredis": Broken(f"redis://127.0.0.1:{silent}/0", "imeout"),
        "silentamqp": Broken(f"amqp://127.0.0.1:{silent}//", "timed out"),
        "holeredis": Broken(f"redis://127.0.0.1:{black_hole}/0", "imeout"),
        "holeamqp": Broken(f"amqp://127.0.0.1:{black_hole}//", "timed out"),
        "login": Broken(amqp.replace("guest:guest", "guest:wrong"), "ACCESS_REFUSED"),
        "vhost": Broken(f"{no_such}/nosuch", "not found"),
        "dead": Broken(servers["dead"].url, "refused", servers["dead"].start),
        "frozen": Broken(servers["frozen"].url, "imeout", servers["frozen"].thaw),
        "oom": Broken(
            servers["oom"].url,
            "maxmemory",
            lambda: servers["oom"].ask("CONFIG", "SET", "maxmemory", "0"),
        ),
        "readonly": Broken(
            servers["readonly"].url,
            "read only",
            lambda: servers["readonly"].ask("REPLICAOF", "NO", "ONE"),
        ),
        "noqueue": Broken(amqp, "NO_ROUTE", lambda: declare(amqp, "atonce-noqueue"), declare="no"),
        "otherwise": Broken(amqp, "PRECONDITION_FAILED", lambda: delete(amqp, "atonce-otherwise")),
        "reject": Broken(
            amqp, "refused it", lambda: make_room(rabbit_server, "atonce-reject"), declare="no"
        ),
        "forbidden": Broken(
            amqp.replace("guest:guest", "reader:secret"),
            "ACCESS_REFUSED",
            lambda: rabbit_server.ctl("set_permissions", "reader", ".*", ".*", ".*"),
            declare="no",
        ),
        "deleted": Broken(amqp),
        "deletedbyothers": Broken(
            amqp, "NO_ROUTE", lambda: declare(amqp, "atonce-deletedbyothers"), declare="no"
        ),
    }
    for name, broker in brokers.items():
        broker.queue = f"atonce-{name}"
    declare_otherwise(rabbit_server, "atonce-otherwise")
    declare_full(rabbit_server, "atonce-reject")
    declare(amqp, "atonce-forbidden")
    declare(amqp, "atonce-deletedbyothers")
    rabbit_server.ctl("add_user", "reader", "secret")
    rabbit_server.ctl("set_permissions", "reader", ".*", "^$", ".*")
    servers["dead"].kill()
    servers["frozen"].freeze()
    servers["oom"].ask("CONFIG", "SET", "maxmemory", "1")
    servers["readonly"].ask("REPLICAOF", "127.0.0.1", "1")
    (tmp_path / "in").mkdir()
    ini = HEAD + "".join(
        SECTION.format(name=name, url=broker.url, queue=broker.queue, declare=broker.declare)
        for name, broker in brokers.items()
    )
    daemon = start_watchman(ini)

    def upload(number: int) -> None:
        for name in brokers:
            (tmp_path / "in" / f"{name}-{number}").write_text("1")

    def answered() -> dict[str, Any]:
        """See that queries are answered in time; return what `status` says."""
        began = time.monotonic()
        status = daemon.status()
        daemon.queue()
        assert time.monotonic() - began < ANSWERED
        return status

    deleted = ("deleted", "deletedbyothers")
    for name in deleted:
        (tmp_path / "in" / f"{name}-before").write_text("1")
    eventually(lambda: answered()["uploads"]["done"] == len(deleted))
    for name in deleted:
        assert len(consume(amqp, f"atonce-{name}")) == 1
        delete(amqp, f"atonce-{name}")
    for number in range(COUNT):
        upload(number)
    good = [name for name, broker in brokers.items() if not broker.reason]
    broken = {name: broker for name, broker in brokers.items() if broker.reason}

    eventually(lambda: redis_server.length("atonce-goodredis") == COUNT, timeout=3)
    due = len(deleted) + COUNT * len(good)
    eventually(lambda: answered()["uploads"]["done"] == due, timeout=RECOVERED)

    def is_said(name: str, *, tries: int) -> bool:
        """Whether a broker has been tried so often and is said to be broken, and why."""
        one = answered()["brokers"][name]
        said = f"{one['error']} {one['refused']}"
        tried = one["attempts"] + sum(held["attempts"] for held in one["held_up"])
        return tried >= tries and brokers[name].reason in said

    for name in broken:
        eventually(lambda name=name: is_said(name, tries=2), timeout=20)
    # As quick as without all that.
    (tmp_path / "in" / "goodredis-again").write_text("1")
    eventually(lambda: redis_server.length("atonce-goodredis") == COUNT + 1, timeout=2)
    assert not answered()["healthy"]
    rows = daemon.queue()
    assert len(rows) == COUNT * len(broken)
    assert {row["state"] for row in rows} == {"deferred"}
    for name in broken:
        told = [text for text in daemon.log.splitlines() if f"Broker {name} " in text]
        assert len(told) == 1, told
    began = time.monotonic()
    daemon.stop()
    assert time.monotonic() - began < DRAIN + STOPPED
    daemon.start()
    assert len(daemon.queue()) == COUNT * len(broken)
    curable = {name: broker for name, broker in broken.items() if broker.cure}
    for name in curable:
        eventually(lambda name=name: is_said(name, tries=1), timeout=20)
    for broker in curable.values():
        assert broker.cure is not None
        broker.cure()
    due = COUNT * len(curable)
    eventually(lambda: answered()["uploads"]["done"] == due, timeout=RECOVERED)
    for name in (*good, *curable):
        url = brokers[name].url.rpartition(";")[2]
        arrived = consume(url, f"atonce-{name}")
        if name == "frozen":  # it may have taken what it did not answer
            arrived = list(dict.fromkeys(arrived))
        extra = 1 if name == "goodredis" else 0
        assert len(arrived) == len(set(arrived)) == COUNT + extra, (name, arrived)
    left = {row["broker"] for row in daemon.queue()}
    assert left == broken.keys() - curable.keys()
    began = time.monotonic()
    daemon.stop()
    assert time.monotonic() - began < DRAIN + STOPPED


def test_an_alarm_of_rabbitmq_delays_neither_commands_nor_a_stop(
    tmp_path: Path, rabbit_server: RabbitServer, redis_server: RedisServer, start_watchman: Start
) -> None:
    (tmp_path / "in").mkdir()
    ini = HEAD
    for name, url in (("amqp", rabbit_server.url), ("redis", redis_server.url)):
        ini += SECTION.format(name=name, url=url, queue=f"alarm-{name}", declare="yes")
    daemon = start_watchman(ini)
    (tmp_path / "in" / "amqp-0").write_text("1")
    eventually(lambda: daemon.status()["uploads"]["done"] == 1)
    rabbit_server.ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        for number in range(1, COUNT):
            (tmp_path / "in" / f"amqp-{number}").write_text("1")
        eventually(lambda: daemon.status()["brokers"]["amqp"]["state"] == "blocked")
        (tmp_path / "in" / "redis-0").write_text("1")
        eventually(lambda: redis_server.length("alarm-redis") == 1, timeout=2)
        began = time.monotonic()
        assert any("blocked" in problem for problem in daemon.status()["problems"])
        assert len(daemon.queue()) == COUNT - 1
        assert time.monotonic() - began < ANSWERED
        assert daemon.log.count("Broker amqp ") == 1
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < DRAIN + STOPPED
        daemon.start()
    finally:
        rabbit_server.ctl("set_vm_memory_high_watermark", "absolute", "1GB")
    eventually(lambda: daemon.queue() == [], timeout=RECOVERED)
    assert len(set(consume(rabbit_server.url, "alarm-amqp"))) == COUNT
