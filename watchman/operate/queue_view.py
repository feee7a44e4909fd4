"""The queue: the uploads that are not settled. Commands show them and select from them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from watchman.config.rules import Rules, compiled
from watchman.dispatch.judge import WRITTEN
from watchman.errors import JournalCorrupt, WatchmanError
from watchman.sinks.backlogs import Group
from watchman.sinks.pipeline import CANNOT_BE_READ, UNREADABLE, Pipeline
from watchman.store.journal import Journal
from watchman.store.records import decode, id_of
from watchman.uploads.upload import State, Upload

#: States in the order in which they are shown: the most important first.
ORDER = (State.FAILED, State.DEFERRED, "waiting")

ALL_STATES = (*ORDER, State.NOTICED)

#: States of a broker or a move in which no upload gets through.
DOWN = ("down", "blocked")

#: Most records that are read before other queries get a turn.
BREATH = 1_000

#: Characters of a whole id: a UUID.
WHOLE_ID = 36


class Found(NamedTuple):
    """An upload, the group that it waits in, and why it failed."""

    upload: Upload
    group: Group
    reason: str

    def row(self) -> dict[str, Any]:
        """Return the upload as a row of `watchman queue`."""
        upload, group = self.upload, self.group
        row: dict[str, Any] = {"id": upload.id, "state": group.state, "path": upload.path}
        row |= {"original": upload.original, "watch": upload.watch, "since": upload.accepted}
        row |= {"task": upload.task.section, "broker": upload.task.broker} if upload.task else {}
        row |= {"alarm_of": upload.alarm_of} if upload.alarm_of else {}
        row |= {"place": group.place, "attempts": group.attempts, "next_try": group.next_try}
        paused = f"paused: {group.paused}" if group.paused else ""
        row["reason"] = self.reason or paused or group.reason
        return row


@dataclass(frozen=True, slots=True)
class Selection:
    """The uploads that an operator selects: by their ids, or all that pass every filter.

    `begins` are beginnings of ids, `ids` are whole ones.
    """

    ids: frozenset[str] = frozenset()
    begins: tuple[str, ...] = ()
    states: frozenset[str] = frozenset()
    broker: str = ""
    pattern: re.Pattern[str] | None = None

    @classmethod
    def of(cls, fields: Mapping[str, str], states: Iterable[str] = ALL_STATES) -> Self:
        """Read a request's fields. `states` is the default if they name no state."""
        named = [s for s in (State.FAILED, State.DEFERRED) if fields.get(s) == "yes"]
        given = fields.get("ids", "").split()
        if "ids" in fields and not given:
            raise WatchmanError("no id is given")
        if given and fields.keys() - {"ids", "limit", "open"}:
            raise WatchmanError("give either ids, or filters by state, broker and path")
        return cls(
            ids=frozenset(one for one in given if len(one) >= WHOLE_ID),
            begins=tuple({one for one in given if len(one) < WHOLE_ID}),
            states=frozenset(named or states),
            broker=fields.get("broker", ""),
            pattern=compiled(fields["pattern"]) if "pattern" in fields else None,
        )

    @property
    def names_ids(self) -> bool:
        return bool(self.ids or self.begins)

    @property
    def looks_inside(self) -> bool:
        """Whether only an upload's record can tell if it is selected."""
        return self.names_ids or bool(self.broker) or self.pattern is not None

    def names(self, upload_id: str) -> bool:
        """Whether an upload is selected by its id."""
        return upload_id in self.ids or upload_id.startswith(self.begins)

    def matches(self, upload: Upload) -> bool:
        broker = upload.task.broker if upload.task else ""
        return self._matches(upload.id, broker, upload.original, upload.path)

    def matches_row(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of a file that is noticed is selected."""
        if not self.names_ids and row["state"] not in self.states:
            return False
        return self._matches(row["id"] or "", "", row["path"])

    def _matches(self, upload_id: str, broker: str, *paths: str) -> bool:
        if self.names_ids:
            return self.names(upload_id)
        if self.broker and broker != self.broker:
            return False
        return self.pattern is None or any(map(self.pattern.match, paths))


EVERY = Selection(states=frozenset(ALL_STATES))


class QueueView:
    """Reads uploads from the journal, since backlogs keep only their positions.

    Runs in the thread of queries.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        journal: Journal,
        sinks: Callable[[], Mapping[str, Mapping[str, Mapping[str, Any]]]],
    ) -> None:
        #: `sinks` tells the status of each publisher and mover, by kind of section and name.
        self._pipeline = pipeline
        self._journal = journal
        self._sinks = sinks

    def groups(self) -> list[Group]:
        """Return the uploads in groups, the most important first.

        Uploads that wait for a broker or move that is down count as deferred until its next try.
        """
        return self._ordered(self._pipeline.groups())

    def sizes(self) -> list[Group]:
        """Return what `groups` does, but without positions: that is quick, however many wait."""
        return self._ordered(self._pipeline.sizes())

    def _ordered(self, found: Iterable[Group]) -> list[Group]:
        sinks = self._sinks()
        groups = []
        for group in found:
            kind, _, name = group.place.partition(":")
            sink = sinks.get(kind, {}).get(name, {})
            if group.state == "waiting" and not group.paused and sink.get("state") in DOWN:
                group = replace(
                    group,
                    state=State.DEFERRED,
                    attempts=sink["attempts"],
                    next_try=sink["next_try"],
                    reason=sink["error"],
                )
            groups.append(group)
        return sorted(groups, key=lambda group: ORDER.index(group.state))

    def select(self, selection: Selection) -> Iterator[Found | None]:
        """Yield the selected uploads, and None now and then while the search goes on."""
        missing = set(selection.ids)
        looked = 0
        for group in self.groups():
            if not selection.names_ids and group.state not in selection.states:
                continue
            for position in sorted(group.positions):
                looked += 1
                if looked % BREATH == 0:
                    yield None
                found = None
                with contextlib.suppress(OSError):
                    found = self.read(position, group, selection)
                if found is None or not selection.matches(found.upload):
                    continue
                yield found
                missing.discard(found.upload.id)
                if selection.ids and not missing and not selection.begins:
                    return

    def rows(self, selection: Selection = EVERY) -> Iterator[dict[str, Any] | None]:
        """Yield the selected uploads as rows of `watchman queue`, and None now and then."""
        # Copied before the groups are read. An upload that joins a group meanwhile is then in both
        # rather than in neither; it is shown once.
        arriving = self.arriving(selection)
        looked = 0
        for group in self.groups():
            if not selection.names_ids and group.state not in selection.states:
                continue
            for position in sorted(group.positions):
                looked += 1
                if looked % BREATH == 0:
                    yield None
                row = self.row(position, group, selection)
                if row is not None:
                    arriving.pop(row["id"], None)
                    yield row
        for upload in arriving.values():
            yield self.arriving_row(upload)

    def arriving(self, selection: Selection) -> dict[str | None, Upload]:
        """Return by id the selected uploads whose record is being written."""
        wanted = selection.names_ids or "waiting" in selection.states
        arriving = self._pipeline.arriving.copy().values() if wanted else ()
        return {upload.id: upload for upload in arriving if selection.matches(upload)}

    def arriving_row(self, upload: Upload) -> dict[str, Any]:
        return Found(upload, Group("", "waiting", []), "").row()

    def row(self, position: int, group: Group, selection: Selection) -> dict[str, Any] | None:
        """Return the row of an upload, None if it is settled or not selected."""
        try:
            found = self.read(position, group, selection)
        except OSError as e:
            return None if selection.looks_inside else _unreadable(group, e.strerror)
        if found is not None:
            return found.row() if selection.matches(found.upload) else None
        is_lost = group.lane == UNREADABLE and not selection.looks_inside
        return _unreadable(group, None) if is_lost else None

    def oldest(self, groups: Iterable[Group]) -> dict[str, float]:
        """Return by place when the oldest upload that waits there was accepted (epoch)."""
        oldest: dict[str, Group] = {}
        for group in groups:
            if group.state == State.FAILED:
                continue
            known = oldest.get(group.place)
            if known is None or group.oldest < known.oldest:
                oldest[group.place] = group
        accepted = {}
        for place, group in oldest.items():
            with contextlib.suppress(OSError):
                if found := self.read(group.oldest, group):
                    accepted[place] = found.upload.accepted
        return accepted

    def read(self, position: int, group: Group, selection: Selection = EVERY) -> Found | None:
        """Read an upload; None if it is settled, or not among named ids. Raises OSError."""
        try:
            line = self._journal.line(position)
            if selection.names_ids and not selection.names(id_of(line)):
                return None  # the rest is not decoded, for there may be a million records
            record = decode(line)
        except (JournalCorrupt, FileNotFoundError):
            return None  # settled meanwhile, and its journal file retired
        return Found(Upload.decode(record, position), group, record.get("reason", ""))


def known_and_open(paths: Iterable[str], rules: Rules) -> Iterator[dict[str, Any]]:
    """Yield rows for files that are open for writing and not in hand, if they may become uploads.

    When a known file is opened again, no source tells of it until the file is closed.
    """
    for path in paths:
        watch, subpath = rules.locate(path) or (None, "")
        if watch is None or rules.excluded(watch, subpath) or not rules.matches(path):
            continue
        row: dict[str, Any] = dict.fromkeys(("id", "task", "broker", "since", "next_try"))
        row |= {
            "state": State.NOTICED,
            "place": "",
            "path": path,
            "original": path,
            "watch": watch.name,
        }
        yield row | {"attempts": 0, "reason": WRITTEN}


def _unreadable(group: Group, why: str | None) -> dict[str, Any]:
    """Return the row of an upload whose record cannot be read."""
    row: dict[str, Any] = {"id": None, "state": group.state, "path": None, "since": None}
    row |= {"place": group.place, "attempts": group.attempts, "next_try": group.next_try}
    return row | {"reason": f"{CANNOT_BE_READ}: {why}" if why else CANNOT_BE_READ}
