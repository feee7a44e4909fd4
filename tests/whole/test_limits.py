"""Where inotify ends: overflow, too few watches, roots that come and go. All found, none twice."""

import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.deadline import eventually
from tests.support.inis import AWAY, INI
from tests.whole.test_catch_up import paths

#: Inotify watches that a daemon may set in a user namespace of its own.
WATCHES = 5

#: Runs a daemon in such a namespace: no other test on this machine is short of watches then.
NAMESPACE = [
    *("unshare", "--user", "--map-root-user", "sh", "-c"),
    *(f'echo {WATCHES} >/proc/sys/user/max_inotify_watches; exec "$@"', "sh"),
]

Start = Callable[..., Daemon]


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    directory = tmp_path / "in"
    directory.mkdir()
    return directory


def waiting(daemon: Daemon) -> Counter[str]:
    """How many uploads wait for each file, by its path below the watch."""
    return Counter(os.path.relpath(row["path"], daemon.directory / "in") for row in daemon.queue())


def uploads(daemon: Daemon) -> int:
    counts = daemon.status()["uploads"]
    return int(counts["waiting"] + counts["deferred"])


def test_more_files_than_the_kernel_queues_while_the_reader_stands_still(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(AWAY)
    for name in ("goes", "empty", *(f"stays/{n // 100}/{n}" for n in range(200))):
        (incoming / name).mkdir(parents=True)
    eventually(lambda: daemon.status()["watches"]["in"]["directories"] == 206)
    daemon.freeze()
    try:
        for _ in bulk.create(incoming / "stays", range(9_000)):
            pass
        (incoming / "stays").rename(incoming / "renamed")
        (incoming / "goes/a.csv").write_text("1")
        (incoming / "goes").rename(tmp_path / "gone")
        (incoming / "empty").rmdir()
        (incoming / "empty").write_text("a file by now")
    finally:
        daemon.thaw()
    eventually(lambda: "inotify lost events" in daemon.log)
    eventually(lambda: uploads(daemon) == 9_000, timeout=60)
    (incoming / "renamed/last.csv").write_text("heard again")
    (tmp_path / "gone/b.csv").write_text("not below the watch any more")
    eventually(lambda: uploads(daemon) == 9_001)
    wanted = {f"renamed/{n // 10_000}/{n // 100}/{n}.csv" for n in range(9_000)}
    assert waiting(daemon) == dict.fromkeys({*wanted, "renamed/last.csv"}, 1)
    daemon.restart()
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
    daemon.restart()
    assert uploads(daemon) == 9_001


@pytest.mark.root
def test_where_watches_run_out_scans_find_everything_until_there_are_more(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    for n in range(10):
        (incoming / f"{n}/deep").mkdir(parents=True)
    ini = INI.replace("{tmp}/in", "{tmp}/in\nrescan = 1s")
    daemon = start_watchman(ini, prefix=NAMESPACE)
    status = eventually(
        lambda: (s := daemon.status())["watches"]["in"]["state"] == "incomplete" and s
    )
    assert status["watches"]["in"]["directories"] == WATCHES
    assert status["watches"]["in"]["unwatched"] > 0
    assert "No space left on device" in status["problems"][0]
    assert daemon.log.count("fs.inotify.max_user_watches") == 1
    wanted = {}
    for turn in range(3):
        for n in range(10):
            for name in (f"{n}/{turn}.csv", f"{n}/deep/{turn}.csv", f"{n}/new{turn}/f.csv"):
                (incoming / name).parent.mkdir(exist_ok=True)
                (incoming / name).write_text("1")
                wanted[f"in/{name}"] = 1
        eventually(lambda: paths(tmp_path) == wanted)
    assert daemon.process is not None
    raised = "echo 1000 >/proc/sys/user/max_inotify_watches"
    namespace = ["nsenter", "--user", "--preserve-credentials", "--target", str(daemon.process.pid)]
    subprocess.run([*namespace, "sh", "-c", raised], check=True)
    eventually(lambda: daemon.status()["watches"]["in"]["state"] == "watching", timeout=70)
    heard = daemon.status()["sources"]["inotify"]["heard"]
    for n in range(10):
        (incoming / f"{n}/new2/heard.csv").write_text("1")
        wanted[f"in/{n}/new2/heard.csv"] = 1
    eventually(lambda: paths(tmp_path) == wanted)
    # More often where a file was closed before the word of its appearing was read.
    assert daemon.status()["sources"]["inotify"]["heard"] >= heard + 10
    daemon.stop()
    assert paths(tmp_path) == wanted


class Root:
    """A watch's root that goes and comes back, and what is in it while it is away."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "in"
        self.away = directory / "away"

    def make(self) -> None:
        self.path.mkdir()

    def go(self) -> None:
        self.path.rename(self.away)

    def come(self) -> None:
        self.away.rename(self.path)

    def clear(self) -> None:
        """Undo what would outlast the test."""


class Replaced(Root):
    """Another directory takes its place meanwhile."""

    def go(self) -> None:
        super().go()
        self.path.mkdir()
        (self.path / "other.csv").write_text("in the other directory")

    def come(self) -> None:
        self.path.rename(self.path.with_name("other"))
        super().come()


class Switched(Root):
    """It is a symlink, which leads elsewhere meanwhile."""

    def make(self) -> None:
        self.away.mkdir()
        self.path.symlink_to(self.away)

    def go(self) -> None:
        other = self.path.with_name("other")
        other.mkdir()
        (other / "other.csv").write_text("in the other directory")
        self._lead_to(other)

    def come(self) -> None:
        self._lead_to(self.away)

    def _lead_to(self, directory: Path) -> None:
        link = self.path.with_name("link")
        link.symlink_to(directory)
        link.rename(self.path)


class Unmounted(Root):
    """It is a tmpfs that is mounted elsewhere, too."""

    def make(self) -> None:
        for directory in (self.path, self.away):
            directory.mkdir()
        self._run("mount", "-t", "tmpfs", "tmpfs", self.away)
        self.come()

    def go(self) -> None:
        self._run("umount", self.path)

    def come(self) -> None:
        self._run("mount", "--bind", self.away, self.path)

    def clear(self) -> None:
        for directory in (self.path, self.away):
            self._run("umount", "--lazy", directory, check=False)

    def _run(self, *command: str | Path, check: bool = True) -> None:
        subprocess.run(command, check=check)


def scanned_again(daemon: Daemon) -> None:
    scan = daemon.status()["watches"]["in"]["last_scan"]
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"] > scan)


@pytest.fixture(params=[Root, Replaced, Switched, Unmounted])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    root: Root = request.param(tmp_path)
    root.make()
    yield root
    root.clear()


@pytest.mark.root
@pytest.mark.parametrize("running", [True, False])
def test_a_root_that_goes_and_comes_back_is_caught_up_with(
    tmp_path: Path, start_watchman: Start, root: Root, *, running: bool
) -> None:
    daemon = start_watchman(INI.replace("{tmp}/in", "{tmp}/in\nrescan = 0.3s"))
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
    (root.path / "sub").mkdir()
    for name in ("a.csv", "sub/a.csv"):
        (root.path / name).write_text("1")
    wanted = {"in/a.csv": 1, "in/sub/a.csv": 1}
    eventually(lambda: paths(tmp_path) == wanted)
    daemon.restart()  # so that the ledger's file has them
    root.go()
    if isinstance(root, Replaced | Switched):
        wanted["in/other.csv"] = 1
        eventually(lambda: paths(tmp_path) == wanted)
        for _ in range(3):
            scanned_again(daemon)
    if not running:
        daemon.stop()
    for name in ("b.csv", "sub/b.csv"):
        (root.away / name).write_text("while it was away")
        wanted[f"in/{name}"] = 1
    if type(root) is Root and running:
        eventually(lambda: daemon.status()["watches"]["in"]["state"] == "missing")
    root.come()
    if not running:
        daemon.start()
    eventually(lambda: paths(tmp_path) == wanted)
    (root.path / "sub/c.csv").write_text("heard again")
    wanted["in/sub/c.csv"] = 1
    eventually(lambda: paths(tmp_path) == wanted)
    # Whatever scans find now is none of these.
    scanned_again(daemon)
    daemon.stop()
    assert paths(tmp_path) == wanted


def test_a_watch_added_while_its_files_are_written_gets_each_once(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    other = "[watch:other]\npath = {tmp}/other\nexisting = yes\nrescan = 1s\n"
    written = [f"other/{n % 50}/{n}/{n}.csv" for n in range(1_000)]
    enough = threading.Semaphore(0)

    def write() -> None:
        for n, name in enumerate(written):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("1")
            if n == 200:
                enough.release()

    writer = threading.Thread(target=write)
    writer.start()
    enough.acquire()
    daemon.configure(INI + other)
    assert json.loads(daemon.run("reload", "--json").stdout)
    writer.join()
    eventually(lambda: paths(tmp_path) == dict.fromkeys(written, 1), timeout=60)
    daemon.stop()
    assert paths(tmp_path) == dict.fromkeys(written, 1)


@pytest.mark.root
def test_an_upload_whose_root_is_not_there_in_its_turn_is_sent_when_it_is_back(
    tmp_path: Path, start_watchman: Start, root: Root
) -> None:
    daemon = start_watchman(INI)
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
    daemon.ask("pause", name="broker:b")
    (root.path / "a.csv").write_text("1")
    eventually(lambda: uploads(daemon) == 1)
    root.go()
    daemon.ask("resume", name="broker:b")
    others = {"in/other.csv": 1} if isinstance(root, Replaced | Switched) else {}
    reason = f"{root.path} is away"
    eventually(
        lambda: [row["reason"] for row in daemon.queue()] == ([] if others else [reason]),
        timeout=20,
    )
    assert paths(tmp_path) == others
    daemon.kill()
    daemon.start()
    root.come()
    eventually(lambda: paths(tmp_path) == {"in/a.csv": 1, **others}, timeout=20)
    daemon.stop()
    assert paths(tmp_path) == {"in/a.csv": 1, **others}
