"""Tasks with our base class in a stock prefork worker, which is killed."""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docutils.core
import docutils.nodes
import pytest
from celery import Celery

from tests.servers.brokers import ROOT, RedisServer
from tests.servers.daemon import Daemon
from tests.servers.prefork import PreforkWorker
from tests.support.deadline import eventually
from tests.support.needs import need

#: What is added to the worker that the documentation shows: it says what it does, takes a moment,
#: and does not like every file.
MODULE = """
import os, time

app.conf.task_default_queue = "{queue}"
app.conf.broker_transport_options = {{"visibility_timeout": 1}}
app.conf.worker_prefetch_multiplier = 1

@app.task(base=UploadTask, bind=True, name="work.read", default_retry_delay=0.2)
def read(self, path, pause=0.0):
    with open("{log}", "a") as log:
        log.write(f"{{self.upload.id}} {{self.upload.path_bytes!r}} {{self.upload.user}}\\n")
    with open(self.upload.path, "rb") as file:
        content = file.read()
    time.sleep(pause)
    if content.startswith(b"bad"):
        raise UploadRejected("it says so itself")

@app.task(base=UploadTask, bind=True, name="work.die", deaths=2)
def die(self, path):
    with open("{log}", "a") as log:
        log.write(f"{{self.upload.id}}\\n")
    os.kill(os.getpid(), 9)
"""

INI = """
[celery]
task_default_queue = {queue}
[broker:redis]
url = {url}
[watch:in]
path = {{tmp}}/in
[move:storage]
source = {{tmp}}/in
destination = {{tmp}}/storage
folders = accepted, rejected
[task:read]
pattern = *.csv
broker = redis
task = work.read
kwargs = {{"pause": 0.1}}
"""


def shown() -> str:
    """The worker that the documentation shows."""
    text = (ROOT / "docs/workers.rst").read_text()
    document = docutils.core.publish_doctree(text, settings_overrides={"halt_level": 2})
    blocks = list(document.findall(docutils.nodes.literal_block))
    [module] = [block.astext() for block in blocks if "python" in block["classes"]]
    return str(module) + "\n"


class Scene:
    """A queue, a worker on it, the files that it works on, and what it says."""

    def __init__(self, directory: Path, redis: RedisServer) -> None:
        self.directory = directory
        self.storage = directory / "storage"
        self.storage.mkdir()
        self.state = directory / "state"
        self.state.mkdir()
        self.log = directory / "log"
        self.values = {
            "url": redis.url,
            "queue": f"worker-{directory.name}",
            "log": self.log,
        }
        module = shown().replace("redis://localhost:6379/0", redis.url)
        module = module.replace("/var/lib/reports", str(self.state))
        module += MODULE.format(**self.values)
        self.worker = PreforkWorker(directory / "worker", module)
        self.app = Celery("sender", broker=redis.url, set_as_current=False)
        self.app.conf.task_default_queue = self.values["queue"]

    def send(self, path: Path, task_id: str, pause: float = 0.0, inode: int = 0) -> None:
        """As watchman sends the task of a file."""
        header = {"id": task_id, "path": str(path), "inode": inode or path.stat().st_ino}
        self.send_task("work.read", [str(path), pause], task_id, watchman=header)

    def send_task(self, name: str, arguments: list[Any], task_id: str, **headers: Any) -> None:
        self.app.send_task(name, arguments, task_id=task_id, headers=headers)

    def says(self, text: str, count: int = 1) -> None:
        """Wait until the worker has said it that often."""
        eventually(lambda: self.worker.output.count(text) >= count, timeout=30)

    def begun(self) -> Counter[str]:
        """How often the work on each id was begun."""
        text = self.log.read_text() if self.log.exists() else ""
        return Counter(line.split()[0] for line in text.splitlines())

    def work_on(self, more: int) -> None:
        """Wait until the work on that many more files has begun."""
        whole = self.begun().total() + more
        eventually(lambda: self.begun().total() >= whole, timeout=30)


def lie_in(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}


