"""The queue in groups: uploads with the same state, place and reason, and so the same cure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from watchman.operate.queue_view import BREATH, QueueView, Selection
from watchman.sinks.backlogs import Group
from watchman.sinks.pipeline import UNREADABLE
from watchman.uploads.upload import State

#: A row of `watchman queue`.
Row = Mapping[str, Any]


@dataclass(slots=True)
class Gathered:
    """A group: how many uploads have a state, place and reason, and the first and last of them.

    `since` is when the oldest was accepted or noticed, `next_try` when the next one is tried again
    (epoch). A `place` is `broker:NAME` or `move:NAME`, "" if the uploads wait for neither.
    """

    state: str
    place: str
    reason: str | None
    uploads: int = 0
    since: float | None = None
    attempts: int = 0
    next_try: float | None = None
    first: dict[str, Any] | None = None
    last: dict[str, Any] | None = None

    def add(self, row: Row, uploads: int = 1) -> None:
        """Add a row that stands for so many uploads, all of them younger than those before."""
        self.uploads += uploads
        self.since = _least(self.since, row["since"])
        self.attempts = max(self.attempts, row["attempts"])
        self.next_try = _least(self.next_try, row["next_try"])
        self.last = {"id": row["id"], "path": row["path"]}
        self.first = self.first or self.last


def gather(
    queue_view: QueueView, selection: Selection, held: Iterable[Row]
) -> Iterator[dict[str, Any] | None]:
    """Yield the groups of the selected uploads, the most important first.

    Before that yield None now and then, because this may take long: where only an upload's record
    tells its group, all records are read. `held` are the rows of selected files that are only
    noticed.
    """
    found: dict[tuple[str, str, str | None], Gathered] = {}

    def add(row: Row, place: str, uploads: int = 1) -> None:
        key = row["state"], place, row["reason"]
        found.setdefault(key, Gathered(*key)).add(row, uploads)

    arriving = queue_view.arriving(selection)
    for group in queue_view.groups():
        if not selection.names_ids and group.state not in selection.states:
            continue
        if _are_alike(group, selection):
            for row, uploads in _ends(queue_view, group, selection):
                add(row, group.place, uploads)
                arriving.pop(row["id"], None)
            yield None
            continue
        for number, position in enumerate(sorted(group.positions), 1):
            if number % BREATH == 0:
                yield None
            if one := queue_view.row(position, group, selection):
                arriving.pop(one["id"], None)
                add(one, group.place)
    for upload in arriving.values():
        add(queue_view.arriving_row(upload), "")
    for noticed in held:
        add(noticed, "")
    yield from map(asdict, found.values())


def _are_alike(group: Group, selection: Selection) -> bool:
    """Whether all uploads of a group have the same reason, and all are selected or none is."""
    has_reasons = group.state == State.FAILED
    return not has_reasons and not selection.looks_inside and group.lane != UNREADABLE


def _ends(
    queue_view: QueueView, group: Group, selection: Selection
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the rows of a group's oldest and youngest upload, each with how many it stands for."""
    positions = sorted(group.positions)
    ends = [(positions, 1), (positions[:0:-1], len(positions) - 1)]
    for candidates, uploads in ends:
        rows = (queue_view.row(position, group, selection) for position in candidates)
        if (row := next(filter(None, rows), None)) is not None:
            yield row, uploads


def _least(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)
