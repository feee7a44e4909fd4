"""Keeps the tree of watched directories equal to the tree on disk.

A directory is watched first and listed afterwards. Once a whole subtree is watched, a scan of it is
asked for: files that were created before the watch was set have sent no event. With pyinotify's
auto_add, 92 to 99.9 % of the files in quickly made directories sent none.

If a directory cannot be watched, nothing below it is watched either. Otherwise that directory could
be renamed without an event, and all paths below it would be wrong.

Tree and disk may differ for a moment. Whenever they do, an event is waiting in the kernel's queue
that makes us compare that place again.
"""

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

#: Directory entries handled before events are read again. Opening a directory and setting its watch
#: counts as `WATCH` entries, for it takes about as long.
STEP, WATCH = 2000, 100

#: A listing in small steps; it returns how many entries it has seen.
Listing = Generator[None, None, int]


class Coverage:
    """Sets the watches, in small steps between which the watcher reads events.

    `rescan(watch, subpath)` is called for each subtree that is watched from now on. The class is
    long because it has all reasons for which a directory is watched, or is not any more.
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
        #: Work under way. The first lane is for new directories; the second is for whole watches,
        #: for retries, and for subtrees whose watches are removed. The lanes take turns, so a new
        #: directory never waits for a whole watch.
        self._lanes: tuple[deque[Iterator[None]], ...] = (deque(), deque())
        self._refusals = Refusals()
        self.watched = Watched(inotify, self._refusals, later=self._lanes[1].append)

    def takes(self, root: Root, subpath: str) -> bool:
        """Whether the settings want a directory watched, judging by its path alone."""
        settings = root.settings
        return settings.rec and subpath not in root.inner and not self._excluded(settings, subpath)

    def appeared(self, parent: Node, name: str, *, moved: bool) -> None:
        """Handle a directory that was made here or, if `moved`, renamed or mounted to here."""
        place = parent.locate()
        if place is not None and join(place[1], name) in place[0].inner:
            self.look()
        else:
            self._lanes[0].append(self._cover_below(parent, name, moved=moved))

    def removed(self, node: Node) -> None:
        """Handle a watch that the kernel has removed: its directory was deleted or unmounted."""
        if node.root is None:
            self.watched.forget(node)
        else:
            self.watched.lose(node.root, "deleted or unmounted")
            self.look()

    def recheck_all(self) -> None:
        """Compare every watch with the disk and have it scanned, because events were lost."""
        for root in self.roots:
            self._cover_soon(root)

    def look(self) -> None:
        """Check that the root of each watch is there and is still the same directory.

        Events do not tell everything about a root. None comes when a directory above it is renamed,
        or when a filesystem is mounted over it.
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
                root.mark_present(identity)
                self._cover_soon(root)

    def retry(self, now: float) -> None:
        """Try again to watch what could not be watched, if it is time. A failed try scans it."""
        if not self._refusals.are_due(now):
            return
        for node in list(self._refusals):
            if node.root is not None:
                self._cover_soon(node.root)
            elif node.parent is not None:
                self._lanes[1].append(self._cover_below(node.parent, node.name, moved=True))
        self._refusals.log_recovered()

    @property
    def busy(self) -> bool:
        return any(self._lanes)

    def work(self, until: float) -> None:
        """Work on both lanes in turn until everything is done or `until` (monotonic) is reached."""
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
        """Give up the work under way, and close the directories that it holds open."""
        for lane in self._lanes:
            lane.clear()

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the status of each watch; any thread may call it."""
        return {root.settings.name: self._status(root) for root in self.roots}

    def _status(self, root: Root) -> dict[str, Any]:
        refusals, lasting = self._refusals.of(root)
        if root.missing is not None:
            state = "missing"
        elif lasting:
            state = "incomplete"
        else:
            state = "watching" if root.covered and not refusals else "starting"
        return {
            "state": state,
            "directories": self.watched.count(root),
            "unwatched": refusals,
            "error": root.missing or next(iter(lasting), None),
        }

    def _cover_soon(self, root: Root) -> None:
        if root.node is not None and not root.queued:
            root.queued = True
            self._lanes[1].append(self._cover_root(root))

    # In the generators below events are read at each yield, so the tree may have changed after it.

    def _cover_root(self, root: Root) -> Iterator[None]:
        """Watch all directories of a watch, then have it scanned."""
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
        """Watch a directory and everything below it, then have it scanned.

        A directory that was `moved` is always gone through: even if it is watched already, nothing
        is known of what happened in it meanwhile.
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
            _close(fd)  # a listing of its parent has found it already and goes on from there
            return
        yield from self._descend(fd, node)
        place = node.locate()
        if place is not None:
            self._rescan(place[0].settings.name, place[1])

    def _descend(self, fd: int, top: Node) -> Iterator[None]:
        """Watch everything below an open directory, which is watched already."""
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
        """List a directory: note the subdirectories to go into, and forget those that are gone.

        Return how many entries were looked at.
        """
        (root, subpath), names = place, directory.names
        if not root.settings.rec:
            self._refusals.pop(node, None)
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
        self._refusals.pop(node, None)
        listed = set(names)
        for name, child in before:
            if name not in listed and node.children.get(name) is child:
                self.watched.forget(child)
        return count

    def _failed(self, parent: Node, name: str, error: OSError) -> None:
        """Handle a directory that could not be opened or watched."""
        if not name:  # the walk lost its way back to `parent`, for directories were moved meanwhile
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
