"""Turns: of the owners of files that were found, and of the users who speak on the socket."""

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

#: Finds that wait until it is known whose their files are. Who brings more waits.
UNSORTED = 10_000

#: Finds that are decided about in one turn, of all owners who wait.
AT_ONCE = 16

#: Finds whose owner is looked up in one turn: a burst is sorted faster than it can be made.
SORTED = 8 * AT_ONCE

#: Finds that wait for one owner's turns, or are held: some 500 to 800 bytes each.
WAITING = 50_000

#: Finds that are still decided about at a stop: the next start scans for more than these. But what
#: was renamed would be another file to that scan.
AT_STOP = 1_000

#: Seconds after which a user's thread ends that has nothing to do.
IDLE = 10.0

Words = deque[tuple[Notification, Callable[[Notification], None]]]

#: Their lane of the inbox, and the owner of what lies where nobody may look.
LANE, NOBODY = "finds", -1


class Find(NamedTuple):
    """A path that was found, and where it was renamed from, "" if it was not."""

    path: str
    old_path: str = ""


class Inbox(Protocol):
    """Where the dispatcher's thread finds what to do, in turns of several lanes."""

    def bring(self, work: Work, lane: str) -> None: ...


class Finds:
    """Finds with the work that is to be done about each. An owner's stay in order.

    The watcher does not ask whose a file is: events come faster than the disk answers, and what its
    thread does not read in time the kernel drops. So that is asked in the dispatcher's thread.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        locate: Callable[[str], Place | None],
        request_later: Callable[[str, int], None],
    ) -> None:
        """`request_later` has a watch scanned once fewer of an owner's finds wait."""
        self._inbox = inbox
        self._locate = locate
        self._request_later = request_later
        #: Guards what is not sorted, and whether a turn is on its way.
        self._changed = threading.Condition()
        self._unsorted: OrderedDict[Find, list[Work]] = OrderedDict()
        self._under_way = False
        #: By owner, the one whose turn is next first; of the dispatcher's thread.
        self._owners: OrderedDict[int, OrderedDict[Find, list[Work]]] = OrderedDict()
        self._owner_of: dict[Find, int] = {}

    def put(self, finds: Sequence[tuple[Find, Work]], *, wait: bool = True) -> None:
        """Bring what is to be done about each of some finds, after what came before.

        Waits while too much is unsorted, unless what is brought is in memory anyway.
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
        """Return how many finds wait for an owner's turns; from any thread."""
        return len(self._owners.get(owner, ()))

    # In the dispatcher's thread.

    def decide_now(self, path: str) -> None:
        """Do at once what waits to be done about a path: somebody has spoken of it."""
        find = Find(path)
        with self._changed:
            unsorted = self._unsorted.pop(find, [])
        sorted_before = self._pop(self._owner_of[find], find) if find in self._owner_of else []
        for work in (*sorted_before, *unsorted):
            work()

    def close(self) -> None:
        """Leave to the next start what would take long."""
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
            # Nobody waits for long, whoever is first.
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
        """Find out whose the unsorted are."""
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
        """Return what is to be done in this turn, of the owners who are next."""
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
        """Return whose a file is; its directory's owner's if it is gone."""
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
    """Find the one name of each path that a user says on the socket, a thread for each user.

    The path is of a stranger's choice: it may lie on a mount that does not answer, as a FUSE mount
    of his own. Then his words wait, and nobody else's. Any thread may bring words; those of one
    user stay in order.
    """

    def __init__(self, name: Callable[[Notification], Notification]) -> None:
        """`name` returns what was said, of the names that the files have. It may hang."""
        self._name = name
        self._changed = threading.Condition()
        #: By uid, what its thread has yet to do; who has no thread is not there.
        self._words: dict[int, Words] = {}

    def bring(self, notification: Notification, pass_on: Callable[[Notification], None]) -> None:
        """Have `pass_on` called with the word once it has its names; never waits."""
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
