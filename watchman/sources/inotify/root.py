"""A watch's root directory, which may come and go."""

from __future__ import annotations

import logging

from watchman.config.settings import WatchSettings
from watchman.sources.inotify.tree import Node
from watchman.sources.scan.roots import identify

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
