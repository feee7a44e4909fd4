"""The uploads that have failed and wait for an operator, or for a better write of their path."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal
from watchman.uploads.upload import State, Upload

logger = logging.getLogger(__name__)

#: In the record of an upload that has failed as its transfer had, not its move or its task.
NEVER_WAITED = "never_waited"

#: Failures forgotten between two commits.
AT_ONCE = 1_000


@dataclass(slots=True)
class Failure:
    """Where a failed upload's file was found, since when (epoch), and where the journal keeps it.

    Until that is durable, `position` is -1.
    """

    path: str
    at: float
    position: int = -1


class Failures:
    """Failed uploads by id, the oldest first. Changed by the dispatcher's thread alone.

    `settled` counts what became of those that are over, by state.
    """

    def __init__(self, *, journal: Journal, commit: GroupCommit, settled: Counter[str]) -> None:
        self._journal = journal
        self._commit = commit
        self._settled = settled
        self._failed: dict[str, Failure] = {}
        #: Their ids by path: a good write settles them.
        self._by_path: dict[str, set[str]] = {}

    def positions(self) -> list[int]:
        """Return where the journal keeps them; for any thread."""
        return [one.position for one in list(self._failed.values()) if one.position >= 0]

    def add(
        self,
        upload: Upload,
        reason: str,
        listed: Callable[[int], None],
        *,
        never_waited: bool = False,
    ) -> None:
        """List an upload; `listed` is called with the position of its record once it is durable.

        What is said of its file from now on is for it, too, as by the next line of the same log.
        """
        at = time.time()
        record = {"event": State.FAILED.value, "at": at, **upload.encode(), "reason": reason}
        if never_waited:
            record[NEVER_WAITED] = True
        failure = Failure(upload.source_path, at)
        self._keep(upload.id, failure)

        def durable(position: int) -> None:
            self._journal.hold(position)
            failure.position = position
            listed(position)

        # Nobody says it twice, and a scan would take the file for whole.
        self._commit.stage(record, durable, lasting=True)

    def replay(self, upload: Upload, record: Mapping[str, Any]) -> None:
        """List an upload whose record stands in the journal."""
        self._journal.hold(upload.position)
        self._keep(upload.id, Failure(upload.source_path, record["at"], upload.position))

    def unlist(self, upload_id: str) -> None:
        """Take an upload off the list, as the journal says by what follows."""
        if upload_id in self._failed:
            self._journal.release(self._pop(upload_id).position)

    def unlist_path(self, path: str) -> None:
        """Take all uploads of a path off the list, as `unlist`."""
        for upload_id in self._by_path.get(path, set()).copy():
            self.unlist(upload_id)

    def _keep(self, upload_id: str, failure: Failure) -> None:
        self._failed[upload_id] = failure
        self._by_path.setdefault(failure.path, set()).add(upload_id)

    def holds(self, upload: Upload) -> bool:
        """Whether an upload that was read from the list is still on it."""
        failure = self._failed.get(upload.id)
        return failure is not None and failure.position == upload.position

    def leave(self, upload_id: str, record: dict[str, Any], left: Callable[[int], None]) -> None:
        """Take an upload off the list with a record that says so, whose position `left` is told."""
        before = self._pop(upload_id)

        def durable(position: int) -> None:
            self._journal.release(before.position)
            left(position)

        self._commit.stage(record, durable, lasting=True)

    def drop(self, upload: Upload) -> None:
        """Settle a failed upload for good."""
        if upload.id in self._failed:
            self.settle(upload.id, State.DROPPED)
            logger.info("Upload %s is dropped: %r.", upload.id, upload.path)

    def forgive(self, path: str, but: str = "") -> None:
        """Settle older failures of a path, `but` that of an id: it was written again."""
        for upload_id in self._by_path.get(path, set()) - {but}:
            self.settle(upload_id, State.SUPERSEDED, "written again")

    def forget(self, before: float) -> None:
        """Settle what has failed before a moment (epoch) and nobody has cared for since."""
        for upload_id, failure in list(islice(self._failed.items(), AT_ONCE)):
            if failure.at >= before:
                return
            logger.info("Upload %s is listed no longer: %r.", upload_id, failure.path)
            self.settle(upload_id, State.DROPPED, "failed for longer than keep_failed")

    def settle(self, upload_id: str, state: State, reason: str = "") -> None:
        """Write down what became of an upload that is on the list."""
        record = {"event": state.value, "at": time.time(), "id": upload_id}
        if reason:
            record["reason"] = reason
        self.leave(upload_id, record, lambda _: self._settled.update([state.value]))

    def _pop(self, upload_id: str) -> Failure:
        failure = self._failed.pop(upload_id)
        ids = self._by_path[failure.path]
        ids.discard(upload_id)
        if not ids:
            del self._by_path[failure.path]
        return failure
