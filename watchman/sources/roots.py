"""The root directories of the watches."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable

from watchman import mounts
from watchman.settings import WatchSettings
from watchman.sources.tree import Node

logger = logging.getLogger(__name__)


class Root:
    """A watch's root directory. `node` is None while it is not there."""

    def __init__(self, settings: WatchSettings, inner: frozenset[str]) -> None:
        self.settings = settings
        #: Sub-paths that are the roots of other watches.
        self.inner = inner
        self.node: Node | None = None
        self.identity: tuple[int, int] | None = None
        #: Whether its tree has been gone through since it came.
        self.covered = False
        #: Whether that is about to be done, not begun yet.
        self.queued = False
        #: Why it is not there.
        self.missing: str | None = None

    def come(self, node: Node, identity: tuple[int, int]) -> None:
        if self.missing is not None:
            logger.info("Watch %s: %r is there now.", self.settings.name, self.settings.path)
        self.node, self.identity, self.missing = node, identity, None

    def leave(self, reason: str) -> None:
        """It is not there, or not the same any more; said once."""
        if self.missing is None:
            logger.warning(
                "Watch %s: %r is not there: %s. Waiting for it.",
                self.settings.name,
                self.settings.path,
                reason,
            )
        self.node, self.identity, self.missing, self.covered = None, None, reason, False

    def is_there(self) -> bool:
        """Whether its path still leads to the directory that is watched."""
        try:
            return self.identity == identify(self.settings)
        except OSError:
            return False


def identify(watch: WatchSettings) -> tuple[int, int]:
    """Device and inode of a watch's directory, or of that to which a symlink leads.

    Raises OSError also where it must be a mount and is none.
    """
    fd = os.open(watch.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if watch.mounted and not mounts.is_mount(fd):
            raise OSError(errno.ENODEV, "not mounted", watch.path)
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return status.st_dev, status.st_ino


def inner_roots(watch: WatchSettings, watches: Iterable[WatchSettings]) -> frozenset[str]:
    """The sub-paths of a watch that are roots of other watches: the longest path owns."""
    prefix = watch.path.rstrip("/") + "/"
    return frozenset(
        other.path[len(prefix) :]
        for other in watches
        if other.path != watch.path and other.path.startswith(prefix)
    )
