"""Many files and many uploads that wait, made quickly, and what a process takes for them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from tests.servers.daemon import Daemon
from watchman.store.journal import Journal
from watchman.uploads.upload import FileState, Source, State, Task, Upload

#: Files per directory, and directories per directory above them.
FANOUT = 100

#: Uploads per write of the journal.
BATCH = 1_000

#: Bytes and inodes for each file, of a filesystem that is to hold many.
SHARE = 4096, 2


@contextlib.contextmanager
def roomy_directory(files: int) -> Iterator[Path]:
    """Make a directory where so many files are quickly made, and gone at the end."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if _has_room("/dev/shm", files) else None) as d:
        assert _has_room(d, files), f"{d} has no room for {files:,} files"
        try:
            yield Path(d)
        finally:
            subprocess.run(["find", d, "-mindepth", "1", "-delete"], check=True)


def _has_room(directory: str, files: int) -> bool:
    try:
        room = os.statvfs(directory)
    except OSError:
        return False
    size, inodes = SHARE
    return room.f_bavail * room.f_frsize > files * size and room.f_favail > files * inodes


def create(root: Path, numbers: range) -> Iterator[str]:
    """Make empty files `N.csv` two levels below `root`, and yield their paths in order."""
    fd, before = -1, None
    for n in numbers:
        path = f"{root}/{n // FANOUT**2}/{n // FANOUT}"
        if path != before:
            if fd >= 0:
                os.close(fd)
            os.makedirs(path, exist_ok=True)
            fd, before = os.open(path, os.O_RDONLY), path
        os.close(os.open(f"{n}.csv", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        yield f"{path}/{n}.csv"
    if fd >= 0:
        os.close(fd)


def write_journal(
    spool: Path,
    paths: Iterable[str],
    task: Callable[[str], Task],
    *,
    watch: str = "in",
    done: bool = False,
) -> list[str]:
    """Fill a journal with an accepted upload for each file, `done` or not; return their ids."""
    spool.mkdir(mode=0o700, exist_ok=True)
    journal = Journal(str(spool / "journal"), str(spool / "history"))
    assert not list(journal.replay())
    ids, paths = [], iter(paths)
    while batch := [accepted(path, task(path), watch) for path in islice(paths, BATCH)]:
        journal.write([{"event": State.ACCEPTED.value, **upload.encode()} for upload in batch])
        ids += [upload.id for upload in batch]
        if done:
            journal.write([{"event": State.DONE.value, "at": 0.0, "id": u.id} for u in batch])
    journal.close()
    return ids


def accepted(path: str, task: Task, watch: str) -> Upload:
    """An upload as the dispatcher accepts it when inotify tells of the file."""
    state = FileState.of(os.lstat(path))
    return Upload(
        id=str(uuid.uuid4()),
        watch=watch,
        path=path,
        original=path,
        state=state,
        source=Source.INOTIFY,
        accepted=state.ctime / 1e9,
        task=task,
        owner=(os.geteuid(), os.getegid()),
    )


def peak_memory(daemon: Daemon) -> int:
    """The most bytes that a running daemon has had in memory since it started."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def size_of(directory: Path) -> int:
    """How many bytes its files hold, of which some may be leaving."""
    size = 0
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size
