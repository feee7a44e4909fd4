"""Finds the place that ProFTPD means by a path that names none, such as mod_vroot makes.

Tried with ProFTPD 1.3.8 and mod_vroot 0.9.11, FTP and SFTP: the transfer log names a failed upload
with its session's root twice (/srv/alice/srv/alice/x.csv), a whole one rightly, and renames and
STOU as the client sees them (/x.csv). Hooks, too, name renames, STOU, starts and all that SFTP does
as the client sees them.

What the log says is placed if its path can mean only one place. For that we learn the roots of each
user: from a path that has a root twice, and from a rename of what the same user has uploaded. What
a hook says is not placed: its peer's right to speak is checked for the path as it was sent. What
cannot be placed is counted, and the last of it is told as a problem.
"""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from watchman.config.places import Place
from watchman.uploads.text import shorten
from watchman.uploads.upload import Kind, Notification, Source

#: How many users' roots are remembered, and how many of the latest uploads of each.
USERS, UPLOADS = 1_000, 20

#: Seconds for which a notification that could not be placed is told as a problem.
SHOWN = 3600.0

#: Kinds of notification that must name a place. One that a transfer has STARTED need not: without
#: it the file only waits as if no hook had told of the start.
PLACED = frozenset({Kind.COMPLETED, Kind.FAILED, Kind.RENAMED})


@dataclass(slots=True)
class _User:
    roots: set[str] = field(default_factory=set)
    uploads: deque[str] = field(default_factory=lambda: deque(maxlen=UPLOADS))


class Placing:
    """Finds the places that notifications mean.

    The dispatcher's thread calls `place`. Any thread may ask for the problem.
    """

    def __init__(
        self,
        *,
        locate: Callable[[str], Place | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._locate = locate
        self._monotonic = monotonic
        self._users: OrderedDict[str, _User] = OrderedDict()
        #: By source, how many notifications could not be placed, and the last of them with its time
        #: (monotonic).
        self.unplaced: Counter[Source] = Counter()
        self._last: dict[Source, tuple[float, Notification]] = {}

    def place(self, notification: Notification) -> Notification:
        """Return a notification with the path of the place that it means, or as it is."""
        path, kind = notification.path, notification.kind
        if notification.source not in (Source.LOG, Source.HOOK) or kind not in PLACED or not path:
            return notification
        by_log = notification.source is Source.LOG
        if by_log and kind is Kind.FAILED and not os.path.lexists(os.path.dirname(path)):
            # The client may really have named such a path, /srv/a/a/x.csv, and been refused.
            doubled = list(_without_repetition(path, whole=notification.perhaps_refused))
            if doubled:
                return self._place_doubled(notification, doubled)
        if self._locate(path) is not None:
            if by_log and kind is Kind.COMPLETED:
                self._user(notification.user).uploads.append(path)
            return notification
        if os.path.lexists(path) or notification.perhaps_refused:
            return notification
        placed = self._place_virtual(notification) if by_log else None
        # If its directory exists, a path is a real one outside the watches. "/" tells nothing, for
        # it always exists.
        directory = os.path.dirname(path)
        if placed is None and (directory == "/" or not os.path.lexists(directory)):
            self._miss(notification)
        return placed or notification

    def problem(self, source: Source) -> str:
        """Return which notification of a source could not be placed within SHOWN, "" if none."""
        at, last = self._last.get(source, (0.0, None))
        if last is None or self._monotonic() - at > SHOWN:
            return ""
        said = " ".join(shorten(path) for path in (last.old_path, last.path) if path)
        return (
            f"{self.unplaced[source]} words of ProFTPD's {source} have a path that names no place,"
            f" the last one: {last.kind} {said}, user {shorten(last.user)}; mod_vroot makes such"
            " paths, and watchman check --proftpd FILE says what to use instead"
        )

    def _place_doubled(
        self, notification: Notification, readings: Iterable[tuple[str, str]]
    ) -> Notification:
        """Return a notification with its root once, if that is possible in one way only.

        `readings` are each a root and the path with that once.
        """
        possible = [one for one in readings if self._is_directory_there(one[1])]
        if len(possible) > 1:
            possible = [one for one in possible if os.path.lexists(one[1])]
        if len(possible) == 1:
            [(root, path)] = possible
            self._user(notification.user).roots.add(root)
            return notification._replace(path=path)
        if not notification.perhaps_refused and (
            possible or self._locate(notification.path) is None
        ):
            self._miss(notification)
        return notification

    def _place_virtual(self, notification: Notification) -> Notification | None:
        """Return a notification below a root of its user's; None if none fits, or more than one."""
        user, path, old = self._user(notification.user), notification.path, notification.old_path
        uploaded = {one[: -len(old)] for one in user.uploads if old and one.endswith(old)}
        for roots in (user.roots, uploaded):
            fitting = [root for root in roots if self._fits(root, old, path)]
            if len(fitting) == 1:
                [root] = fitting
                user.roots.add(root)
                return notification._replace(path=root + path, old_path=old and root + old)
            if fitting:
                return None
        return None

    def _fits(self, root: str, old: str, path: str) -> bool:
        """Whether below a root something is at `path`, and nothing is at `old` any more."""
        if old and os.path.lexists(root + old):
            return False
        return os.path.lexists(root + path) and self._locate(root + path) is not None

    def _is_directory_there(self, path: str) -> bool:
        return os.path.isdir(os.path.dirname(path)) and self._locate(path) is not None

    def _user(self, name: str) -> _User:
        user = self._users.setdefault(name, _User())
        self._users.move_to_end(name)
        if len(self._users) > USERS:
            self._users.popitem(last=False)
        return user

    def _miss(self, notification: Notification) -> None:
        self.unplaced[notification.source] += 1
        self._last[notification.source] = self._monotonic(), notification


def _without_repetition(path: str, *, whole: bool) -> Iterator[tuple[str, str]]:
    """Yield each root whose end a path has twice in a row, and the path with that once.

    With VRootServerRoot, only the home is repeated and not what comes before it. But if `whole`,
    all of the root must be repeated.
    """
    names = path.split("/")[1:]
    for end in range(1, len(names) - 1):
        for begin in range(max(0, 2 * end - len(names) + 1), 1 if whole else end):
            if names[begin:end] == names[end : 2 * end - begin]:
                root = "/" + "/".join(names[:end])
                yield root, "/".join([root, *names[2 * end - begin :]])
