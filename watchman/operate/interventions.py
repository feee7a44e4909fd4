"""Retries and drops of uploads that are not settled, as an operator asks for them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from watchman.dispatch.dispatcher import Dispatcher
from watchman.errors import JournalUnwritable, WatchmanError
from watchman.operate.queue_view import Found, QueueView, Selection
from watchman.sinks.backlogs import Group
from watchman.uploads.upload import State

#: Seconds to wait until a publisher reports an upload that it has taken.
IN_HAND = 10.0

#: Most uploads that are handled together. The backlog is searched once for all of them.
LOT = 10_000

#: The states in which uploads are retried or dropped, if the operator names no state.
RETRIED = (State.FAILED, State.DEFERRED)
DROPPED = (*RETRIED, "waiting")

#: Why an id is refused.
NOTHING = "no upload with that id waits or has failed; watchman explain {} says more"

Row = dict[str, Any]

#: A row for each upload: its state, or why nothing was done. None says that the work goes on.
Rows = Iterator[Row | None]


class Interventions:
    """Retries and drops uploads. Runs in the thread of queries. What a row says is durable."""

    def __init__(
        self, queue_view: QueueView, *, dispatcher: Dispatcher, hurry: Callable[[str, str], None]
    ) -> None:
        #: `hurry(kind, name)` has a broker or a move tried at once.
        self._queue_view = queue_view
        self._dispatcher = dispatcher
        self._hurry = hurry

    def retry(self, fields: Mapping[str, str], *, rehearsed: bool = False) -> Rows:
        """Let failed uploads wait for their turn again, and have deferred ones tried at once.

        If `rehearsed`, say what would be done, and do nothing.
        """
        act = self._would_retry if rehearsed else partial(self._retry, set())
        return self._in_lots(Selection.of(fields, RETRIED), act)

    def drop(self, fields: Mapping[str, str], *, rehearsed: bool = False) -> Rows:
        """Settle uploads without sending their tasks. `rehearsed` as for `retry`."""
        act = self._would_drop if rehearsed else self._drop
        return self._in_lots(Selection.of(fields, DROPPED), act)

    def _in_lots(self, selection: Selection, act: Callable[[list[Found]], Rows]) -> Rows:
        """Act on the selected uploads in lots. All uploads of a lot wait in the same place."""
        if selection.begins:
            selection = yield from self._with_whole_ids(selection)
            if not selection.ids:
                return
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
            yield _row(upload_id, None, NOTHING.format(upload_id))

    def _with_whole_ids(self, selection: Selection) -> Generator[Row | None, None, Selection]:
        """Return the selection with whole ids for beginnings. Yield a row for each refused one."""
        known: dict[str, set[str]] = {begin: set() for begin in selection.begins}
        for found in self._queue_view.select(selection):
            if found is None:
                yield None
                continue
            for begin, ids in known.items():
                if found.upload.id.startswith(begin):
                    ids.add(found.upload.id)
        whole = set(selection.ids)
        for begin, ids in sorted(known.items()):
            if len(ids) == 1:
                whole |= ids
            elif ids:
                some = f"{', '.join(sorted(ids)[:3])}{', ...' if len(ids) > 3 else ''}"
                yield _row(begin, None, f"{len(ids)} ids begin with it: {some}; give more of it")
            else:
                yield _row(begin, None, NOTHING.format(begin))
        return replace(selection, ids=frozenset(whole), begins=())

    def _would_retry(self, lot: list[Found]) -> Rows:
        if _has_failed(lot):
            refusal = self._dispatcher.pipeline.refusal_to_retry
            refused = self._dispatcher.call(lambda: [refusal(found.upload) for found in lot])
        else:
            refused = [_paused(found.group) for found in lot]
        for found, reason in zip(lot, refused, strict=True):
            yield _row(found.upload.id, found.upload.path, reason, "waiting")

    def _would_drop(self, lot: list[Found]) -> Rows:
        for found in lot:
            yield _row(found.upload.id, found.upload.path, "", "dropped")

    def _retry(self, opened: set[tuple[str, str]], lot: list[Found]) -> Rows:
        if _has_failed(lot):
            retry = self._dispatcher.pipeline.retry_failed
            refused = self._durably(lambda: [retry(found.upload) for found in lot], "tried again")
        else:
            refused = [self._open(opened, found.group) for found in lot]
        for found, reason in zip(lot, refused, strict=True):
            yield _row(found.upload.id, found.upload.path, reason, "waiting")

    def _open(self, opened: set[tuple[str, str]], group: Group) -> str:
        """Have the uploads of a group tried at once. Return why not, "" if they are."""
        if paused := _paused(group):
            return paused
        if (group.place, group.lane) not in opened:
            opened.add((group.place, group.lane))
            # Tell the publisher first. Otherwise it would put the uploads back at once, because it
            # still backs off.
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
            raise WatchmanError(
                f"{e}; these uploads will be {what} when it can be written again"
            ) from e


def _has_failed(lot: list[Found]) -> bool:
    """Whether a lot has failed uploads. Then it has no others: failed ones have their own place."""
    return lot[0].group.state == State.FAILED


def _paused(group: Group) -> str:
    """Return why the uploads of a group are not tried now, "" if they can be."""
    return f"{group.paused} is paused; resume that" if group.paused else ""


def _row(upload_id: str, path: str | None, refused: str, state: str = "") -> Row:
    """Return the row for an upload: its state now, or why nothing was done."""
    state_now = None if refused else state
    return {"id": upload_id, "path": path, "state": state_now, "refused": refused or None}
