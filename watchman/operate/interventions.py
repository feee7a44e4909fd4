"""What an operator does about uploads that are not settled: try them again, or drop them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from watchman.dispatch.dispatcher import Dispatcher
from watchman.errors import JournalUnwritable, WatchmanError
from watchman.operate.queue_view import Found, QueueView, Selection
from watchman.sinks.backlogs import Group
from watchman.uploads.upload import State

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
        opened: set[tuple[str, str]] = set()
        return self._in_lots(Selection.of(fields, RETRIED), partial(self._retry, opened))

    def drop(self, fields: Mapping[str, str]) -> Rows:
        """Settle uploads for good: no task will be sent."""
        return self._in_lots(Selection.of(fields, DROPPED), self._drop)

    def _in_lots(self, selection: Selection, act: Callable[[list[Found]], Rows]) -> Rows:
        """Act on lots of the uploads that are meant, each of one place."""
        lot: list[Found] = []
        missing = set(selection.ids)
        for found in self._queue_view.select(selection):
            if found is None:
                yield None
                continue
            missing.discard(found.upload.id)
            if lot and (len(lot) == LOT or lot[0].group.place != found.group.place):
                yield from act(lot)
                lot = []
            lot.append(found)
        if lot:
            yield from act(lot)
        for upload_id in sorted(missing):
            why = f"nothing of that id waits or has failed; watchman explain {upload_id} says more"
            yield _row(upload_id, None, why)

    def _retry(self, opened: set[tuple[str, str]], lot: list[Found]) -> Rows:
        if _has_failed(lot):
            retry = self._dispatcher.pipeline.retry_failed
            refused = self._durably(lambda: [retry(found.upload) for found in lot], "tried again")
        else:
            refused = [self._open(opened, found.group) for found in lot]
        for found, reason in zip(lot, refused, strict=True):
            yield _row(found.upload.id, found.upload.path, reason, "waiting")

    def _open(self, opened: set[tuple[str, str]], group: Group) -> str:
        """Have what is held up with a group tried at once; return why it cannot be."""
        if group.paused:
            return f"{group.paused} is paused; resume that"
        if (group.place, group.lane) not in opened:
            opened.add((group.place, group.lane))
            # The publisher first: it would put back what it still backs off from.
            kind, _, name = group.place.partition(":")
            self._hurry(kind, name)
            self._dispatcher.pipeline.backlogs[group.place].open(group.lane)
        return ""

    def _drop(self, lot: list[Found]) -> Rows:
        pipeline = self._dispatcher.pipeline
        by_position = {found.upload.position: found.upload for found in lot}
        if _has_failed(lot):
            drop, dropped = pipeline.failures.drop, set(by_position)
        else:
            place = lot[0].group.place
            drop, dropped = pipeline.drop, pipeline.backlogs[place].withdraw(by_position, IN_HAND)
        self._durably(lambda: [drop(by_position[position]) for position in dropped], "dropped")
        sent = "its task has been sent, or is being sent at this moment"
        for position, upload in by_position.items():
            yield _row(upload.id, upload.path, "" if position in dropped else sent, "dropped")

    def _durably(self, work: Callable[[], list[Any]], what: str) -> list[Any]:
        try:
            return self._dispatcher.call(work)
        except JournalUnwritable as e:
            raise WatchmanError(f"{e}; what was named will be {what} once it can") from e


def _has_failed(lot: list[Found]) -> bool:
    """Whether a lot is of failed uploads: they are in a place of their own."""
    return lot[0].group.state == State.FAILED.value


def _row(upload_id: str, path: str | None, refused: str, state: str = "") -> dict[str, Any]:
    """Return what is told of an upload: its state now, or why nothing was done about it."""
    state_now = None if refused else state
    return {"id": upload_id, "path": path, "state": state_now, "refused": refused or None}
