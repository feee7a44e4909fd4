"""The queue: uploads that are not settled, as `watchman queue` shows and commands select them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from watchman.config.rules import compiled
from watchman.errors import JournalCorrupt, WatchmanError
from watchman.sinks.backlogs import Group
from watchman.sinks.pipeline import CANNOT_BE_READ, UNREADABLE, Pipeline
from watchman.store.journal import Journal
from watchman.store.records import decode, id_of
from watchman.uploads.upload import State, Upload

#: States in the order in which they are shown: the most important first.
ORDER = (State.FAILED.value, State.DEFERRED.value, "waiting")

#: States of a broker or a move in which no upload gets through.
DOWN = ("down", "blocked")

#: Records that are read before other queries get a turn.
BREATH = 1_000


class Found(NamedTuple):
    """An upload, the group that it waits in, and why it failed."""

    upload: Upload
    group: Group
    reason: str

    def row(self) -> dict[str, Any]:
        """Return it as `watchman queue` shows it."""
        upload, group = self.upload, self.group
        row: dict[str, Any] = {"id": upload.id, "state": group.state, "path": upload.path}
        row |= {"original": upload.original, "watch": upload.watch, "since": upload.accepted}
        row |= {"task": upload.task.section, "broker": upload.task.broker} if upload.task else {}
        row |= {"alarm_of": upload.alarm_of} if upload.alarm_of else {}
        row |= {"attempts": group.attempts, "next_try": group.next_try}
        paused = f"paused: {group.paused}" if group.paused else ""
        row["reason"] = self.reason or paused or group.reason
        return row


@dataclass(frozen=True, slots=True)
class Selection:
    """The uploads that an operator selects: by their ids, or all that pass every filter."""

    ids: frozenset[str] = frozenset()
    states: frozenset[str] = frozenset()
    broker: str = ""
    pattern: re.Pattern[str] = field(default=re.compile(""))

    @classmethod
    def of(cls, fields: Mapping[str, str], states: Iterable[str]) -> Self:
        """Read a request's fields. `states` is the default if they name no state."""
        named = [s for s in (State.FAILED.value, State.DEFERRED.value) if fields.get(s) == "yes"]
        ids = frozenset(fields.get("ids", "").split())
        if "ids" in fields and not ids:
            raise WatchmanError("no id is given")
        if ids and len(fields) > 1:
            raise WatchmanError("give ids, or say which ones by their state, broker and path")
        return cls(
            ids=ids,
            states=frozenset(named or states),
            broker=fields.get("broker", ""),
            pattern=compiled(fields.get("pattern", "*")),
        )

    def matches(self, upload: Upload) -> bool:
        if self.ids:
            return upload.id in self.ids
        broker = upload.task.broker if upload.task else ""
        return (not self.broker or broker == self.broker) and (
            bool(self.pattern.match(upload.original)) or bool(self.pattern.match(upload.path))
        )


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
        """Return what `groups` does, without positions: that is quick, however many wait."""
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
                    state=State.DEFERRED.value,
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
            if not selection.ids and group.state not in selection.states:
                continue
            for position in sorted(group.positions):
                looked += 1
                if looked % BREATH == 0:
                    yield None
                found = None
                with contextlib.suppress(OSError):
                    found = self._read(position, group, selection.ids)
                if found is None or not selection.matches(found.upload):
                    continue
                yield found
                missing.discard(found.upload.id)
                if selection.ids and not missing:
                    return

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all uploads as rows of `watchman queue`."""
        # Copied before the groups are read. An upload that joins a group meanwhile is then in both
        # rather than in neither; it is shown once.
        arriving = dict(self._pipeline.arriving)
        for group in self.groups():
            for position in sorted(group.positions):
                try:
                    found = self._read(position, group)
                except OSError as e:
                    yield _unreadable(group, e.strerror)
                    continue
                if found is not None:
                    arriving.pop(found.upload.id, None)
                    yield found.row()
                elif group.lane == UNREADABLE:
                    yield _unreadable(group, None)
        for upload in arriving.values():
            yield Found(upload, Group("", "waiting", []), "").row()

    def oldest(self, groups: Iterable[Group]) -> dict[str, float]:
        """Return by place when the oldest upload that waits there was accepted (epoch)."""
        oldest: dict[str, Group] = {}
        for group in groups:
            if group.state == State.FAILED.value:
                continue
            known = oldest.get(group.place)
            if known is None or group.oldest < known.oldest:
                oldest[group.place] = group
        accepted = {}
        for place, group in oldest.items():
            with contextlib.suppress(OSError):
                if found := self._read(group.oldest, group):
                    accepted[place] = found.upload.accepted
        return accepted

    def _read(self, position: int, group: Group, ids: Collection[str] = ()) -> Found | None:
        """Read an upload; None if it is settled, or not among `ids`. Raises OSError."""
        try:
            line = self._journal.line(position)
            if ids and id_of(line) not in ids:
                return None  # the rest is not decoded, for there may be a million records
            record = decode(line)
        except (JournalCorrupt, FileNotFoundError):
            return None  # settled meanwhile, and its journal file retired
        return Found(Upload.decode(record, position), group, record.get("reason", ""))


def _unreadable(group: Group, why: str | None) -> dict[str, Any]:
    """Return the row of an upload whose record cannot be read."""
    row: dict[str, Any] = {"id": None, "state": group.state, "path": None, "since": None}
    row |= {"attempts": group.attempts, "next_try": group.next_try}
    return row | {"reason": f"{CANNOT_BE_READ}: {why}" if why else CANNOT_BE_READ}
