"""Files that are overwritten at the moment they are moved: no byte is lost, none is mixed up."""

import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.writer import content

INI = """
[broker:b]
url = filesystem://broker
[watch:ftp]
path = ftp
[move:storage]
source = ftp
destination = {destination}
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

#: Seconds for which files are written.
SECONDS = 4.0


@pytest.fixture(params=["rename", "copy"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "rename":
        (tmp_path / "storage").mkdir()
        yield tmp_path / "storage"
        return
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def hammer(directory: Path, seconds: float) -> dict[str, list[tuple[str, str]]]:
    """Write with several processes; return inode and content of all writes of each path."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.writer", str(directory), f"w{n}", str(seconds)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    writes = defaultdict(list)
    for writer in writers:
        output, _ = writer.communicate()
        assert writer.returncode == 0
        for line in output.splitlines():
            path, inode, number = line.split()
            writes[path].append((inode, number))
    return writes


@pytest.mark.timeout(180)
def test_a_writer_at_the_moment_of_the_move_loses_nothing(
    start_watchman: Callable[..., Daemon], tmp_path: Path, destination: Path
) -> None:
    (tmp_path / "ftp").mkdir()
    daemon = start_watchman(INI.replace("{destination}", str(destination)))
    writes = hammer(tmp_path / "ftp", SECONDS)
    eventually(lambda: daemon.queue() == [] and not list((tmp_path / "ftp").iterdir()), 20.0)

    tasks = {task["args"][0]: task["id"] for task in published(tmp_path / "broker")}
    moved = {path: path.read_bytes() for path in destination.rglob("*")}
    assert {str(path) for path in moved} == set(tasks), "a task for every file, a file for each"
    assert len(tasks) == len(set(tasks.values()))
    arrived = set()
    for path, data in moved.items():
        number = data.partition(b"\n")[0].decode()
        assert data == content(number), f"{path} is not what one writer wrote"
        assert number not in arrived, f"{number} is there twice"
        arrived.add(number)
    for path, found in writes.items():
        following = [*found[1:], ("", "")]
        for (inode, number), (next_inode, _) in zip(found, following, strict=True):
            # What is not there was overwritten in place by the next upload of its path.
            assert number in arrived or next_inode == inode, f"{number} of {path} is lost"
        assert found[-1][1] in arrived
    assert len(arrived) > 50
