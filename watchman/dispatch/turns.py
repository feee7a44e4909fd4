"""Turns of the owners of files that were found, and of the users who send on the socket."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, Self

from watchman.config.places import Place
from watchman.errors import NotBelowWatch
from watchman.store.groupcommit import outlive
from watchman.store.inbox import Work
from watchman.uploads import beneath
from watchman.uploads.ownership import owner_of
from watchman.uploads.upload import Notification

logger = logging.getLogger(__name__)

#: Finds that may wait for their files' owners to be looked up. If there are more, `put` blocks.
UNSORTED = 10_000

#: Finds that are decided about in one turn, of all owners together.
AT_ONCE = 16

#: Finds whose owners are looked up in one turn: so a burst is sorted faster than it can be made.
SORTED = 8 * AT_ONCE

#: Finds of one owner that may wait for his turns or be held: some 500 to 800 bytes each.
WAITING = 50_000

#: Finds that are still decided about at a stop. The next start scans for the others, except for
#: renames, which are all decided about: a scan would take a renamed file for a new one.
AT_STOP = 1_000

#: Seconds after which the thread of a user ends if it has nothing to do.
IDLE = 10.0

#: What a user has sent, each with what is called once its paths are canonical.
Words = deque[tuple[Notification, Callable[[Notification], None]]]

#: The lane of finds in the inbox, and the owner of files whose owner cannot be looked up.
LANE, NOBODY = "finds", -1


class Find(NamedTuple):
    """A path that was found, and the one that it was renamed from, "" if it was not."""

    path: str
    old_path: str = ""


class Inbox(Protocol):
    """Where the work of the dispatcher's thread waits, in lanes that take turns."""

    def bring(self, work: Work, lane: str) -> None: ...


class Finds:
    """Finds that wait for their owners' turns, with the work that each brings.

    The finds of one owner stay in order. The dispatcher's thread looks up the owners, not that of
    the watcher: events may come faster than the disk answers, and the kernel drops events that are
    not read in time.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        locate: Callable[[str], Place | None],
        request_later: Callable[[str, int], None],
    ) -> None:
        """`request_later(watch, owner)` asks for a scan for when fewer finds of an owner wait."""
        self._inbox = inbox
        self._locate = locate
        self._request_later = request_later
        #: Guards `_unsorted` and `_under_way`. Notified when there is room for more finds.
        self._changed = threading.Condition()
        #: Finds whose owners are not known yet.
        self._unsorted: OrderedDict[Find, list[Work]] = OrderedDict()
        #: Whether the inbox has a turn of ours.
        self._under_way = False
        #: By owner, the next one first, his finds. Only for the dispatcher's thread.
        self._owners: OrderedDict[int, OrderedDict[Find, list[Work]]] = OrderedDict()
        self._owner_of: dict[Find, int] = {}

    def put(self, finds: Sequence[tuple[Find, Work]], *, wait: bool = True) -> None:
        """Add finds, each with its work, after those that were added before.

        Blocks while there are too many, unless `wait` is False: held files are in memory anyway.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: len(self._unsorted) < UNSORTED)
            for find, work in finds:
                self._unsorted.setdefault(find, []).append(work)
                self._unsorted.move_to_end(find)
            is_first, self._under_way = not self._under_way, True
        if is_first:
            self._inbox.bring(self._take_turn, LANE)

    def waiting(self, owner: int) -> int:
        """Return how many finds wait for an owner's turns. Any thread may call it."""
        return len(self._owners.get(owner, ()))

    # In the dispatcher's thread.

    def decide_now(self, path: str) -> None:
        """Do the work at once that waits for a path, because ProFTPD has spoken of it."""
        find = Find(path)
        with self._changed:
            unsorted = self._unsorted.pop(find, [])
        sorted_before = self._pop(self._owner_of[find], find) if find in self._owner_of else []
        for work in (*sorted_before, *unsorted):
            work()

    def close(self) -> None:
        """At a stop, drop finds that are left to the next start, see AT_STOP."""
        while self._unsorted:
            self._sort(self._some_unsorted())
        for find in list(self._owner_of)[AT_STOP:]:
            if not find.old_path:
                self._pop(self._owner_of[find], find)

    def _take_turn(self) -> None:
        unsorted = self._some_unsorted()
        if self._owners or len(unsorted) > AT_ONCE:
            self._sort(unsorted)
            works = self._next()
        else:
            # These are so few that nobody waits long, and no owner need be looked up.
            works = [work for _, works in unsorted for work in works]
        with self._changed:
            self._under_way = bool(self._unsorted or self._owners)
        if self._under_way:
            self._inbox.bring(self._take_turn, LANE)
        for work in works:
            outlive(work)

    def _some_unsorted(self) -> list[tuple[Find, list[Work]]]:
        with self._changed:
            if len(self._unsorted) >= UNSORTED:
                self._changed.notify_all()
            count = min(SORTED, len(self._unsorted))
            return [self._unsorted.popitem(last=False) for _ in range(count)]

    def _sort(self, unsorted: Iterable[tuple[Find, list[Work]]]) -> None:
        """Look up the owners of finds, and let each find wait for its owner's turn.

        If too many wait already, a find is dropped, and a later scan will find it again.
        """
        with _Directories() as directories:
            for find, works in unsorted:
                located = self._locate(find.path)
                owner = self._owner_of.get(find)
                if owner is None:
                    owner = directories.owner(located) if located else NOBODY
                finds = self._owners.setdefault(owner, OrderedDict())
                if len(finds) < WAITING or find in finds:
                    self._owner_of[find] = owner
                    finds.setdefault(find, []).extend(works)
                    finds.move_to_end(find)
                elif located is not None:
                    self._request_later(located[0].name, owner)

    def _next(self) -> list[Work]:
        """Return the work of this turn. The owners take turns, one find at a time."""
        works: list[Work] = []
        for _ in range(AT_ONCE):
            if self._owners:
                owner, finds = next(iter(self._owners.items()))
                self._owners.move_to_end(owner)
                works += self._pop(owner, next(iter(finds)))
        return works

    def _pop(self, owner: int, find: Find) -> list[Work]:
        finds = self._owners[owner]
        if len(finds) == 1:
            del self._owners[owner]
        del self._owner_of[find]
        return finds.pop(find)


