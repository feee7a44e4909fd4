"""The tries of uploads that did not succeed at once, and what each was answered."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from watchman.store.groupcommit import GroupCommit
from watchman.uploads.upload import Report

#: The event of the record of a try that has failed. Its upload's id is in `of`: with an `id` of its
#: own the record would be taken for one that settles the upload.
TRIED = "tried"

#: Answers of one upload that are written down. An answer may be a new one each time, for days.
ANSWERS = 20

#: Uploads whose tries are counted. Of those that were tried before them the count begins anew.
KEPT = 10_000


@dataclass(slots=True)
class _Tried:
    """How often an upload was tried, the last answer, and how many answers were written down."""

    times: int = 0
    answer: str = ""
    written: int = 0


class Tries:
    """Counts the tries of uploads, and has the journal tell of each answer that is a new one.

    Whoever took an upload calls it for that, in any thread.
    """

    def __init__(self, commit: GroupCommit) -> None:
        self._commit = commit
        #: Guards `_tried` where it grows or shrinks. By upload id, the one tried last comes last.
        self._lock = threading.Lock()
        self._tried: dict[str, _Tried] = {}

    def failed(self, report: Report, place: str) -> None:
        """Count a try at a place (`broker:NAME` or `move:NAME`) that is to be repeated."""
        upload_id = report.upload.id
        with self._lock:
            tried = self._tried.pop(upload_id, None) or _Tried()
            self._tried[upload_id] = tried
            while len(self._tried) > KEPT:
                del self._tried[next(iter(self._tried))]
        tried.times += 1
        if report.reason != tried.answer and tried.written < ANSWERS:
            tried.answer, tried.written = report.reason, tried.written + 1
            record = {"event": TRIED, "at": time.time(), "of": {"id": upload_id}, "place": place}
            record |= {"try": tried.times, "answer": report.reason}
            # It is lost where the journal cannot be written: nothing depends on it.
            self._commit.bring_first(partial(self._commit.stage, record))

    def settlement(self, report: Report) -> dict[str, Any]:
        """Return the record of what an upload is settled as, and forget its tries."""
        upload_id = report.upload.id
        record: dict[str, Any] = {"event": report.state, "at": time.time(), "id": upload_id}
        if report.reason:
            record["reason"] = report.reason
        record |= report.sent
        if tries := self._over(upload_id):
            record["try"] = tries + 1
        return record

    def _over(self, upload_id: str) -> int:
        """Return how often an upload was tried in vain, and forget it."""
        if upload_id not in self._tried:  # as nearly all
            return 0
        with self._lock:
            tried = self._tried.pop(upload_id, None)
        return tried.times if tried else 0
