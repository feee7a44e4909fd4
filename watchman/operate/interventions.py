"""What an operator does about uploads that are not settled: try them again, or drop them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from watchman.dispatch.dispatcher import Dispatcher
from watchman.errors import JournalUnwritable, WatchmanError
from watchman.operate.queue_view import Found, QueueView, Selection
from watchman.uploads.upload import State, Upload

#: Seconds for which an upload that a publisher has in hand is waited for.
IN_HAND = 10.0

#: Uploads handled together: for each such lot a backlog is walked once.
LOT = 10_000

#: States that a retry is about, and a drop, where the operator names none.
RETRIED = (State.FAILED.value, State.DEFERRED.value)
DROPPED = (*RETRIED, "waiting")

#: Rows of what was done or refused, with None now and then in between.
Rows = Iterator[dict[str, Any] | None]


class Interventions:
    """Retries and drops. Called in the thread of queries, and durable before it is told."""

    def __init__(
        self, queue_view: QueueView, *, dispatcher: Dispatcher, hurry: Callable[[str, str], None]
    ) -> None:
        #: `hurry` has a broker or a move, by its name, tried at once.
        self._queue_view = queue_view
        self._dispatcher = dispatcher
        self._hurry = hurry

    def retry(self, fields: Mapping[str, str]) -> Rows:
        """Have failed uploads wait again, and open the lanes that deferred ones wait in."""
        selection = Selection.of(fields, RETRIED)
        opened: set[tuple[str, str]] = set()
        failed: list[Found] = []
        missing = set(selection.ids)
        for found in self._queue_view.select(selection):
            if found is None:
                yield None
                continue
            missing.discard(found.upload.id)
            if found.group.state == State.FAILED.value:
                failed.append(found)
                if len(failed) == LOT:
                    yield from self._retry_failed(failed)
                    failed = []
            elif found.group.paused:
                yield _refusal(found.upload, f"{found.group.paused} is paused; resume that")
            else:
                where = (found.group.place, found.group.lane)
                if where not in opened:
                    opened.add(where)
                    self._open(*where)
                yield _row(found.upload, "waiting")
        yield from self._retry_failed(failed)
        yield from _unknown(missing)

    def drop(self, fields: Mapping[str, str]) -> Rows:
        """Settle uploads for good: no task will be sent."""
        selection = Selection.of(fields, DROPPED)
        lot: list[Found] = []
        missing = set(selection.ids)
        for found in self._queue_view.select(selection):
            if found is None:
                yield None
                continue
            missing.discard(found.upload.id)
            # A lot is of one place, which it is withdrawn from.
            if lot and (len(lot) == LOT or lot[0].group.place != found.group.place):
                yield from self._drop(lot)
                lot = []
            lot.append(found)
        yield from self._drop(lot)
        yield from _unknown(missing)

    def _open(self, place: str, lane: str) -> None:
        # The publisher first: it would put back what it still backs off from.
        kind, _, name = place.partition(":")
        self._hurry(kind, name)
        self._dispatcher.pipeline.backlogs[place].open(lane)

    def _retry_failed(self, lot: list[Found]) -> Rows:
        if not lot:
            return
        retry = self._dispatcher.pipeline.retry_failed
        refused = self._durably(lambda: [retry(found.upload) for found in lot], "tried again")
        for found, reason in zip(lot, refused, strict=True):
            if reason:
                yield _refusal(found.upload, reason)
            else:
                yield _row(found.upload, "waiting")

    def _drop(self, lot: list[Found]) -> Rows:
        if not lot:
            return
        pipeline, place = self._dispatcher.pipeline, lot[0].group.place
        by_position = {found.upload.position: found.upload for found in lot}
        if lot[0].group.state == State.FAILED.value:
            drop, dropped = pipeline.failures.drop, set(by_position)
        else:
            dropped = pipeline.backlogs[place].withdraw(by_position, IN_HAND)
            drop = pipeline.drop
        self._durably(lambda: [drop(by_position[position]) for position in dropped], "dropped")
        for position, upload in by_position.items():
            if position in dropped:
                yield _row(upload, State.DROPPED.value)
            else:
                yield _refusal(upload, "its task has been sent, or is being sent at this moment")

    def _durably(self, work: Callable[[], list[Any]], what: str) -> list[Any]:
        try:
            return self._dispatcher.call(work)
        except JournalUnwritable as e:
            raise WatchmanError(f"{e}; what was named will be {what} once it can") from e


def _row(upload: Upload, state: str) -> dict[str, Any]:
    return {"id": upload.id, "path": upload.path, "state": state, "refused": None}


def _refusal(upload: Upload, reason: str) -> dict[str, Any]:
    return {"id": upload.id, "path": upload.path, "state": None, "refused": reason}


def _unknown(ids: set[str]) -> Rows:
    for upload_id in sorted(ids):
        reason = f"nothing of that id waits or has failed; watchman explain {upload_id} says more"
        yield {"id": upload_id, "path": None, "state": None, "refused": reason}
