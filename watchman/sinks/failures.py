"""The list of failed uploads. Each waits for an operator, or for a good write of its path."""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from watchman.sinks.steps import Origin, Step, Steps
from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal
from watchman.uploads.upload import State, Upload

logger = logging.getLogger(__name__)

#: Marks the record of an upload that failed before it waited for a move or for its task: the
#: transfer failed, or ProFTPD did not confirm it.
NEVER_WAITED = "never_waited"

#: Old failures that `forget` settles in one commit.
AT_ONCE = 1_000


@dataclass(slots=True)
class Failure:
    """A failed upload: where its file was found, and when it failed (epoch).

    `position` is where the journal has its record, -1 until that is durable. `told` is where it
    says that the upload's alarm was sent, -1 while none was. `refused` is why none can be.
    """

    path: str
    at: float
    origin: Origin
    user: str
    position: int = -1
    told: int = -1
    refused: str = ""


class Failures:
    """The failed uploads by id, oldest first. Only the dispatcher's thread changes them."""

    def __init__(self, *, journal: Journal, commit: GroupCommit, steps: Steps) -> None:
        self._journal = journal
        self._commit = commit
        self._steps = steps
        self._failed: dict[str, Failure] = {}
        #: The ids of those for which no alarm was made, in the order in which they failed.
        self.unannounced: dict[str, None] = {}
        #: The ids by path, for a good write of a path settles its failures.
        self._by_path: dict[str, set[str]] = {}

    def positions(self) -> list[int]:
        """Return the journal positions of their records. Any thread may call it."""
        return [one.position for one in self._listed()]

    def __len__(self) -> int:
        return len(self._failed)

    def untold(self) -> list[Failure]:
        """Return those of which no alarm was sent. Any thread may call it."""
        return [one for one in self._listed() if one.told < 0]

    def _listed(self) -> list[Failure]:
        return [one for one in list(self._failed.values()) if one.position >= 0]

    def get(self, upload_id: str) -> Failure | None:
        """Return a failed upload that is on the list."""
        return self._failed.get(upload_id)

    def add(
        self,
        upload: Upload,
        reason: str,
        listed: Callable[[int], None],
        *,
        never_waited: bool = False,
    ) -> None:
        """List an upload; `listed` is called with the position of its record once that is durable.

        It is on the list at once, before its record is durable: the next line of the same log may
        already be about this file.
        """
        at = time.time()
        record = {"event": State.FAILED, "at": at, **upload.encode(), "reason": reason}
        if never_waited:
            record[NEVER_WAITED] = True
        failure = _failure(upload, at)
        self._keep(upload.id, failure)

        def durable(position: int) -> None:
            self._journal.hold(position)
            failure.position = position
            if self._failed.get(upload.id) is failure:
                self.unannounced[upload.id] = None
            listed(position)

        # Lasting, because the word that the transfer failed comes only once. Without this record a
        # scan after a restart would take the file for a whole one.
        self._commit.stage(record, durable, lasting=True)

    def replay(self, upload: Upload, record: Mapping[str, Any]) -> None:
        """List an upload from its record in the journal."""
        self._journal.hold(upload.position)
        failure = _failure(upload, record["at"])
        failure.position = upload.position
        self._keep(upload.id, failure)
        self.unannounced[upload.id] = None

    def tell(self, upload_id: str, alarm_id: str, position: int) -> bool:
        """Note that an alarm was sent, as a record says that the journal has at `position`.

        False if that upload is not listed any more, or has failed once more since.
        """
        failure = self._failed.get(upload_id)
        if failure is None or alarm_id != alarm_id_of(upload_id, failure):
            return False
        self._journal.hold(position)
        failure.told = position
        self.unannounced.pop(upload_id, None)
        return True

    def announce_refused(self) -> None:
        """Have alarms made for those of which none could be sent so far."""
        for upload_id, failure in self._failed.items():
            if failure.refused:
                failure.refused = ""
                self.unannounced[upload_id] = None

    def unlist(self, upload_id: str) -> None:
        """Take an upload off the list in a replay, because a later record says so."""
        if upload_id in self._failed:
            self._release(self._pop(upload_id))

    def unlist_path(self, path: str) -> None:
        """Take all uploads of a path off the list in a replay."""
        for upload_id in self._by_path.get(path, set()).copy():
            self.unlist(upload_id)

    def _keep(self, upload_id: str, failure: Failure) -> None:
        self._failed[upload_id] = failure
        self._by_path.setdefault(failure.path, set()).add(upload_id)

    def holds(self, upload: Upload) -> bool:
        """Whether an upload is still on the list, with the same record."""
        failure = self._failed.get(upload.id)
        return failure is not None and failure.position == upload.position

    def leave(self, upload_id: str, record: dict[str, Any], left: Callable[[int], None]) -> None:
        """Take an upload off the list and write `record`; `left` is called with its position."""
        before = self._pop(upload_id)

        def durable(position: int) -> None:
            self._release(before)
            left(position)

        self._commit.stage(record, durable, lasting=True)

    def _release(self, failure: Failure) -> None:
        for position in (failure.position, failure.told):
            if position >= 0:
                self._journal.release(position)

    def drop(self, upload: Upload) -> None:
        """Settle a failed upload because an operator drops it."""
        if upload.id in self._failed:
            self.settle(upload.id, State.DROPPED)
            logger.info("Upload %s is dropped: %r.", upload.id, upload.path)

    def forgive(self, path: str, but: str = "") -> None:
        """Settle the failures of a path, except that with the id `but`: it was written again."""
        for upload_id in self._by_path.get(path, set()) - {but}:
            self.settle(upload_id, State.SUPERSEDED, "written again")

    def forget(self, before: float) -> None:
        """Settle uploads that failed before a moment (epoch) and that no operator has handled."""
        for upload_id, failure in list(islice(self._failed.items(), AT_ONCE)):
            if failure.at >= before:
                return
            logger.info("Upload %s is listed no longer: %r.", upload_id, failure.path)
            self.settle(upload_id, State.DROPPED, "failed for longer than keep_failed")

    def settle(self, upload_id: str, state: State, reason: str = "") -> None:
        """Take an upload off the list, and write down what it is settled as."""
        failure = self._failed[upload_id]
        step = Step(
            state,
            time.time(),
            upload_id,
            failure.path,
            failure.path,
            failure.origin,
            failure.user,
            reason=reason,
        )
        record = {"event": state, "at": step.at, "id": upload_id}
        if reason:
            record["reason"] = reason
        self.leave(upload_id, record, lambda _: self._steps.count_known(step))

    def _pop(self, upload_id: str) -> Failure:
        failure = self._failed.pop(upload_id)
        self.unannounced.pop(upload_id, None)
        ids = self._by_path[failure.path]
        ids.discard(upload_id)
        if not ids:
            del self._by_path[failure.path]
        return failure


def alarm_id_of(upload_id: str, failure: Failure) -> str:
    """Return the id of the alarm of a failure: the same whenever it is asked for."""
    return str(uuid.uuid5(uuid.UUID(upload_id), repr(failure.at)))


def _failure(upload: Upload, at: float) -> Failure:
    # One user, and one section, may have thousands.
    return Failure(upload.source_path, at, Origin.of(upload), sys.intern(upload.user))
