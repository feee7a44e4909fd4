"""Files become tasks: the whole daemon, with real inotify and brokers."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.brokers import RedisServer
from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.inis import INI
from watchman.store.records import encode
from watchman.store.segments import VERSION

Start = Callable[..., Daemon]


def paths(tmp_path: Path) -> Counter[str]:
    """How many tasks were sent for each file, by its name below the watch."""
    tasks = published(tmp_path / "broker")
    assert len({task["id"] for task in tasks}) == len(tasks)
    return Counter(os.path.relpath(task["args"][0], tmp_path / "in") for task in tasks)


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    directory = tmp_path / "in"
    directory.mkdir()
    return directory


def test_directories_made_quickly_lose_no_file_and_none_twice(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    start_watchman(INI)
    script = "for n in $(seq 300); do mkdir -p $n/a/b/c && echo $n > $n/a/b/c/$n.csv; done"
    subprocess.run(["sh", "-c", script], cwd=incoming, check=True)
    wanted = Counter(f"{n}/a/b/c/{n}.csv" for n in range(1, 301))
    eventually(lambda: len(paths(tmp_path)) == 300, timeout=30)
    assert paths(tmp_path) == wanted


def test_what_arrived_while_down_is_sent_once_and_nothing_that_was_sent(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    (incoming / "before.csv").write_text("there at first sight: not sent")
    daemon = start_watchman(INI)
    (incoming / "one.csv").write_text("1")
    eventually(lambda: paths(tmp_path) == {"one.csv": 1})
    daemon.stop()
    (incoming / "two.csv").write_text("2")
    (incoming / "old.csv").write_text("3")
    os.utime(incoming / "old.csv", (1, 1))
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "three.csv").write_text("3")
    moved.rename(incoming / "moved")
    (incoming / "one.csv").chmod(0o600)
    wanted = {"one.csv": 1, "two.csv": 1, "old.csv": 1, "moved/three.csv": 1}
    for _ in range(2):
        daemon.start()
        eventually(lambda: paths(tmp_path) == wanted)
        eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
        assert paths(tmp_path) == wanted
        daemon.stop()


def test_an_existing_file_is_sent_where_the_ini_file_says_so(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    (incoming / "before.csv").write_text("1")
    daemon = start_watchman(INI.replace("{tmp}/in", "{tmp}/in\nexisting = yes"))
    eventually(lambda: paths(tmp_path) == {"before.csv": 1})
    daemon.restart()
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
    assert paths(tmp_path) == {"before.csv": 1}


def test_moves_renames_and_links_within_into_and_out_of_the_watch(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    start_watchman(INI)
    outside = tmp_path / "outside"
    (outside / "d" / "e").mkdir(parents=True)
    (outside / "d" / "e" / "in.csv").write_text("moved in with its directory")
    (outside / "file.csv").write_text("moved in alone")
    (outside / "d").rename(incoming / "d")
    (outside / "file.csv").rename(incoming / "file.csv")
    (incoming / "part.csv.part").write_text("renamed from an excluded name")
    (incoming / "part.csv.part").rename(incoming / "part.csv")
    os.link(incoming / "file.csv", incoming / "link.csv")
    (incoming / "loop").symlink_to(".")
    (incoming / "dangling.csv").symlink_to("nowhere")
    os.mkfifo(incoming / "fifo.csv")
    (incoming / b"\xff\xfe\n'.csv".decode(errors="surrogateescape")).write_text("any name")
    wanted = {"d/e/in.csv", "file.csv", "part.csv", "link.csv", "\udcff\udcfe\n'.csv"}
    eventually(lambda: set(paths(tmp_path)) == wanted)
    (incoming / "d").rename(incoming / "renamed")
    (incoming / "renamed" / "e" / "new.csv").write_text("after the renaming")
    wanted |= {"renamed/e/new.csv"}
    eventually(lambda: set(paths(tmp_path)) == wanted)
    (incoming / "renamed").rename(tmp_path / "gone")
    (tmp_path / "gone" / "e" / "away.csv").write_text("not below the watch any more")
    (incoming / "last.csv").write_text("heard after it")
    eventually(lambda: "last.csv" in paths(tmp_path))
    assert paths(tmp_path) == Counter(wanted | {"last.csv"})


def test_a_broker_that_is_away_delays_nobody_else_and_gets_all_when_it_is_back(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    redis.kill()
    daemon = start_watchman(
        INI
        + f"""
[broker:away]
url = {redis.url}
[task:nc]
pattern = *.nc
broker = away
task = tests.record
queue = away
"""
    )
    for n in range(5):
        (incoming / f"{n}.nc").write_text("x")
        (incoming / f"{n}.csv").write_text("x")
    eventually(lambda: len(paths(tmp_path)) == 5)
    status = eventually(lambda: (s := daemon.status())["brokers"]["away"]["state"] == "down" and s)
    assert not status["healthy"]
    assert "away" in status["problems"][0]
    waiting = [row["id"] for row in daemon.queue()]
    assert len(waiting) == 5
    daemon.kill()
    daemon.start()
    redis.start()
    try:
        eventually(lambda: daemon.queue() == [], timeout=30)
        daemon.stop()
        assert redis.length("away") == 5
        assert redis.task_ids("away") == waiting
    finally:
        redis.stop()


def test_two_daemons_do_not_share_a_spool(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    second = daemon.run("run")
    assert second.returncode == 4
    assert len(second.stderr.strip().splitlines()) == 1
    assert str(daemon.process and daemon.process.pid) in second.stderr


def test_sigterm_ends_it_at_once_when_nothing_is_in_hand(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    began = time.monotonic()
    assert daemon.process is not None
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(20) == 0
    assert time.monotonic() - began < 5
    daemon.process = None


def test_a_watch_that_is_missing_is_waited_for(tmp_path: Path, start_watchman: Start) -> None:
    daemon = start_watchman(INI)
    status = daemon.status()
    assert not status["healthy"]
    assert "in" in status["problems"][0]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("1")
    eventually(lambda: daemon.status()["healthy"])
    (tmp_path / "in" / "b.csv").write_text("1")
    eventually(lambda: "b.csv" in paths(tmp_path))


def test_a_journal_of_a_newer_version_ends_a_start_and_is_left_as_it_is(
    tmp_path: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI, started=False)
    segment = tmp_path / "spool/journal/00000001.jsonl"
    segment.parent.mkdir(parents=True)
    newer = encode({"event": "segment", "version": VERSION + 1})
    segment.write_bytes(newer)
    done = daemon.run("run")
    assert done.returncode == 2, "which supervisord.conf takes for an end"
    assert "Start the newer one" in done.stderr
    assert segment.read_bytes() == newer


GROWING = """
import gc
from watchman.daemon import collect_young
collect_young()
class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        global dead
        dead += 1
dead, before = 0, gc.get_stats()[2]["collections"]
kept = [Cycle() and [n] for n in range(500_000)]
print(dead > 400_000, gc.get_stats()[2]["collections"] - before)
"""


def test_memory_that_grows_is_not_searched_as_a_whole_while_others_wait() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWING], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "0"], "cycles that die young are found all the same"
