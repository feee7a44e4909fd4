"""Directories that cannot be watched: logged once, counted, and tried again."""

from __future__ import annotations

import errno
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from watchman.sources.inotify.tree import Node, Root
from watchman.uploads.beneath import below

logger = logging.getLogger(__name__)

#: Seconds until a directory that could not be watched is tried again: the first time, and at most.
#: The first try comes soon, because root often makes a directory for a new user and gives it to him
#: a moment later.
RETRY_SOON, RETRY = 1.0, 60.0

#: Seconds from the first try on in which a directory counts as one that is about to be watched.
#: The second try is over by then.
FRESH = 3.0

_ADVICE = {
    errno.ENOSPC: (
        " The limit of inotify watches is reached: raise sysctl fs.inotify.max_user_watches."
        " Until then it is scanned every minute."
    ),
    errno.EACCES: " The daemon's user needs the right to read and enter it.",
    errno.EMFILE: " Too many files are open: raise the daemon's limit (ulimit -n).",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a directory could not be watched, and when it could not at first (monotonic)."""

    error: OSError
    since: float


class Refusals(dict[Node, Refusal]):
    """The directories that could not be watched."""

    def __init__(self) -> None:
        #: By watch, until all of it is watched: the errnos that were logged already, and the
        #: sub-paths that were refused already.
        self._said: defaultdict[Root, set[int | None]] = defaultdict(set)
        self._tried: defaultdict[Root, set[str]] = defaultdict(set)
        #: Whether something was refused for the first time since the last call of `are_due`.
        self._is_new = False
        self._next_retry, self._retry_in = 0.0, RETRY

    def add(self, node: Node, error: OSError) -> None:
        """Remember that a directory cannot be watched. Each errno is logged once per watch.

        The first try of a directory is not logged, for the second one may be in time.
        """
        place = node.locate()
        if place is None:
            return
        before = self.get(node)
        self[node] = Refusal(error, before.since if before else time.monotonic())
        root, subpath = place
        self._is_new |= subpath not in self._tried[root]
        self._tried[root].add(subpath)
        if before is None or error.errno in self._said[root]:
            return
        self._said[root].add(error.errno)
        logger.error(
            "Watch %s: %r cannot be watched: %s.%s Trying again every %d seconds; more like it are"
            " only counted in the status.",
            root.settings.name,
            below(root.settings.path, subpath),
            error.strerror,
            _ADVICE.get(error.errno or 0, ""),
            RETRY,
        )

    def are_due(self, now: float) -> bool:
        """Whether it is time to try all of them again.

        That is soon after a directory was refused for the first time, and then less and less often.
        """
        if self._is_new:
            self._is_new, self._retry_in = False, RETRY_SOON
            self._next_retry = min(self._next_retry, now + RETRY_SOON)
        if now < self._next_retry:
            return False
        self._retry_in = min(2 * self._retry_in, RETRY)
        self._next_retry = now + self._retry_in
        return True

    def log_recovered(self) -> None:
        """Log each watch that had refused directories and has none any more."""
        for root in list(self._tried):
            if not any(self._of(root)):
                del self._tried[root]
                if self._said.pop(root, None):
                    logger.info("Watch %s: all of it is watched now.", root.settings.name)

    def of(self, root: Root) -> tuple[int, list[str]]:
        """Return how many directories of a watch cannot be watched, and which of them are not fresh
        any more, and why. For any thread.
        """
        found, until = list(self._of(root)), time.monotonic() - FRESH
        return len(found), [text for text, since in found if since <= until]

    def _of(self, root: Root) -> Iterator[tuple[str, float]]:
        for node, refusal in list(self.items()):
            place = node.locate()
            if place is not None and place[0] is root:
                path = below(root.settings.path, place[1])
                yield f"{path!r}: {refusal.error.strerror}", refusal.since
