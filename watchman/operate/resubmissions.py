"""What the past says of files that are resubmitted."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass

from watchman.dispatch.dispatcher import Dispatcher
from watchman.operate.history import SETTLED
from watchman.store.journal import Journal
from watchman.uploads.outcome import Outcome
from watchman.uploads.upload import Answer, Notification, Respond, Source, State

logger = logging.getLogger(__name__)

#: Notifications looked up in one reading of journal and history.
BATCH = 128

Asked = tuple[Notification, Respond]


@dataclass(slots=True)
class Past:
    """The last upload of a path, and the last event of it."""

    id: str
    event: str
    original: str = ""


class Resubmissions:
    """Stands before the dispatcher: a thread that reads up what a `--same-id` asks for.

    All else passes at once. The next batch is read up once this one is decided about, so that no
    id is given twice.
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

    def submit(self, notification: Notification, answer: Respond) -> None:
        """As the dispatcher's, from any thread."""
        # What was moved, the history knows as what it was uploaded.
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
                logger.exception("Could not read up the past of what is resubmitted.")
                for _, answer in batch:
                    answer(Answer(Outcome.ERROR, "the journal cannot be read; see the log"))

    def _decide(self, batch: list[Asked]) -> None:
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
                answer(Answer(Outcome.ERROR, "no upload of it is in the history: leave --same-id"))
            elif past.event not in SETTLED:
                what = "has failed" if past.event == State.FAILED.value else "is in hand"
                answer(Answer(Outcome.ERROR, f"{past.id} {what}: see watchman retry {past.id}"))
            else:
                past.event = State.ACCEPTED.value  # of a path named twice the second is refused
                submitted += 1

                def tell(outcome: Answer, answer: Respond = answer) -> None:
                    answer(outcome)
                    decided.release()

                self._dispatcher.submit(known._replace(old_id=past.id), tell)
        for _ in range(submitted):
            decided.acquire()


def past_of(journal: Journal, paths: set[str]) -> dict[str, Past]:
    """Return the last upload of each path, from journal and history."""
    pasts: dict[str, Past] = {}
    by_id: dict[str, Past] = {}
    ids: set[str] = set()
    for record in journal.records(paths, ids):
        if record is None or "id" not in record:
            continue
        past = by_id.setdefault(record["id"], Past(record["id"], ""))
        past.event = record["event"]
        if "state" in record:
            past.original = record["original"]
            for path in paths & {record["path"], record["original"]}:
                # What names its id alone comes later.
                ids.add(record["id"])
                pasts[path] = past
    return pasts