class _Directories:
    """Directories that are kept open while files in them are looked at."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def owner(self, place: Place) -> int:
        """Return the uid of a file's owner, or its directory's if it is gone; NOBODY if unknown."""
        directory, _, name = place[1].rpartition("/")
        try:
            fd = self._directory(place[0].path, directory)
            try:
                return owner_of(os.stat(name, dir_fd=fd, follow_symlinks=False), fd)
            except FileNotFoundError:
                return os.fstat(fd).st_uid
        except (OSError, NotBelowWatch):
            return NOBODY

    def _directory(self, root: str, subpath: str) -> int:
        fd = self._open.get((root, subpath))
        if fd is None:
            fd = self._open[root, subpath] = beneath.open_directory(root, subpath)
        return fd


class Namers:
    """Finds the canonical form of paths that users send on the socket, in a thread for each user.

    A user may send any path, even one on a mount that does not answer, such as a FUSE mount of his
    own. Then only what he sends waits, and nobody else. What one user sends stays in order.
    """

    def __init__(self, name: Callable[[Notification], Notification]) -> None:
        """`name` returns a notification with canonical paths. It may hang."""
        self._name = name
        self._changed = threading.Condition()
        #: By uid, what the thread of that user has yet to do. A user without a thread is not there.
        self._words: dict[int, Words] = {}

    def bring(self, notification: Notification, pass_on: Callable[[Notification], None]) -> None:
        """Have `pass_on` called with the notification once its paths are canonical.

        Never blocks. Any thread may call it.
        """
        uid = notification.uid
        assert uid is not None
        with self._changed:
            words = self._words.get(uid)
            if words is None:
                words = self._words[uid] = deque()
                threading.Thread(
                    target=self._run, args=(uid, words), name=f"namer of uid {uid}", daemon=True
                ).start()
            words.append((notification, pass_on))
            self._changed.notify_all()

    def _run(self, uid: int, words: Words) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: words, IDLE):
                    del self._words[uid]
                    return
                notification, pass_on = words.popleft()
            try:
                pass_on(self._name(notification))
            except Exception:
                logger.exception(
                    "Could not take up what uid %d says of %r.", uid, notification.path
                )
