"""Trees of many directories, and the watches that they need."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

#: Directories in one.
FANOUT = 100

LIMIT = Path("/proc/sys/fs/inotify/max_user_watches")


def many_directories(root: Path, count: int) -> None:
    """Make so many directories below `root`, two levels deep."""
    for upper in range(-(-count // (FANOUT + 1))):
        os.makedirs(f"{root}/many/{upper}")
        for lower in range(FANOUT):
            os.mkdir(f"{root}/many/{upper}/{lower}")


@contextlib.contextmanager
def fewest_watches(count: int) -> Iterator[None]:
    """Have a user be allowed so many watches at least; only root may raise that."""
    before = LIMIT.read_text()
    if int(before) < count:
        LIMIT.write_text(str(count))
    try:
        yield
    finally:
        if LIMIT.read_text() != before:
            LIMIT.write_text(before)
