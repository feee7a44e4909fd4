"""The embedded broker: whole and durable messages, for consumers that are stock kombu."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.exceptions import ChannelError

from tests.servers.brokers import ROOT
from tests.support.backlog import Uploads, upload
from tests.support.deadline import eventually
from tests.support.needs import need
from watchman.config.settings import BrokerSettings
from watchman.sinks.publishing.celeryapp import embedded_options
from watchman.sinks.publishing.filesystem import STALE
from watchman.sinks.publishing.publisher import Publisher
from watchman.uploads.upload import State

PRODUCER = """
import sys, kombu
from watchman.sinks.publishing.celeryapp import embedded_options
connection = kombu.Connection(
    transport="watchman.sinks.publishing.filesystem:Transport",
    transport_options=embedded_options(sys.argv[1]),
)
queue = connection.SimpleQueue("work")
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    queue.put({"number": number})
"""

CONSUMER = """
import sys, time, kombu
from watchman.sinks.publishing.celeryapp import embedded_options
connection = kombu.Connection("filesystem://", transport_options=embedded_options(sys.argv[1]))
queue = connection.SimpleQueue("work")
idle = time.monotonic()
while time.monotonic() - idle < 3:
    try:
        message = queue.get(block=False)
    except queue.Empty:
        time.sleep(0.01)
        continue
    idle = time.monotonic()
    print(message.payload["number"], flush=True)
    message.ack()
