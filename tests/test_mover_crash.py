"""The mover is killed at each call that changes anything; each file is moved once all the same."""

import re
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.moving import files
from tests.movingprocess import Scene
from tests.needs import need

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


def counted(log: Path) -> Counter[str]:
    lines = log.read_text(errors="replace").splitlines()
    return Counter(match[1] for line in lines if (match := re.match(r"(\w+)\(", line)))


def kills(tmp_path: Path, place: Path, way: Sequence[str]) -> list[tuple[int, str, int]]:
    """Run undisturbed; return thread, call and number of all that could be the last one."""
    found = []
    for thread in (0, 1):
        scene = Scene(tmp_path / f"counted{thread}", place / f"to-counted{thread}")
        process = scene.start()
        log = tmp_path / f"strace{thread}.log"
        process.trace(thread, log, "-e", f"trace={CALLS}", *way)
        process.upload(*scene.paths)
        scene.check(process.tasks(2))
        assert process.end() == 0
        for call, count in counted(log).items():
            # One call cannot be given two injections.
            if f"inject={call}:error=EINVAL" not in way:
                found += [(thread, call, n) for n in range(1, count + 1)]
    return found


@pytest.mark.timeout(900)
def test_killed_at_every_change_it_makes(tmp_path: Path, way: tuple[Path, Sequence[str]]) -> None:
    need("strace")
    place, options = way
    points = kills(tmp_path, place, options)
    assert len(points) > 40

    def kill_and_recover(number: int) -> bool:
        thread, call, when = points[number]
        scene = Scene(tmp_path / str(number), place / f"to-{number}")
        process = scene.start()
        inject = f"inject={call}:signal=SIGKILL:when={when}"
        log = tmp_path / f"{number}.log"
        process.trace(thread, log, "-e", f"trace={call},renameat2", *options, "-e", inject)
        process.upload(*scene.paths)
        tasks = process.tasks(2)
        hit = process.end() == -signal.SIGKILL
        process = scene.start()
        process.upload(*scene.paths)
        paths = {path for _, path in tasks}
        while len(paths) < 2:
            more = process.tasks(1)
            assert more, (points[number], files(scene.destination).keys(), tasks)
            tasks += more
            paths |= {path for _, path in more}
        assert process.end() == 0
        try:
            scene.check(tasks)
        except AssertionError as e:
            raise AssertionError(f"killed at {points[number]}") from e
        return hit

    with ThreadPoolExecutor(4) as pool:
        hits = sum(pool.map(kill_and_recover, range(len(points))))
    # Batches differ from run to run, so that the last calls may not come.
    assert hits > len(points) * 0.7


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
