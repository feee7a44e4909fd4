"""Which directories are the roots of the watches."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from watchman.config.settings import WatchSettings
from watchman.sources.scan.walk import Identity, identity
from watchman.uploads import mounts


def identify(watch: WatchSettings) -> Identity:
    """Return device and inode of a watch's root directory; its path may be a symlink.

    Raises OSError, also if the directory must be a mount (`mounted`) and is none.
    """
    fd = os.open(watch.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if watch.mounted and not mounts.is_mount(fd):
            raise OSError(errno.ENODEV, "not mounted", watch.path)
        return identity(fd)
    finally:
        os.close(fd)


def found(watch: WatchSettings) -> Identity | None:
    """Do as `identify`, but return None where that raises OSError."""
    try:
        return identify(watch)
    except OSError:
        return None


def inner_roots(watch: WatchSettings, watches: Iterable[WatchSettings]) -> frozenset[str]:
    """Return the sub-paths of a watch that are roots of other watches.

    Files below those belong to the other watch: of several, the one with the longest path.
    """
    prefix = watch.path.rstrip("/") + "/"
    return frozenset(
        other.path[len(prefix) :]
        for other in watches
        if other.path != watch.path and other.path.startswith(prefix)
    )
