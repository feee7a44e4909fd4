"""Looks up the earlier upload of a file that is resubmitted."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass

from watchman.dispatch.dispatcher import Dispatcher
from watchman.operate.history import is_settled
from watchman.store.journal import Journal
from watchman.uploads.outcome import Outcome
from watchman.uploads.upload import Answer, Notification, Respond, Source, State

logger = logging.getLogger(__name__)

#: Most notifications that are looked up in one pass through journal and history.
BATCH = 128

Asked = tuple[Notification, Respond]


@dataclass(slots=True)
class Past:
    """The latest upload of a path, that upload's latest event, and whether it is settled by it."""

    id: str
    event: str = ""
    is_settled: bool = False
    original: str = ""


class Resubmissions:
    """Stands between listener and dispatcher: a thread that finds the upload ids for `--same-id`.

    All other notifications go to the dispatcher at once. A batch is looked up only after the batch
    before it was decided about, so that no id is used twice at the same time.
    """

    def __init__(self, *, journal: Journal, dispatcher: Dispatcher) -> None:
        self._journal = journal
        self._dispatcher = dispatcher
        self._asked: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="resubmissions")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._asked.put(None)

    def join(self) -> None:
        self._thread.join()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, notification: Notification, answer: Respond) -> None:
        """Do as `Dispatcher.submit`. Any thread may call it."""
        # If a file lies below a move's destination, the history has the path it was uploaded as.
        by_hand = notification.source is Source.RESUBMIT and not notification.resubmit_as
        was_moved = by_hand and self._dispatcher.rules.moved_by(notification.path)
        if notification.same_id or was_moved:
            self._asked.put((notification, answer))
        else:
            self._dispatcher.submit(notification, answer)

    def _run(self) -> None:
        while (first := self._asked.get()) is not None:
            batch = [first]
            while len(batch) < BATCH and not self._asked.empty():
                following = self._asked.get()
                if following is None:
                    self.stop()
                    break
                batch.append(following)
            try:
                self._decide(batch)
            except Exception:
                logger.exception("Could not read the history of files that are sent again.")
                for _, answer in batch:
                    answer(Answer(Outcome.ERROR, "the journal cannot be read; see the log"))

    def _decide(self, batch: list[Asked]) -> None:
        """Submit or refuse each of a batch. Return when all with `--same-id` were decided."""
        pasts = past_of(self._journal, {notification.path for notification, _ in batch})
        decided = threading.Semaphore(0)
        submitted = 0
        for notification, answer in batch:
            past = pasts.get(notification.path)
            original = notification.resubmit_as or (past.original if past else "")
            known = notification._replace(resubmit_as=original)
            if not notification.same_id:
                self._dispatcher.submit(known, answer)
            elif past is None:
                what = "no upload of it is in the history; leave --same-id out"
                answer(Answer(Outcome.ERROR, what))
            elif not past.is_settled:
                what = "has failed" if past.event == State.FAILED else "is in hand"
                answer(Answer(Outcome.ERROR, f"{past.id} {what}: see watchman retry {past.id}"))
            else:
                # So that the path is refused if it comes again.
                past.event, past.is_settled = State.ACCEPTED, False
                submitted += 1

                def tell(outcome: Answer, answer: Respond = answer) -> None:
                    answer(outcome)
                    decided.release()

                self._dispatcher.submit(known._replace(old_id=past.id), tell)
        for _ in range(submitted):
            decided.acquire()


def past_of(journal: Journal, paths: set[str]) -> dict[str, Past]:
    """Return the latest upload of each path, from journal and history."""
    pasts: dict[str, Past] = {}
    by_id: dict[str, Past] = {}
    ids: set[str] = set()
    for record in journal.records(paths, ids):
        # An alarm has the path of the failed upload, but is not an upload itself.
        if record is None or "id" not in record or "alarm_of" in record:
            continue
        past = by_id.setdefault(record["id"], Past(record["id"]))
        past.event, past.is_settled = record["event"], is_settled(record)
        if "state" in record:
            past.original = record["original"]
            for path in paths & {record["path"], record["original"]}:
                # The upload's later records have only its id.
                ids.add(record["id"])
                pasts[path] = past
    return pasts