@pytest.fixture
def whole(tmp_path: Path, redis_server: RedisServer) -> Iterator[Scene]:
    """A scene whose worker is killed."""
    made = Scene(tmp_path, redis_server)
    with made.app, made.worker:
        yield made


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Scene]:
    """Shared by the tests of this file: use names and ids of your own."""
    made = Scene(tmp_path_factory.mktemp("scene"), redis_server)
    with made.app, made.worker:
        yield made


@pytest.fixture
def place(scene: Scene) -> Path:
    """A directory for the files of a test."""
    return Path(tempfile.mkdtemp(dir=scene.storage))


def written(path: Path, content: str = "good") -> Path:
    path.write_text(content)
    return path


def test_every_upload_is_worked_on_and_sorted_though_workers_are_killed(
    whole: Scene, start_watchman: Callable[..., Daemon]
) -> None:
    """From the upload to its folder, with kill -9 of processes and of the whole worker."""
    (whole.directory / "in").mkdir()
    start_watchman(INI.format(**whole.values))
    for number in range(40):
        content = f"{'bad' if number % 4 == 0 else 'good'} {number}"
        hidden = written(whole.directory / "in" / f".{number}", content)
        hidden.rename(whole.directory / "in" / f"{number}.csv")
    for _ in range(3):
        whole.work_on(3)
        time.sleep(random.random() / 5)
        os.kill(whole.worker.children()[0], signal.SIGKILL)
    whole.work_on(3)
    whole.worker.kill()
    # So long Redis keeps for a worker what that has not acknowledged.
    time.sleep(1)
    whole.worker.start()
    folders = [whole.storage / name for name in ("accepted", "rejected")]
    eventually(lambda: sum(len(lie_in(folder)) for folder in folders) == 40, timeout=60)
    assert lie_in(folders[0]) == {f"{n}.csv": f"good {n}" for n in range(40) if n % 4}
    assert lie_in(folders[1]) == {f"{n}.csv": f"bad {n}" for n in range(0, 40, 4)}
    assert lie_in(whole.storage) == {}
    begun = whole.begun()
    assert len(begun) == 40
    # A kill ends the work on one upload, that of the whole worker on two.
    assert begun.total() <= 40 + 3 + 2


