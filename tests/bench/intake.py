"""What it costs to hear of files, beside the kernel's calls alone: events, and setting watches."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from tests.bench.burst import DIRECTORIES, make_directories, write_files
from tests.bench.processes import python
from tests.bench.rows import Row, in_turn
from tests.bench.trees import fewest_watches, many_directories
from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.deadline import eventually
from tests.support.inis import INI
from watchman.config import inifile
from watchman.config.rules import Rules
from watchman.sources.inotify.events import CLOSE_WRITE, MASK
from watchman.sources.inotify.watcher import Watcher
from watchman.uploads.upload import Notification

#: Files, with two events each: so many that the kernel's queue holds all of them.
FILES = 6_000

#: Directories that are watched at a start.
WATCHES = 100_000

HEADER = struct.Struct("iIII")

SCANNED = re.compile(r"(\S+ \S+) .*Scanned watch in: \d+ files in ([\d.]+) seconds")


def rows() -> Iterator[Row]:
    events = in_turn({"ours": ours, "raw ctypes": raw})
    yield Row("intake", "us/event", events.pop("ours"), events, 3, 1.5, [*events])
    with bulk.roomy_directory(WATCHES) as directory, fewest_watches(WATCHES + 1_000):
        many_directories(directory / "in", WATCHES)
        times = in_turn(
            {
                "ours": lambda: cover(directory),
                "scandir and add_watch": lambda: add_watches(directory),
            }
        )
    what = f"start until {WATCHES:,} directories are watched"
    yield Row(what, "s", times.pop("ours"), times, 1.5, 1.2, [*times])


# Events.


def taken(directory: Path, read: Callable[[], object]) -> float:
    """The processor time for each event, all of which wait when it begins to read."""
    subprocess.run(write_files(directory, FILES), stdout=subprocess.DEVNULL, check=True)
    began = time.process_time()
    read()
    return 1e6 * (time.process_time() - began) / (2 * FILES)


def ours() -> float:
    """The watcher, up to its notifications."""
    with bulk.roomy_directory(FILES) as directory:
        make_directories(directory / "in", DIRECTORIES)
        (directory / "watchman.ini").write_text(
            f"[watchman]\nspool = spool\n{INI}".replace("{tmp}", str(directory))
        )
        settings = inifile.load(str(directory / "watchman.ini"))
        paths: set[str] = set()
        room = threading.Event()

        def submit(notifications: Sequence[Notification]) -> None:
            if not paths:
                room.wait()
            paths.update(one.path for one in notifications)

        watcher = Watcher(
            settings.watches.values(),
            submit=submit,
            rescan=lambda *_: None,
            excluded=Rules(settings).excluded,
        )
        watcher.start()
        eventually(lambda: watcher.status()["in"]["state"] == "watching")

        def read() -> None:
            room.set()
            eventually(lambda: len(paths) > FILES)

        # It waits for room with the first one, while the kernel queues the others.
        (directory / "in/0/first").touch()
        time.sleep(0.5)
        found = taken(directory / "in", read)
        watcher.stop()
        watcher.join()
    return found


def raw() -> float:
    """The same mask, and the path of each file that is closed."""
    libc = ctypes.CDLL(None)
    with bulk.roomy_directory(FILES) as directory:
        make_directories(directory, DIRECTORIES)
        fd = libc.inotify_init1(os.O_CLOEXEC)
        watched = {}
        for number in range(DIRECTORIES):
            path = os.fsencode(f"{directory}/{number}")
            watched[libc.inotify_add_watch(fd, path, MASK)] = path
        paths: list[str] = []

        def read() -> None:
            while len(paths) < FILES:
                data = os.read(fd, 65536)
                position = 0
                while position < len(data):
                    wd, mask, _, length = HEADER.unpack_from(data, position)
                    position += HEADER.size + length
                    if mask & CLOSE_WRITE:
                        name = data[position - length : position].rstrip(b"\0")
                        paths.append(os.fsdecode(watched[wd] + b"/" + name))

        found = taken(directory, read)
        os.close(fd)
    return found


# Watches.


def cover(directory: Path) -> float:
    """A daemon, from its start to when all is watched: its first scan begins then."""
    with tempfile.TemporaryDirectory() as name:
        daemon = Daemon(Path(name), INI.replace("{tmp}", str(directory)))
        (Path(name) / "broker").mkdir()
        began = time.time()
        with daemon:
            scanned = eventually(lambda: SCANNED.search(daemon.log), timeout=300)
        assert scanned is not None
        return datetime.fromisoformat(scanned[1]).timestamp() - float(scanned[2]) - began


ADD_WATCHES = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(os.O_CLOEXEC)
directories = [sys.argv[1]]
while directories:
    directory = directories.pop()
    assert libc.inotify_add_watch(fd, os.fsencode(directory), {MASK}) > 0
    with os.scandir(directory) as entries:
        directories += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
"""


def add_watches(directory: Path) -> float:
    """A process, from its start to its end."""
    began = time.time()
    subprocess.run(python("-c", ADD_WATCHES, str(directory / "in")), check=True)
    return time.time() - began
