"""Which directories are watched: the tree of watches, kept like the tree on disk."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from watchman.config.settings import WatchSettings
from watchman.sources.inotify.events import Inotify
from watchman.sources.inotify.refusals import Refusals
from watchman.sources.inotify.tree import Node, Place, Root
from watchman.sources.inotify.watched import Watched
from watchman.sources.scan.roots import identify, inner_roots
from watchman.sources.scan.walk import BARRED, GONE, Directory, join, open_below, walk

#: Directory entries looked at before events are read again, and how many of them take as long as to
#: open a directory and set its watch.
STEP, WATCH = 2000, 100

Listing = Generator[None, None, int]


class Coverage:
    """Sets the watches, in small steps between which the watcher reads events.

    A directory is watched first and listed afterwards, and when a subtree is covered `rescan` is
    called for it: what was created before its watch landed has sent no event. Below a directory
    that cannot be watched nothing is, so that no directory moves unseen. Wherever the tree and the
    disk differ for a moment, an event is on its way that has the place compared again.
    """

    def __init__(
        self,
        watches: Iterable[WatchSettings],
        *,
        inotify: Inotify,
        rescan: Callable[[str, str], None],
        excluded: Callable[[WatchSettings, str], object],
    ) -> None:
        self._rescan = rescan
        self._excluded = excluded
        settings = list(watches)
        self.roots = [Root(watch, inner_roots(watch, settings)) for watch in settings]
        #: Work under way: on directories that appeared; on whole watches and on what left. By
        #: turns, so that a new directory never waits for a whole watch.
        self._lanes: tuple[deque[Iterator[None]], ...] = (deque(), deque())
        self._refusals = Refusals()
        self.watched = Watched(inotify, self._refusals, later=self._lanes[1].append)

    def takes(self, root: Root, subpath: str) -> bool:
        """Whether a directory is to be watched, by its name."""
        settings = root.settings
        return settings.rec and subpath not in root.inner and not self._excluded(settings, subpath)

    def appeared(self, parent: Node, name: str, *, moved: bool) -> None:
        """A directory was made, or moved to here."""
        place = parent.locate()
        if place is not None and join(place[1], name) in place[0].inner:
            self.look()
        else:
            self._lanes[0].append(self._cover_below(parent, name, moved=moved))

    def removed(self, node: Node) -> None:
        """The kernel has removed a directory's watch: deleted, or unmounted."""
        if node.root is None:
            self.watched.forget(node)
        else:
            self.watched.lose(node.root, "deleted or unmounted")
            self.look()

    def distrust(self) -> None:
        """Events were lost: compare every watch with the disk, and have it scanned."""
        for root in self.roots:
            self._cover_soon(root)

    def look(self) -> None:
        """Look whether each root is there, and is still the same directory.

        Their events do not say all: not that a directory above was renamed, or that something was
        mounted over one.
        """
        for root in self.roots:
            try:
                identity = identify(root.settings)
            except OSError as e:
                self.watched.lose(root, str(e.strerror))
                continue
            if root.identity not in (None, identity):
                self.watched.lose(root, "another directory has taken its place")
            if root.node is None:
                root.come(identity)
                self._cover_soon(root)

    def retry(self, now: float) -> None:
        """If it is time, try what could not be watched again; until it can be, it is scanned."""
        if not self._refusals.are_due(now):
            return
        for node in list(self._refusals):
            if node.root is not None:
                self._cover_soon(node.root)
            elif node.parent is not None:
                self._lanes[1].append(self._cover_below(node.parent, node.name, moved=True))
        self._refusals.forgive()

    @property
    def busy(self) -> bool:
        return any(self._lanes)

    def work(self, until: float) -> None:
        """Do what is to be done, up to a moment of `time.monotonic`."""
        while self.busy and time.monotonic() < until:
            for lane in filter(None, self._lanes):
                try:
                    next(lane[0])
                except StopIteration:
                    lane.popleft()
                except Exception:
                    lane.popleft()
                    raise

    def close(self) -> None:
        """Let go of what is under way, and of the directories open for it."""
        for lane in self._lanes:
            lane.clear()

    def status(self) -> dict[str, dict[str, Any]]:
        """How each watch stands; from any thread."""
        return {root.settings.name: self._status(root) for root in self.roots}

    def _status(self, root: Root) -> dict[str, Any]:
        node, refusals = root.node, self._refusals.of(root)
        if root.missing is not None:
            state = "missing"
        elif refusals:
            state = "incomplete"
        else:
            state = "watching" if root.covered else "starting"
        return {
            "state": state,
            "directories": 0 if node is None else node.count(),
            "unwatched": len(refusals),
            "error": root.missing or next(iter(refusals), None),
        }

    def _cover_soon(self, root: Root) -> None:
        if root.node is not None and not root.queued:
            root.queued = True
            self._lanes[1].append(self._cover_root(root))

    # Each yield in these is a moment in which events may change the tree.

    def _cover_root(self, root: Root) -> Iterator[None]:
        """Watch a whole watch, then have it scanned."""
        root.queued = False
        if root.node is None:
            return
        fd = -1
        try:
            fd = open_below(root.settings.path, "")
            node = self.watched.enter_root(root, fd)
        except OSError as e:
            _close(fd)
            self._refusals.add(root.node, e)
            if e.errno not in BARRED:
                self._rescan(root.settings.name, "")
            return
        yield from self._descend(fd, node)
        if root.node is node:
            root.covered = True
            self._rescan(root.settings.name, "")

    def _cover_below(self, parent: Node, name: str, *, moved: bool) -> Iterator[None]:
        """Watch a directory with all below it, then have it scanned.

        One that was `moved` may hold anything, however well it is known.
        """
        place = parent.locate()
        if place is None:
            return
        root, subpath = place[0], join(place[1], name)
        known = parent.children.get(name)
        if not self.takes(root, subpath):
            if known is not None:
                self.watched.forget(known)
            return
        if known is None and not root.adopts():
            return
        was_covered = known is not None and known not in self._refusals
        fd = -1
        try:
            fd = open_below(root.settings.path, subpath)
            node = self.watched.enter(fd, parent, name, (root, subpath))
        except OSError as e:
            _close(fd)
            self._failed(parent, name, e)
            if e.errno not in GONE | BARRED:
                self._rescan(root.settings.name, subpath)
            return
        if node is None or (node is known and was_covered and not moved):
            _close(fd)  # a listing has found it since it was made, and goes on from there
            return
        yield from self._descend(fd, node)
        place = node.locate()
        if place is not None:
            self._rescan(place[0].settings.name, place[1])

    def _descend(self, fd: int, top: Node) -> Iterator[None]:
        """Watch all below an open directory that is watched itself."""
        looked = 0
        for directory in walk(fd, top, self._failed):
            above, name = directory.above, directory.name
            place = (top if above is None else above).locate()
            if place is None:
                continue
            if above is not None:
                place = place[0], join(place[1], name)
                try:
                    directory.here = self.watched.enter(directory.fd, above, name, place)
                except OSError as e:
                    self._failed(above, name, e)
            if directory.here is not None:
                looked += yield from self._list(directory, directory.here, place)
            looked += WATCH
            if looked >= STEP:
                looked = 0
                yield

    def _list(self, directory: Directory[Node], node: Node, place: Place) -> Listing:
        """Note subdirectories to go into, forget those that have gone; return how many entries."""
        (root, subpath), names = place, directory.names
        self._refusals.pop(node, None)
        if not root.settings.rec:
            return 0
        adopts, prefix = root.adopts(), join(subpath, "")
        before, count = list(node.children.items()), 0
        try:
            with os.scandir(directory.fd) as entries:
                for count, entry in enumerate(entries, 1):
                    if (
                        entry.is_dir(follow_symlinks=False)
                        and self.takes(root, prefix + entry.name)
                        and (adopts or entry.name in node.children)
                    ):
                        names.append(entry.name)
                    if count % STEP == 0:
                        yield
        except OSError as e:
            self._refusals.add(node, e)
            return count
        listed = set(names)
        for name, child in before:
            if name not in listed and node.children.get(name) is child:
                self.watched.forget(child)
        return count

    def _failed(self, parent: Node, name: str, error: OSError) -> None:
        """A directory could not be opened or watched."""
        if not name:  # the walk found no way back up: what is there was moved meanwhile
            place = parent.locate()
            if place is not None:
                self._cover_soon(place[0])
            return
        node = parent.children.get(name)
        if error.errno in GONE:
            if node is not None:
                self.watched.forget(node)
            return
        if node is None:
            node = Node()
            node.place(parent, name)
        self._refusals.add(node, error)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
