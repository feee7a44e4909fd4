"""What a rename means: the decision follows the file, or the file is an upload now."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from watchman import beneath
from watchman.decisions import Decisions, Respond, nobody
from watchman.errors import NotBelowWatch
from watchman.judge import Judge
from watchman.ledger import Ledger
from watchman.settings import WatchSettings
from watchman.upload import FileState, Kind, Notification, Outcome
from watchman.whereabouts import Whereabouts


class Renames:
    """Carries over what is known of a file under its old name. For the dispatcher's thread.

    `complete` decides about a file that may be an upload under its new name.
    """

    def __init__(
        self,
        *,
        locate: Callable[[str], beneath.Place | None],
        judge: Judge,
        ledgers: Mapping[str, Ledger],
        decisions: Decisions,
        whereabouts: Whereabouts,
        complete: Callable[[Notification, Respond], None],
    ) -> None:
        self._locate = locate
        self._judge = judge
        self._ledgers = ledgers
        self._decisions = decisions
        self._whereabouts = whereabouts
        self._complete = complete

    def change(self, ledgers: Mapping[str, Ledger]) -> None:
        """Write down in other ledgers from now on."""
        self._ledgers = ledgers

    def follow(self, notification: Notification, answer: Respond) -> None:
        """Follow a file or a directory that was renamed within the watches."""
        old, new = self._locate(notification.old_path), self._locate(notification.path)
        if notification.is_directory:
            for located in (old, new):
                if located is not None:
                    self._ledgers[located[0].name].disturb()
            self._whereabouts.follow(notification.old_path, notification.path)
            if old is not None:
                self._follow_held(os.path.join(old[0].path, old[1]), notification)
        elif old is not None and new is not None and (file := self._was_decided(*old, *new)):
            self._whereabouts.follow(notification.old_path, notification.path, file)
            self._decisions.answer_durably(answer, Outcome.DUPLICATE, "-")
        else:
            if old is not None and new is not None:
                notification = self._word_of_held(*old, *new) or notification
            self._complete(notification, answer)

    def _follow_held(self, directory: str, notification: Notification) -> None:
        """Follow the held files of a directory that was renamed."""
        for path in self._decisions.held.below(directory):
            new = notification.path + path[len(directory) :]
            self.follow(replace(notification, path=new, old_path=path, is_directory=False), nobody)

    def _word_of_held(
        self, old_watch: WatchSettings, old: str, watch: WatchSettings, subpath: str
    ) -> Notification | None:
        """Return what ProFTPD has said of a held file, as said of its new name."""
        noticed = self._decisions.held.get(os.path.join(old_watch.path, old))
        if noticed is None:
            return None
        try:
            state = beneath.state(watch.path, subpath)
        except (OSError, NotBelowWatch):
            return None
        if not self._judge.confirms(noticed, state):
            return None
        path = os.path.join(watch.path, subpath)
        return replace(noticed.notification, kind=Kind.COMPLETED, path=path)

    def _was_decided(
        self, old_watch: WatchSettings, old: str, new_watch: WatchSettings, new: str
    ) -> FileState | None:
        """Let the decision follow a file that was an upload under its old name; return its state.

        None: it was none.
        """
        if self._judge.excludes(old_watch, old) is not None:
            return None
        if not self._judge.matches(os.path.join(old_watch.path, old)):
            return None
        try:
            state = beneath.state(new_watch.path, new)
        except (OSError, NotBelowWatch):
            return None
        if not self._judge.was_decided(old_watch, old, state):
            return None
        self._ledgers[new_watch.name].put(new, state)
        return state
