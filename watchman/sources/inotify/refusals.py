"""Directories that cannot be watched: said aloud once, counted, tried again."""

from __future__ import annotations

import errno
import logging

from watchman.sources.inotify.tree import Node, Tree
from watchman.sources.scan.walk import below

logger = logging.getLogger(__name__)

#: Seconds until a directory that could not be watched is tried again: at first, and at most. Who
#: makes a directory for somebody else, as root does for a new user, gives it away a moment later.
RETRY_SOON, RETRY = 1.0, 60.0

_ADVICE = {
    errno.ENOSPC: (
        " The limit of inotify watches is reached: raise sysctl fs.inotify.max_user_watches."
        " Until then it is scanned every minute."
    ),
    errno.EACCES: " The daemon's user needs the right to read and enter it.",
    errno.EMFILE: " Too many files are open: raise the daemon's limit (ulimit -n).",
}


class Refusals:
    """What could not be watched, and why; `paths` are those of the watches."""

    def __init__(self, tree: Tree, paths: dict[str, str]) -> None:
        self._tree = tree
        self._paths = paths
        self._errors: dict[Node, OSError] = {}
        #: Watch and errno of what has been said, until all of the watch is watched.
        self._said: set[tuple[str, int | None]] = set()
        #: Watch and sub-path of what was refused already, until all of the watch is watched.
        self._tried: set[tuple[str, str]] = set()
        self._is_new = False

    def __contains__(self, node: Node) -> bool:
        return node in self._errors

    def nodes(self) -> list[Node]:
        return list(self._errors)

    def add(self, node: Node, error: OSError) -> None:
        place = self._tree.locate(node)
        if place is None:
            return
        self._errors[node] = error
        watch, subpath = place
        self._is_new |= place not in self._tried
        self._tried.add(place)
        if (watch, error.errno) in self._said:
            return
        self._said.add((watch, error.errno))
        logger.error(
            "Watch %s: %r cannot be watched: %s.%s Trying again every %d seconds; more like it are"
            " only counted in the status.",
            watch,
            below(self._paths[watch], subpath),
            error.strerror,
            _ADVICE.get(error.errno or 0, ""),
            RETRY,
        )

    def take_new(self) -> bool:
        """Whether anything has been refused for the first time since the last call."""
        is_new, self._is_new = self._is_new, False
        return is_new

    def discard(self, node: Node) -> None:
        self._errors.pop(node, None)

    def forgive(self) -> None:
        """Say which watches have none any more."""
        for watch in {watch for watch, _ in self._said}:
            if not self.of(watch):
                self._said = {said for said in self._said if said[0] != watch}
                self._tried = {tried for tried in self._tried if tried[0] != watch}
                logger.info("Watch %s: all of it is watched now.", watch)

    def of(self, watch: str) -> list[str]:
        """What cannot be watched in a watch, and why; from any thread."""
        found = []
        for node, error in list(self._errors.items()):
            place = self._tree.locate(node)
            if place is not None and place[0] == watch:
                found.append(f"{below(self._paths[watch], place[1])!r}: {error.strerror}")
        return found
