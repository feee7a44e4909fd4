"""The alarms: a task of `[watchman] on_failed` tells somebody of each upload that has failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from watchman.config.settings import OnFailed
from watchman.errors import JournalCorrupt
from watchman.sinks.backlog import Backlog
from watchman.sinks.failures import Failures, alarm_id_of
from watchman.sinks.steps import TOLD, Steps
from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal
from watchman.uploads.upload import Report, State, Task, Upload

logger = logging.getLogger(__name__)

#: Alarms that are made in one commit.
AT_ONCE = 1_000

#: The name that stands in the place of a `[task:...]` section.
SECTION = "on_failed"

#: Marks the records of an alarm, with the id of the upload that has failed.
ALARM_OF = "alarm_of"


class Alarms:
    """Makes an alarm for each failed upload that nobody was told of; for the dispatcher's thread.

    An alarm waits for its broker as an upload does: it has a record in the journal, and an id that
    follows from the failure, so that a repeat after a crash has the same. Once it is sent, the
    record that says so is kept for as long as the failure is listed. An alarm that cannot be sent
    makes no other one: the failure stays one that nobody was told of.
    """

    def __init__(
        self,
        on_failed: OnFailed | None,
        *,
        journal: Journal,
        commit: GroupCommit,
        failures: Failures,
        steps: Steps,
        wait: Callable[[Upload], None],
    ) -> None:
        """`wait` lets an alarm wait for its broker, once its record is durable."""
        self._on_failed = on_failed
        self._journal = journal
        self._commit = commit
        self._failures = failures
        self._steps = steps
        self._wait = wait

    def change(self, on_failed: OnFailed | None) -> None:
        """Go by another option from now on. What could not be told before is told by that."""
        if on_failed != self._on_failed:
            self._on_failed = on_failed
            self._failures.announce_refused()

    def sound(self) -> None:
        """Make alarms for failed uploads that have none, for some at a time."""
        if self._on_failed is None:
            return
        for upload_id in list(islice(self._failures.unannounced, AT_ONCE)):
            del self._failures.unannounced[upload_id]
            self._announce(upload_id, self._on_failed)

    def _announce(self, upload_id: str, on_failed: OnFailed) -> None:
        failure = self._failures.get(upload_id)
        assert failure is not None, "who leaves the list is not to be announced"
        try:
            record = self._journal.read(failure.position)
        except (JournalCorrupt, OSError) as e:
            self._refuse(upload_id, f"its record cannot be read: {e}")
            return
        upload = Upload.decode(record)
        told = {"id": upload.id, "path": upload.path, "user": upload.user}
        told |= {"client": upload.client, "reason": record["reason"]}
        alarm = upload._replace(
            id=alarm_id_of(upload_id, failure),
            task=Task(SECTION, on_failed.broker, on_failed.task, kwargs=told),
            # As it has been moved already: nobody looks for its file below a watch.
            source_state=upload.state,
            move="",
            destination="",
            moved_from="",
            alarm_of=upload_id,
        )
        accepted = {"event": State.ACCEPTED, **alarm.encode()}
        self._commit.stage(accepted, lambda at: self._wait(alarm.at(at)), lasting=True)

    def settle(self, report: Report, record: dict[str, Any], backlog: Backlog) -> None:
        """Write down what became of an alarm; `record` is as that of any upload."""
        alarm, has_failed = report.upload, report.state is State.FAILED
        if has_failed:
            record["event"] = State.DROPPED
        # Who drops an alarm by hand knows of the failure.
        record |= {ALARM_OF: alarm.alarm_of, "told": not has_failed}

        def durable(position: int) -> None:
            self._journal.release(alarm.position)
            backlog.settle(alarm.position)
            if has_failed:
                self._refuse(alarm.alarm_of, report.reason)
            elif self._failures.tell(alarm.alarm_of, alarm.id, position):
                self._steps.tell(TOLD, alarm._replace(id=alarm.alarm_of), record["at"])
                logger.info("Told of failed upload %s: %r.", alarm.alarm_of, alarm.path)

        self._commit.stage(record, durable, lasting=True)

    def _refuse(self, upload_id: str, reason: str) -> None:
        logger.error("No task of on_failed can be sent for upload %s: %s.", upload_id, reason)
        if failure := self._failures.get(upload_id):
            failure.refused = reason

    # At start.

    def replay(self, upload: Upload) -> None:
        """Take up an alarm that waits, from its record in the journal."""
        failure = self._failures.get(upload.alarm_of)
        if failure is not None and upload.id == alarm_id_of(upload.alarm_of, failure):
            self._failures.unannounced.pop(upload.alarm_of, None)

    def replay_settled(self, position: int, record: Mapping[str, Any]) -> None:
        """Take up from the journal what became of an alarm. One that was refused is made again."""
        if record["told"]:
            self._failures.tell(record[ALARM_OF], record["id"], position)
        elif self._failures.get(record[ALARM_OF]):
            self._failures.unannounced[record[ALARM_OF]] = None