"""


def embedded(folder: Path) -> Any:
    return kombu.Connection(
        transport="watchman.sinks.publishing.filesystem:Transport",
        transport_options=embedded_options(f"filesystem://{folder}"),
    )


def stock(folder: Path) -> Any:
    return kombu.Connection(
        "filesystem://", transport_options=embedded_options(f"filesystem://{folder}")
    )


def bodies(connection: Any, queue: str = "work") -> list[Any]:
    """All that waits in a queue."""
    found = []
    channel = connection.channel()
    while message := channel.basic_get(queue, no_ack=True):
        found.append(channel.message_to_python(message).payload)
    return found


def test_two_producers_and_two_stock_consumers_lose_and_repeat_nothing(tmp_path: Path) -> None:
    url = f"filesystem://{tmp_path}/broker"
    count = 300
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")}

    def start(program: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, url, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    producers = [start(PRODUCER, "0", str(count)), start(PRODUCER, str(count), str(2 * count))]
    eventually((tmp_path / "broker/control").exists)
    consumers = [start(CONSUMER) for _ in range(2)]
    received: list[int] = []
    for process in producers + consumers:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        received += map(int, output.split())
    assert sorted(received) == list(range(2 * count))


def test_messages_of_one_connection_are_consumed_in_order(tmp_path: Path) -> None:
    with embedded(tmp_path) as connection, connection.SimpleQueue("work") as queue:
        for number in range(20):
            queue.put(number)
    with stock(tmp_path) as connection:
        assert bodies(connection) == list(range(20))


def test_an_unfinished_write_is_invisible_to_consumers_and_swept_once_it_is_old(
    tmp_path: Path,
) -> None:
    fresh, old = tmp_path / ".1_a.work.msg.tmp", tmp_path / ".2_b.work.msg.tmp"
    for path in (fresh, old):
        path.write_text('{"half of')
    os.utime(old, (time.time() - STALE - 1,) * 2)
    with stock(tmp_path) as connection:
        assert bodies(connection) == []
    with embedded(tmp_path) as connection:
        connection.connect()
        assert fresh.exists()
        assert not old.exists()


def test_nothing_but_the_message_is_left_of_a_write(tmp_path: Path) -> None:
    with embedded(tmp_path) as connection, connection.SimpleQueue("work") as queue:
        queue.put(1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0].endswith(".work.msg")
    assert names[1:] == ["control"]
    assert [path.name for path in (tmp_path / "control").iterdir()] == ["work.exchange"]


def traced(folder: Path, *options: str) -> tuple[int, list[str]]:
    """Put a message under strace; return the exit code and the calls that were about the folder."""
    log = folder.parent / "strace.log"
    paths = [word for path in (folder, folder / "control") for word in ("-P", str(path))]
    producer = [sys.executable, "-c", PRODUCER, str(folder), "0", "1"]
    strace = ["strace", "-o", str(log), *paths, *options]
    ended = subprocess.run([*strace, *producer], cwd=ROOT, check=False)
    return ended.returncode, log.read_text().splitlines()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_writer_killed_at_any_call_leaves_a_whole_message_or_nothing(tmp_path: Path) -> None:
    need("strace")
    folder = tmp_path / "broker"
    (folder / "control").mkdir(parents=True)
    code, made = traced(folder)
    counted = Counter(line.partition("(")[0] for line in made)
    assert (code, counted["linkat"]) == (0, 2)
    for call, when in [("fsync", counted["fsync"]), ("linkat", 1), ("linkat", 2), ("openat", 5)]:
        shutil.rmtree(folder)
        (folder / "control").mkdir(parents=True)
        code, _ = traced(folder, "-e", f"inject={call}:signal=SIGKILL:when={when}")
        assert code == -signal.SIGKILL
        for name in names(folder):
            assert name == "control/work.exchange" or (name[0] != "." and name.endswith(".msg"))
        whole = sum(name.endswith(".msg") for name in names(folder))
        with stock(folder) as connection:
            assert bodies(connection) == [{"number": 0}] * whole


def test_a_filesystem_without_unnamed_files_is_written_to_all_the_same(tmp_path: Path) -> None:
    need("strace")
    folder = tmp_path / "broker"
    (folder / "control").mkdir(parents=True)
    _, made = traced(folder)
    opened = [line for line in made if line.startswith("openat(")]
    tries = [n for n, line in enumerate(opened, 1) if "O_TMPFILE" in line]
    shutil.rmtree(folder)
    (folder / "control").mkdir(parents=True)
    # What follows on the first refusal is one call more.
    first, second = tries[0], tries[1] + 1
    inject = f"inject=openat:error=EOPNOTSUPP:when={first}..{second}+{second - first}"
    code, made = traced(folder, "-e", inject)
    assert code == 0
    assert sum("O_TMPFILE" in line and "INJECTED" in line for line in made) == 2
    found = names(folder)
    assert found[1:] == ["control/work.exchange"]
    with stock(folder) as connection:
        assert bodies(connection) == [{"number": 0}]


def test_bindings_of_stock_and_own_connections_stand_together(tmp_path: Path) -> None:
    exchange = kombu.Exchange("events", type="topic")
    for connect, name in ((embedded, "first"), (stock, "second"), (embedded, "third")):
        with connect(tmp_path) as connection:
            kombu.Queue(name, exchange, routing_key="#").bind(connection.channel()).declare()
    with embedded(tmp_path) as connection:
        exchange.bind(connection.channel()).declare()
        connection.Producer().publish("all", exchange="events", routing_key="any")
    with stock(tmp_path) as connection:
        for name in ("first", "second", "third"):
            assert bodies(connection, name) == ["all"]


def test_a_damaged_exchange_file_is_written_anew(tmp_path: Path) -> None:
    file = tmp_path / "control/events.exchange"
    file.parent.mkdir()
    file.write_text('[["", "", "wo')
    exchange = kombu.Exchange("events", type="topic")
    with embedded(tmp_path) as connection:
        channel = connection.channel()
        with pytest.raises(ChannelError, match="damaged"):
            channel.get_table("events")
        kombu.Queue("work", exchange, routing_key="#").bind(channel).declare()
        assert [binding.queue for binding in channel.get_table("events")] == ["work"]


def test_a_queue_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    with embedded(tmp_path / "broker") as connection, pytest.raises(ValueError, match="file name"):
        connection.channel()._put("../escaped", {})


def test_a_folder_that_goes_away_defers_and_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    uploads = Uploads()
    settings = BrokerSettings("embedded", f"filesystem://{folder}")
    publisher = Publisher(settings, take=uploads.take, report=uploads.report)
    publisher.start()
    uploads.add(upload("a"))
    eventually(lambda: uploads.ids(State.DONE) == ["id-a"])
    shutil.rmtree(folder)
    folder.write_text("in the way")
    uploads.add(upload("b"))
    eventually(lambda: uploads.ids(State.DEFERRED))
    assert "Not a directory" in uploads.reasons(State.DEFERRED)["id-b"]
    folder.unlink()
    eventually(lambda: uploads.ids(State.DONE) == ["id-a", "id-b"])
    publisher.stop()
    publisher.join()
    assert len(list(folder.glob("*.celery.msg"))) == 1
