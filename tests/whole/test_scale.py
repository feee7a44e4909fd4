"""A million uploads that wait, a million files: what they take, and each is dispatched once."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.servers.brokers import RedisServer
from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.deadline import eventually
from watchman.store.segments import Segments
from watchman.uploads.upload import Task

INI = """
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
drain = 0
[broker:b]
url = redis://127.0.0.1:PORT/0
[watch:in]
path = {tmp}/in
existing = yes
[task:csv]
pattern = *.csv
broker = b
task = tests.record
queue = q0
"""

MILLION = 1_000_000

#: Bytes that the daemon may take with a million uploads waiting; what it takes beyond an idle one
#: for each of them, and for what it remembers of the latest.
MOST, EACH, LATEST = 300_000_000, 250, 15_000_000

#: Queues that the uploads wait for, by turns.
QUEUES = ("q0", "q1", "q2")

#: Seconds for whatever is done to a million of them.
LONG = 3600.0


def start(daemon: Daemon, timeout: float = LONG) -> None:
    daemon.begin()
    eventually(daemon.is_ready_or_dead, timeout=timeout)


def uploads(daemon: Daemon) -> int:
    counts = daemon.status()["uploads"]
    return int(counts["waiting"] + counts["deferred"])


def pop(connection: "redis.Redis[bytes]", ids: dict[str, list[str]]) -> int:
    """Take what has come to the queues, as a worker does; how many in all."""
    for queue, known in ids.items():
        for message in connection.rpop(queue, 10_000) or ():
            known.append(json.loads(message)["headers"]["id"])
    return sum(map(len, ids.values()))


@pytest.mark.parametrize(
    ("count", "sent"),
    [
        (50_000, 1_000),
        pytest.param(MILLION, MILLION, marks=[pytest.mark.soak, pytest.mark.timeout(3 * LONG)]),
    ],
)
def test_uploads_that_wait_for_a_dead_broker_take_little_memory_and_keep_their_order(
    tmp_path: Path, start_watchman: Callable[..., Daemon], count: int, sent: int
) -> None:
    broker = RedisServer(tmp_path / "redis")
    ini = INI.replace("PORT", str(broker.port))
    idle = start_watchman(ini, directory=tmp_path / "idle")
    eventually(lambda: idle.status()["brokers"])
    with bulk.roomy_directory(2 * count) as directory:
        daemon = start_watchman(ini, directory=directory, started=False)
        queues = itertools.cycle(QUEUES)
        ids = bulk.write_journal(
            directory / "spool",
            bulk.create(directory / "in", range(count)),
            lambda path: Task("csv", "b", "tests.record", [path], {}, {"queue": next(queues)}),
        )
        start(daemon)
        assert uploads(daemon) == count
        eventually(lambda: daemon.status()["watches"]["in"]["last_scan"], timeout=LONG)
        for _ in bulk.create(directory / "in", range(count, count + 500)):
            pass
        eventually(lambda: uploads(daemon) == count + 500, timeout=60)
        rows = daemon.run("queue", "--json", "--limit", "5").stdout.splitlines()
        assert [json.loads(row)["id"] for row in rows] == ids[:5]
        allowed = bulk.peak_memory(idle) + LATEST + EACH * count
        assert bulk.peak_memory(daemon) < min(allowed, MOST)
        with broker, redis.Redis(port=broker.port) as connection:
            taken: dict[str, list[str]] = {queue: [] for queue in QUEUES}
            eventually(lambda: pop(connection, taken) >= sent, timeout=LONG)
            if sent == count:
                eventually(lambda: uploads(daemon) == 0, timeout=60)
                pop(connection, taken)
                assert [len(one) for one in taken.values()] == [count // 3 + 501, *[count // 3] * 2]
                eventually(lambda: bulk.size_of(directory / "spool/journal") < 64 << 20)
            for number, queue in enumerate(QUEUES):
                wanted = ids[number :: len(QUEUES)]
                assert taken[queue][: len(wanted)] == wanted[: len(taken[queue])]
        assert bulk.peak_memory(daemon) < min(allowed, MOST)
        daemon.stop()


@pytest.mark.soak
@pytest.mark.timeout(LONG)
def test_a_restart_on_a_million_files_dispatches_only_what_is_new(
    tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    with bulk.roomy_directory(MILLION) as directory:
        ini = INI.replace("PORT", "1").replace("existing = yes\n", "")
        daemon = start_watchman(ini, directory=directory, started=False)
        for _ in bulk.create(directory / "in", range(MILLION)):
            pass
        for _ in bulk.create(directory / "outside", range(MILLION, MILLION + 1_000)):
            pass
        wanted: set[str] = set()
        for turn in range(3):
            start(daemon)
            eventually(lambda: daemon.status()["watches"]["in"]["last_scan"], timeout=LONG)
            assert bulk.peak_memory(daemon) < MOST
            daemon.stop()
            assert f"Scanned watch in: {MILLION + len(wanted)} files" in daemon.log[daemon.begun :]
            if turn == 0:
                wanted |= set(bulk.create(directory / "in/new", range(1_000)))
                (directory / "outside").rename(directory / "in/moved")
                moved = (directory / "in/moved").rglob("*.csv")
                wanted |= {str(path) for path in moved}
                assert len(wanted) == 2_000
            else:
                assert accepted(directory) == dict.fromkeys(wanted, 1)


@pytest.mark.soak
@pytest.mark.timeout(2 * LONG)
@pytest.mark.parametrize("wait", ["proftpd = yes\nconfirm = 5s", "settle = 1h"])
def test_a_million_finds_that_have_to_wait_are_held_in_bounded_memory(
    tmp_path: Path, start_watchman: Callable[..., Daemon], wait: str
) -> None:
    with bulk.roomy_directory(MILLION) as directory:
        ini = INI.replace("PORT", "1").replace("existing = yes", f"existing = yes\n{wait}")
        daemon = start_watchman(ini, directory=directory, started=False)
        paths = set(bulk.create(directory / "in", range(MILLION)))
        start(daemon)
        if wait.startswith("settle"):
            # Nothing is older than an hour yet.
            eventually(lambda: "many are held" in daemon.log, timeout=LONG)
            assert daemon.status()["uploads"]["noticed"] >= 50_000
            assert bulk.peak_memory(daemon) < MOST
            daemon.configure(ini.replace(wait, "settle = 0"))
            assert daemon.run("reload").returncode == 0
        eventually(lambda: uploads(daemon) == MILLION, timeout=LONG)
        assert bulk.peak_memory(daemon) < MOST
        daemon.stop()
        assert accepted(directory) == dict.fromkeys(paths, 1)


def accepted(directory: Path) -> Counter[str]:
    """How many uploads the journal and its history have of each file."""
    spool = directory / "spool"
    lines = Segments(str(spool / "journal"), str(spool / "history")).lines()
    records = (json.loads(line) for line in lines if b'"event":"accepted"' in line)
    return Counter(record["path"] for record in records)