# Others may let strace look only at their children, see ptrace_scope in ptrace(2).
@pytest.mark.root
@pytest.mark.parametrize("call", ["renameat2", "fsync"])
def test_a_worker_that_is_killed_while_it_sorts_completes_that_and_does_no_work_again(
    scene: Scene, place: Path, call: str
) -> None:
    """Before the file is renamed, and when it has been and the message is not acknowledged."""
    need("strace")
    path, other = written(place / "a.csv"), written(place / "b.csv")
    # Only of those that are there now, so that others can complete it.
    children = scene.worker.children()
    command = ["strace", "-o", str(place / "trace"), "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:signal=SIGKILL", *(f"-p{child}" for child in children)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        for _ in children:
            assert b"attached" in strace.stderr.readline()
        scene.send(path, f"{call}-a")
        eventually(lambda: len(set(children) & set(scene.worker.children())) < 2, timeout=30)
        strace.terminate()
    scene.says(f"{call}-a] ignored")
    assert "killed by SIGKILL" in (place / "trace").read_text()
    (place / "trace").unlink()
    assert lie_in(place / "accepted") == {"a.csv": "good"}
    assert lie_in(place) == {other.name: "good"}
    assert scene.begun()[f"{call}-a"] == 1


def test_what_comes_twice_at_once_is_worked_on_once(scene: Scene, place: Path) -> None:
    first, second = written(place / "a.csv"), written(place / "b\udce9.csv")
    for path, name in ((first, "twice-a"), (second, "twice-b")):
        for _ in range(3):
            scene.send(path, name, 0.5, inode=1)
    for name in ("twice-a", "twice-b"):
        scene.says(f"{name}] ignored", 2)
        assert scene.begun()[name] == 1
    assert lie_in(place / "accepted") == {"a.csv": "good", "b\udce9.csv": "good"}
    assert repr(os.fsencode(second)) in scene.log.read_text()


def test_without_its_store_a_worker_knows_a_file_that_was_sorted(scene: Scene, place: Path) -> None:
    """As where a repeat reaches a worker of another host."""
    path = written(place / "a.csv")
    (place / "accepted").mkdir()
    written(place / "accepted" / "a.csv", "an older one")
    inode = path.stat().st_ino
    scene.send(path, "12345678-a")
    scene.says("12345678-a] succeeded")
    (scene.state / "done.sqlite").unlink()
    scene.send(path, "12345678-a", inode=inode)
    scene.says("12345678-a] ignored")
    assert lie_in(place / "accepted") == {"a.csv": "an older one", "a@12345678.csv": "good"}
    assert scene.begun()["12345678-a"] == 1


def test_a_task_waits_for_its_store_and_keeps_its_header(scene: Scene, place: Path) -> None:
    path = written(place / "a.csv", "bad")
    away = scene.state.rename(scene.directory / "away")
    scene.send(path, "later-a")
    scene.says("later-a] retry", 2)
    assert "later-a" not in scene.begun()
    away.rename(scene.state)
    scene.says("UploadRejected('it says so itself')")
    assert lie_in(place / "rejected") == {"a.csv": "bad"}


def test_a_file_that_kills_each_process_is_rejected_in_the_end(scene: Scene, place: Path) -> None:
    scene.send_task("work.die", [str(written(place / "a.csv", "deadly"))], "deadly-a")
    scene.says("UploadRejected('the work on it has killed 2 processes')")
    assert lie_in(place / "rejected") == {"a.csv": "deadly"}
    assert scene.begun()["deadly-a"] == 2


def test_what_could_not_be_sorted_is_by_sending_it_again_with_its_id(
    scene: Scene, tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "accepted").touch()
    before, _, after = INI.format(**scene.values).partition("[move:storage]")
    daemon = start_watchman(f"{before}exclude = accepted\n{after[after.index('[task:') :]}")
    path = written(tmp_path / "in" / "a.csv")
    scene.says("raised unexpected: NotADirectoryError")
    so_far = scene.begun()
    (tmp_path / "in" / "accepted").unlink()
    assert daemon.send(str(path), "--same-id").returncode == 0
    eventually(lambda: not path.exists())
    assert lie_in(tmp_path / "in" / "accepted") == {"a.csv": "good"}
    assert scene.begun() == so_far
    assert daemon.queue() == []


def test_what_fails_stays_where_it_is_and_is_not_done(scene: Scene, place: Path) -> None:
    path = place / "a.csv"
    scene.send(path, "missing-a", inode=1)
    scene.says("missing-a] raised unexpected: FileNotFoundError")
    scene.send(written(path), "missing-a")
    scene.says("missing-a] succeeded")
    assert lie_in(place / "accepted") == {"a.csv": "good"}


def test_a_file_that_is_written_again_meanwhile_is_left_for_its_own_task(
    scene: Scene, place: Path
) -> None:
    path = written(place / "a.csv")
    scene.send(path, "meanwhile-a", 0.5)
    eventually(lambda: "meanwhile-a" in scene.begun())
    path.write_text("newer")
    scene.says("of upload meanwhile-a was written or taken away")
    assert lie_in(place) == {"a.csv": "newer"}


def test_the_worker_that_the_documentation_shows_takes_tables_with_a_time(
    scene: Scene, place: Path
) -> None:
    """Also of a task that somebody else sends, without a header."""
    good, bad = written(place / "a.csv", "time,level\n"), written(place / "b.csv", "level\n")
    header = {"id": "shown-a", "path": str(good), "original": "/srv/ftp/a.csv", "user": "alice"}
    scene.send_task("reports.import_table", [str(good)], "shown-a", watchman=header)
    scene.send_task("reports.import_table", [str(bad)], "shown-b")
    scene.says("importing /srv/ftp/a.csv of alice")
    scene.says("there is no column for the time")
    eventually(lambda: not lie_in(place))
    assert list(lie_in(place / "accepted")) == ["a.csv"]
    assert list(lie_in(place / "rejected")) == ["b.csv"]
