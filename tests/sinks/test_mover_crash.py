"""The mover is killed at calls that change anything; each file is moved once all the same.

Here at some of them, others each day; in `make soak` at each.
"""

import re
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.crashes import Point, points, sample
from tests.support.moving import files
from tests.support.movingprocess import Process, Scene
from tests.support.needs import need

#: What changes a file, a name or a descriptor's lease. Between two of them all is as before.
CALLS = (
    "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdirat,openat,write,pwrite64,sendfile,"
    "copy_file_range,ftruncate,fchown,fchmod,utimensat,fsync,fdatasync,fcntl"
)


#: What makes a kernel of a filesystem that cannot rename without replacing.
NO_FLAGS = ("-e", "inject=renameat2:error=EINVAL")

#: And of one that has no hard links either.
NO_LINKS = (*NO_FLAGS, "-e", "inject=linkat:error=EPERM")


@pytest.fixture(params=["rename", "link", "copy"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Sequence[str]]]:
    """Where destinations are made, and options of strace for one way to move there."""
    if request.param != "copy":
        yield tmp_path, NO_FLAGS if request.param == "link" else ()
        return
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory, ()
    shutil.rmtree(directory)


#: At how many calls of each way it is killed, about.
KILLS = 10


def counted(log: Path) -> Counter[str]:
    lines = log.read_text(errors="replace").splitlines()
    return Counter(match[1] for line in lines if (match := re.match(r"(\w+)\(", line)))


def upload(process: Process, scene: Scene) -> list[tuple[str, str]]:
    """Upload one file after the other: two at once would make fewer calls. Return the tasks."""
    tasks = []
    for path in scene.paths:
        process.upload(path)
        tasks += process.tasks(1)
    return tasks


def kills(tmp_path: Path, place: Path, way: Sequence[str]) -> list[Point]:
    """Run undisturbed, twice; return all calls that could be the last one."""
    runs = []
    for run in (0, 1):
        found: Counter[tuple[int, str]] = Counter()
        for thread in (0, 1):
            name = f"counted{run}{thread}"
            scene = Scene(tmp_path / name, place / f"to-{name}")
            process = scene.start()
            log = tmp_path / f"{name}.log"
            process.trace(thread, log, "-e", f"trace={CALLS}", *way)
            scene.check(upload(process, scene))
            assert process.end() == 0
            for call, count in counted(log).items():
                # One call cannot be given two injections.
                if f"inject={call}:error=EINVAL" not in way:
                    found[thread, call] = count
        runs.append(found)
    return points(runs, by_thread=True)


def kill_and_recover(tmp_path: Path, way: tuple[Path, Sequence[str]], point: Point) -> bool:
    """Kill it at a call, start it again, and see that all is as it must be; whether it was hit."""
    place, options = way
    name = f"{point.thread}-{point.call}-{point.when}"
    scene = Scene(tmp_path / name, place / f"to-{name}")
    process = scene.start()
    inject = f"inject={point.call}:signal=SIGKILL:when={point.when}"
    trace = ("-e", f"trace={point.call},renameat2", *options, "-e", inject)
    assert point.thread is not None
    process.trace(point.thread, tmp_path / f"{name}.log", *trace)
    tasks = upload(process, scene)
    hit = process.end() == -signal.SIGKILL
    process = scene.start()
    process.upload(*scene.paths)
    paths = {path for _, path in tasks}
    while len(paths) < 2:
        more = process.tasks(1)
        assert more, (point, files(scene.destination).keys(), tasks)
        tasks += more
        paths |= {path for _, path in more}
    assert process.end() == 0
    try:
        scene.check(tasks)
    except AssertionError as e:
        raise AssertionError(f"killed at {point}") from e
    return hit


def kill_at(tmp_path: Path, way: tuple[Path, Sequence[str]], chosen: Sequence[Point]) -> None:
    with ThreadPoolExecutor(4) as pool:
        hits = sum(pool.map(lambda point: kill_and_recover(tmp_path, way, point), chosen))
    assert hits >= 0.9 * len(chosen)


def test_killed_at_a_change_it_makes(tmp_path: Path, way: tuple[Path, Sequence[str]]) -> None:
    need("strace")
    found = kills(tmp_path, *way)
    assert len(found) > 40
    kill_at(tmp_path, way, sample(found, KILLS))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_at_every_change_it_makes(tmp_path: Path, way: tuple[Path, Sequence[str]]) -> None:
    need("strace")
    kill_at(tmp_path, way, kills(tmp_path, *way))


@pytest.mark.parametrize(
    ("destination", "options"),
    [
        ("rename", NO_FLAGS),
        ("rename", NO_LINKS),
        ("copy", NO_LINKS),
        ("copy", ("-e", "inject=copy_file_range:error=ENOSYS")),
        ("copy", ("-e", "inject=copy_file_range,sendfile:error=EINVAL")),
        ("copy", ("-e", "inject=copy_file_range:retval=0")),
        ("copy", ("-e", "inject=fchown,fchmod,utimensat:error=EPERM")),
        ("rename", ("-e", "inject=fcntl:error=EINVAL")),
        ("copy", ("-e", "inject=fcntl:error=EACCES")),
        ("rename", ("-e", "inject=fsync:error=EIO:when=1")),
        ("copy", ("-e", "inject=fsync:error=EIO:when=1..3")),
        ("copy", ("-e", "inject=sendfile:error=ENOSPC:when=1")),
        ("copy", ("-e", "inject=linkat:error=EDQUOT:when=1")),
        ("rename", ("-e", "inject=renameat2:error=EIO:when=1")),
        ("copy", ("-e", "inject=unlinkat:error=EIO:when=1..2")),
        ("rename", ("-e", "inject=mkdirat:error=EROFS:when=1")),
    ],
)
def test_whatever_the_kernel_answers_each_file_is_moved_once(
    tmp_path: Path, destination: str, options: Sequence[str]
) -> None:
    need("strace")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        place = tmp_path if destination == "rename" else Path(other)
        scene = Scene(tmp_path, place / "to")
        process = scene.start()
        process.trace(0, tmp_path / "strace.log", *options)
        process.upload(*scene.paths)
        scene.check(process.tasks(2))
        assert process.end() == 0
        log = (tmp_path / "strace.log").read_text(errors="replace")
        assert "(INJECTED)" in log, "what is tested has happened"
