"""The uploads that have failed and wait for an operator, or for a better write of their path."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

from watchman.groupcommit import GroupCommit
from watchman.journal import Journal
from watchman.upload import State, Upload

logger = logging.getLogger(__name__)

#: Failures forgotten between two commits.
AT_ONCE = 1_000


class Failure(NamedTuple):
    """Where the journal keeps a failed upload, where its file was found, and since when (epoch)."""

    position: int
    path: str
    at: float


class Failures:
    """Failed uploads by id, the oldest first. Changed by the dispatcher's thread alone.

    `settled` hears what became of those that are over.
    """

    def __init__(
        self, *, journal: Journal, commit: GroupCommit, settled: Callable[[State], None]
    ) -> None:
        self._journal = journal
        self._commit = commit
        self._settled = settled
        self._failed: dict[str, Failure] = {}
        #: Their ids by path: a good write settles them.
        self._by_path: dict[str, set[str]] = {}

    def positions(self) -> list[int]:
        """Return where the journal keeps them; for any thread."""
        return [failure.position for failure in list(self._failed.values())]

    def add(self, upload: Upload, position: int, at: float) -> None:
        """List an upload whose record, which says that it failed, is durable."""
        self._journal.hold(position)
        self._failed[upload.id] = Failure(position, upload.source_path, at)
        self._by_path.setdefault(upload.source_path, set()).add(upload.id)

    def holds(self, upload: Upload) -> bool:
        """Whether an upload that was read from the list is still on it."""
        failure = self._failed.get(upload.id)
        return failure is not None and failure.position == upload.position

    def remove(self, upload: Upload) -> bool:
        """Take an upload off the list; False if it is not on it any more."""
        if not self.holds(upload):
            return False
        self._journal.release(self._pop(upload.id).position)
        return True

    def drop(self, upload: Upload) -> None:
        """Settle a failed upload for good."""

        def durable(_: int) -> None:
            if self.remove(upload):
                self._settled(State.DROPPED)
                logger.info("Upload %s is dropped: %r.", upload.id, upload.path)

        self._commit.stage(_record(State.DROPPED, upload.id), durable, lasting=True)

    def forgive(self, path: str) -> None:
        """Settle older failures of a path: it was written again."""
        for upload_id in list(self._by_path.get(path, ())):
            self._settle(upload_id, State.SUPERSEDED, "written again")

    def forget(self, before: float) -> None:
        """Settle what has failed before a moment (epoch) and nobody has cared for since."""
        for upload_id, failure in list(islice(self._failed.items(), AT_ONCE)):
            if failure.at >= before:
                return
            logger.info("Upload %s is listed no longer: %r.", upload_id, failure.path)
            self._settle(upload_id, State.DROPPED, "failed for longer than keep_failed")

    def _settle(self, upload_id: str, state: State, reason: str) -> None:
        position = self._pop(upload_id).position

        def durable(_: int) -> None:
            self._settled(state)
            self._journal.release(position)

        record = _record(state, upload_id) | {"reason": reason}
        self._commit.stage(record, durable, lasting=True)

    def _pop(self, upload_id: str) -> Failure:
        failure = self._failed.pop(upload_id)
        ids = self._by_path[failure.path]
        ids.discard(upload_id)
        if not ids:
            del self._by_path[failure.path]
        return failure


def _record(state: State, upload_id: str) -> dict[str, Any]:
    return {"event": state.value, "at": time.time(), "id": upload_id}
