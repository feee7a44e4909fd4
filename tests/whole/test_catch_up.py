"""What arrived while watchman was down is dispatched at its start: all, once, nothing else."""

import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support import bulk
from tests.support.deadline import eventually
from tests.support.inis import INI, csv_tasks
from watchman.uploads.upload import Task

#: Files that were done before.
DONE = 10_000

Start = Callable[..., Daemon]


def paths(directory: Path) -> Counter[str]:
    """How many tasks were sent for each file, by its path below the watches' directory."""
    tasks = published(directory / "broker")
    assert len({task["id"] for task in tasks}) == len(tasks)
    return Counter(os.path.relpath(task["args"][0], directory) for task in tasks)


def scanned(daemon: Daemon, *watches: str) -> None:
    """Wait until each watch was scanned as a whole since the start, and all is decided."""
    for watch in watches or ("in",):
        eventually(lambda name=watch: daemon.status()["watches"][name]["last_scan"], timeout=60)
    eventually(lambda: daemon.queue() == [], timeout=60)


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill])
def test_files_with_any_times_and_directories_moved_in_are_sent_once(
    tmp_path: Path, start_watchman: Start, end: Callable[[Daemon], None]
) -> None:
    incoming, outside = tmp_path / "in", tmp_path / "outside"
    incoming.mkdir()
    for name in ("deep/er/old.csv", "deep/old.csv", "file.csv", "dir/done.csv"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_text("older than the daemon")
    daemon = start_watchman(INI)
    (outside / "dir").rename(incoming / "dir")
    (incoming / "done.csv").write_text("1")
    wanted = Counter({"in/done.csv": 1, "in/dir/done.csv": 1})
    eventually(lambda: paths(tmp_path) == wanted)
    eventually(lambda: daemon.queue() == [])
    before = time.time()
    end(daemon)
    times = {"1970": 1.0, "before": before - 3600, "then": before, "now": None, "later": 2**32}
    for name, moment in times.items():
        (incoming / f"{name}.csv").write_text("1")
        if moment is not None:
            subprocess.run(["touch", "-d", f"@{moment:.9f}", incoming / f"{name}.csv"], check=True)
        wanted[f"in/{name}.csv"] = 1
    (outside / "deep").rename(incoming / "deep")
    (outside / "file.csv").rename(incoming / "file.csv")
    wanted |= Counter({f"in/{name}": 1 for name in ("deep/er/old.csv", "deep/old.csv", "file.csv")})
    daemon.start()
    scanned(daemon)
    assert paths(tmp_path) == wanted
    end(daemon)
    daemon.start()
    scanned(daemon)
    daemon.stop()
    assert paths(tmp_path) == wanted


HELD = csv_tasks("""
[watch:in]
path = {tmp}/in
[watch:ftp]
path = {tmp}/ftp
proftpd = yes
confirm = LONG
[watch:slow]
path = {tmp}/slow
settle = LONG
""")


def test_what_was_held_when_it_was_killed_is_sent_once(
    tmp_path: Path, start_watchman: Start
) -> None:
    for name in ("in", "ftp", "slow"):
        (tmp_path / name).mkdir()
    daemon = start_watchman(HELD.replace("LONG", "1h"))
    waiting = {"ftp/a.csv": "waiting for ProFTPD's word", "slow/a.csv": "settling"}
    also = {"in/a.csv": "it is being written"}
    for name in waiting:
        (tmp_path / name).write_text("1")
    with (tmp_path / "in/a.csv").open("w") as writing:
        writing.write("half")
        writing.flush()
        eventually(lambda: held(daemon, tmp_path) == waiting | also)
        daemon.kill()
        daemon.start()
        eventually(lambda: held(daemon, tmp_path) == waiting | also)
        daemon.kill()
        assert paths(tmp_path) == {}
        daemon.configure(HELD.replace("LONG", "1s"))
        daemon.start()
        eventually(lambda: paths(tmp_path) == dict.fromkeys(waiting, 1))
        writing.write("whole")
    wanted = dict.fromkeys([*waiting, "in/a.csv"], 1)
    eventually(lambda: paths(tmp_path) == wanted)
    eventually(lambda: daemon.queue() == [])  # a kill before that may repeat what was sent
    daemon.kill()
    daemon.start()
    scanned(daemon, "in", "ftp", "slow")
    daemon.stop()
    assert paths(tmp_path) == wanted


def held(daemon: Daemon, directory: Path) -> dict[str, str]:
    return {
        os.path.relpath(row["path"], directory): row["reason"]
        for row in daemon.queue()
        if row["state"] == "noticed"
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that is down, and has done ten thousand files before."""
    with bulk.roomy_directory(2 * DONE) as directory:
        files = bulk.create(directory / "in/done", range(DONE))
        ids = bulk.write_journal(
            directory / "spool", files, lambda _: Task("csv", "b", "tests.record"), done=True
        )
        assert len(ids) == DONE
        daemon = Daemon(directory, INI)
        daemon.start()
        scanned(daemon)
        daemon.stop()
        assert paths(directory) == {}
        yield daemon
        daemon.stop()
        assert "Traceback" not in daemon.log


#: What is done to the files in `in/done`; it may not make a single one of them new.
HARMLESS = {
    "chmod": "chmod -R go-rwx in/done",
    "chown": "chown -R 1:1 in/done",
    "touch -r": "touch -d 2001-01-01 old && find in/done -type f -exec touch -r old {} +",
    "a hard-link backup inside": "mkdir -p in/backup && cp -al in/done in/backup/1",
    "a hard-link backup outside": "cp -al in/done backup",
    "the end of the backups": "rm -r backup in/backup",
    "directories renamed": "mv in/done in/other && mv in/other/0 in/0 && mv in/other in/done",
}


@pytest.mark.root
@pytest.mark.parametrize("what", HARMLESS)
def test_what_was_done_is_not_sent_again_after(done: Daemon, what: str) -> None:
    subprocess.run(["sh", "-ec", HARMLESS[what]], cwd=done.directory, check=True)
    before = paths(done.directory)
    (done.directory / f"in/new after {what}.csv").touch()
    done.start()
    scanned(done)
    done.stop()
    assert paths(done.directory) - before == {f"in/new after {what}.csv": 1}


@pytest.mark.root
def test_a_hard_link_backup_of_what_was_done_is_not_sent_while_it_runs_either(
    tmp_path: Path, start_watchman: Start
) -> None:
    (tmp_path / "in/done").mkdir(parents=True)
    (tmp_path / "in/backup").mkdir()
    daemon = start_watchman(INI)
    wanted = {f"in/done/{n}.csv" for n in range(100)}
    for name in wanted:
        (tmp_path / name).write_text("1")
    eventually(lambda: paths(tmp_path).keys() == wanted)
    for what in ("chmod", "chown", "a hard-link backup inside"):
        subprocess.run(["sh", "-ec", HARMLESS[what]], cwd=tmp_path, check=True)
    subprocess.run(["sh", "-ec", "ln in/done/* in/backup"], cwd=tmp_path, check=True)
    os.link(tmp_path / "in/done/1.csv", tmp_path / "in/done/another name.csv")
    wanted.add("in/done/another name.csv")
    eventually(lambda: paths(tmp_path).keys() == wanted)
    daemon.stop()
    assert paths(tmp_path) == dict.fromkeys(wanted, 1)
