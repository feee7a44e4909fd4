"""What a rename means: the decision about the file follows it, or the file is an upload now."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from watchman.config.places import Place
from watchman.config.rules import Rules
from watchman.config.settings import WatchSettings
from watchman.dispatch.decisions import Decisions
from watchman.dispatch.hold_queue import Holding
from watchman.dispatch.judge import Judge
from watchman.dispatch.verdicts import RECENT
from watchman.errors import NotBelowWatch
from watchman.sinks.pipeline import Pipeline
from watchman.store.ledger import Ledger
from watchman.uploads import beneath
from watchman.uploads.outcome import Outcome
from watchman.uploads.upload import FileState, Kind, Notification, Respond, nobody

#: How many earlier names of one file are remembered.
NAMES = 10


@dataclass(kw_only=True, eq=False)
class Renames:
    """Carries over to a file's new name what is known of it under its old one.

    Only the dispatcher's thread calls it. `complete` decides about a file that may be an upload
    under its new name.
    """

    rules: Rules
    judge: Judge
    ledgers: Mapping[str, Ledger]
    holding: Holding
    decisions: Decisions
    pipeline: Pipeline
    complete: Callable[[Notification, Respond], None]

    #: By path that a file was renamed to without a known decision, its earlier paths, the latest
    #: first. The file may have been renamed once more, or a directory above it, before we looked
    #: for it there. Then the next rename must look under all of them.
    _passed: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)

    def follow(self, notification: Notification, answer: Respond) -> None:
        """Follow a file or a directory that was renamed within the watches, and answer."""
        if notification.is_directory:
            self._follow_directory(notification)
            return
        new, names = self.rules.locate(notification.path), self._names(notification.old_path)
        if new is not None and names:
            for old in names:
                if file := self._was_decided(*old, *new):
                    self.pipeline.file_tracker.follow(_path(old), notification.path, file)
                    self.decisions.answer_durably(answer, Outcome.DUPLICATE, "-")
                    return
            self._remember(_path(new), names)
            words = (self._word_of_held(*old, *new) for old in names)
            notification = next(filter(None, words), notification)
        self.complete(notification, answer)

    def _follow_directory(self, notification: Notification) -> None:
        old, new = self.rules.locate(notification.old_path), self.rules.locate(notification.path)
        for located in (old, new):
            if located is not None:
                self.ledgers[located[0].name].disturb()
        self.pipeline.file_tracker.follow(notification.old_path, notification.path)
        if old is None:
            return
        directory = _path(old)
        passed = [path for path in self._passed if path.startswith(directory + "/")]
        for path in dict.fromkeys([*self.holding.queue.below(directory), *passed]):
            name = notification.path + path[len(directory) :]
            self.follow(notification._replace(path=name, old_path=path, is_directory=False), nobody)

    def _names(self, path: str) -> list[Place]:
        """Return the names under which a file may have been decided about, the latest first.

        Those before a name that no upload can have do not count: after such a name, the file
        becomes another upload.
        """
        located = self.rules.locate(path)
        if located is None:
            return []
        names = [located]
        for earlier in self._passed.get(_path(located), ()):
            if self._excludes(*names[-1]) or (located := self.rules.locate(earlier)) is None:
                break
            names.append(located)
        return names

    def _remember(self, path: str, names: Sequence[Place]) -> None:
        """Remember which names a file had before it was renamed to `path`."""
        if self._excludes(*names[0]):
            return
        self._passed.pop(path, None)
        self._passed[path] = tuple(map(_path, names[:NAMES]))
        if len(self._passed) > RECENT:
            del self._passed[next(iter(self._passed))]

    def _excludes(self, watch: WatchSettings, subpath: str) -> bool:
        """Whether no upload can have that name: it is excluded, or no task and no move matches."""
        if self.rules.excluded(watch, subpath) is not None:
            return True
        return not self.rules.matches(beneath.below(watch.path, subpath))

    def _word_of_held(
        self, old_watch: WatchSettings, old: str, watch: WatchSettings, subpath: str
    ) -> Notification | None:
        """Return what ProFTPD has said of a held file, for its new name; None if nothing."""
        held = self.holding.queue.get(os.path.join(old_watch.path, old))
        if held is None:
            return None
        try:
            state = beneath.state(watch.path, subpath)
        except (OSError, NotBelowWatch):
            return None
        if not self.judge.confirms(held, state):
            return None
        path = beneath.below(watch.path, subpath)
        return held.notification._replace(kind=Kind.COMPLETED, path=path)

    def _was_decided(
        self, old_watch: WatchSettings, old: str, new_watch: WatchSettings, new: str
    ) -> FileState | None:
        """Copy the decision about a file to its new name; return the file's state.

        Return None if there is no decision under the old name.
        """
        if self._excludes(old_watch, old):
            return None
        try:
            state = beneath.state(new_watch.path, new)
        except (OSError, NotBelowWatch):
            return None
        if not self.ledgers[old_watch.name].was_decided(old, state):
            return None
        decision = self.ledgers[old_watch.name].get(old, state)
        self.ledgers[new_watch.name].put(new, state, sample=decision.sample if decision else 0)
        return state


def _path(place: Place) -> str:
    return os.path.join(place[0].path, place[1])
