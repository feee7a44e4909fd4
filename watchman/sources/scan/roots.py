"""Which directories are the roots of the watches."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from watchman.config.settings import WatchSettings
from watchman.sources.scan.walk import Identity, identity
from watchman.uploads import mounts


def identify(watch: WatchSettings) -> Identity:
    """What a watch's directory is, or that to which a symlink leads.

    Raises OSError also where it must be a mount and is none.
    """
    fd = os.open(watch.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if watch.mounted and not mounts.is_mount(fd):
            raise OSError(errno.ENODEV, "not mounted", watch.path)
        return identity(fd)
    finally:
        os.close(fd)


def found(watch: WatchSettings) -> Identity | None:
    """As `identify`, None where it is not there."""
    try:
        return identify(watch)
    except OSError:
        return None


def inner_roots(watch: WatchSettings, watches: Iterable[WatchSettings]) -> frozenset[str]:
    """The sub-paths of a watch that are roots of other watches: the longest path owns."""
    prefix = watch.path.rstrip("/") + "/"
    return frozenset(
        other.path[len(prefix) :]
        for other in watches
        if other.path != watch.path and other.path.startswith(prefix)
    )
