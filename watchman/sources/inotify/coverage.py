"""Which directories are watched: the tree of watches, kept like the tree on disk."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from watchman.config.settings import WatchSettings
from watchman.sources.inotify.events import Inotify
from watchman.sources.inotify.refusals import Refusals
from watchman.sources.inotify.root import Root
from watchman.sources.inotify.tree import UNWATCHED, Node, Tree
from watchman.sources.scan.roots import identify, inner_roots
from watchman.sources.scan.walk import BARRED, GONE, below, join, open_below, too_long, walk

#: Directory entries looked at before events are read again.
STEP = 2000


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
        self._inotify = inotify
        self._rescan = rescan
        self._excluded = excluded
        settings = list(watches)
        self.roots = {watch.name: Root(watch, inner_roots(watch, settings)) for watch in settings}
        self.tree = Tree()
        self._refusals = Refusals(self.tree, {watch.name: watch.path for watch in settings})
        #: Work under way: on directories that appeared; on whole watches and on what left. By
        #: turns, so that a new directory never waits for a whole watch.
        self._lanes: tuple[deque[Iterator[None]], ...] = (deque(), deque())

    def takes(self, watch: str, subpath: str) -> bool:
        """Whether a directory is to be watched, by its name."""
        root = self.roots[watch]
        return (
            root.settings.rec
            and subpath not in root.inner
            and not self._excluded(root.settings, subpath)
        )

    def appeared(self, parent: Node, name: str, *, moved: bool) -> None:
        """A directory was made, or moved to here."""
        place = self.tree.locate(parent)
        if place is not None and join(place[1], name) in self.roots[place[0]].inner:
            self.look()
        else:
            self._lanes[0].append(self._cover_below(parent, name, moved=moved))

    def forget(self, node: Node) -> None:
        """A directory has left with all below it."""
        self.tree.detach(node)
        if node.children:
            self._lanes[1].append(self._drop_all(node))
        else:
            self._drop(node)

    def removed(self, node: Node) -> None:
        """The kernel has removed a directory's watch: deleted, or unmounted."""
        watch = self.tree.roots.get(node)
        if watch is None:
            self.forget(node)
        else:
            self._lose(self.roots[watch], "deleted or unmounted")
            self.look()

    def distrust(self) -> None:
        """Events were lost: compare every watch with the disk, and have it scanned."""
        for root in self.roots.values():
            self._cover_soon(root)

    def look(self) -> None:
        """Look whether each root is there, and is still the same directory.

        Their events do not say all: not that a directory above was renamed, or that something was
        mounted over one.
        """
        for root in self.roots.values():
            try:
                identity = identify(root.settings)
            except OSError as e:
                self._lose(root, str(e.strerror))
                continue
            if root.identity not in (None, identity):
                self._lose(root, "another directory has taken its place")
            if root.node is None:
                node = Node()
                root.come(node, identity)
                self.tree.roots[node] = root.settings.name
                self._cover_soon(root)

    def retry(self) -> None:
        """Try again what could not be watched; as long as it cannot, it is scanned."""
        for node in self._refusals.nodes():
            watch = self.tree.roots.get(node)
            if watch is not None:
                self._cover_soon(self.roots[watch])
            elif node.parent is not None:
                self._lanes[1].append(self._cover_below(node.parent, node.name, moved=True))
        self._refusals.forgive()

    def refused_anew(self) -> bool:
        """Whether anything could not be watched for the first time since the last call."""
        return self._refusals.take_new()

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
        return {name: self._status(root) for name, root in self.roots.items()}

    def _status(self, root: Root) -> dict[str, Any]:
        node = root.node
        refusals = self._refusals.of(root.settings.name)
        if root.missing is not None:
            state = "missing"
        elif refusals:
            state = "incomplete"
        else:
            state = "watching" if root.covered else "starting"
        return {
            "state": state,
            "directories": 0 if node is None else self.tree.count(node),
            "unwatched": len(refusals),
            "error": root.missing or next(iter(refusals), None),
        }

    def _lose(self, root: Root, reason: str) -> None:
        node = root.node
        root.leave(reason)
        if node is not None:
            del self.tree.roots[node]
            self.forget(node)

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
            node = self._enter_root(root, fd)
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
        place = self.tree.locate(parent)
        if place is None:
            return
        root, subpath = self.roots[place[0]], join(place[1], name)
        known = parent.children.get(name)
        if not self.takes(root.settings.name, subpath):
            if known is not None:
                self.forget(known)
            return
        if known is None and not _adopts(root):
            return
        was_covered = known is not None and known not in self._refusals
        fd = -1
        try:
            fd = open_below(root.settings.path, subpath)
            node = self._enter(fd, parent, name)
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
        place = self.tree.locate(node)
        if place is not None:
            self._rescan(*place)

    def _descend(self, fd: int, top: Node) -> Iterator[None]:
        """Watch all below an open directory that is watched itself."""
        for directory in walk(fd, top, self._failed):
            if directory.above is not None:
                try:
                    directory.here = self._enter(directory.fd, directory.above, directory.name)
                except OSError as e:
                    self._failed(directory.above, directory.name, e)
            if directory.here is not None:
                yield from self._list(directory.fd, directory.here, directory.names)
            yield

    def _list(self, fd: int, node: Node, names: list[str]) -> Iterator[None]:
        """Add to `names` the subdirectories to go into; forget those that are there no more."""
        place = self.tree.locate(node)
        if place is None:
            return
        self._refusals.discard(node)
        root, subpath = self.roots[place[0]], place[1]
        if not root.settings.rec:
            return
        adopts = _adopts(root)
        before = list(node.children.items())
        try:
            with os.scandir(fd) as entries:
                for count, entry in enumerate(entries, 1):
                    if (
                        entry.is_dir(follow_symlinks=False)
                        and self.takes(place[0], join(subpath, entry.name))
                        and (adopts or entry.name in node.children)
                    ):
                        names.append(entry.name)
                    if count % STEP == 0:
                        yield
        except OSError as e:
            self._refusals.add(node, e)
            return
        if before:
            listed = set(names)
            for name, child in before:
                if name not in listed and node.children.get(name) is child:
                    self.forget(child)

    def _enter_root(self, root: Root, fd: int) -> Node:
        """Watch the open directory of a root."""
        ours = root.node
        assert ours is not None
        wd = self._inotify.watch(fd)
        node = self.tree.watched.get(wd)
        if node is None:
            self.tree.set_wd(ours, wd)
            return ours
        if node is not ours and node in self.tree.roots:
            other = self.tree.roots[node]
            raise OSError(errno.EEXIST, f"it is the directory of watch {other} too")
        if node is not ours:
            # A directory of another watch until now: moved to here, or reached by a symlink.
            self.tree.detach(node)
            del self.tree.roots[ours]
            self.tree.roots[node] = root.settings.name
            root.node = node
            self.forget(ours)
        return node

    def _enter(self, fd: int, parent: Node, name: str) -> Node | None:
        """Watch an open directory and put it where it was found, None if it belongs elsewhere."""
        place = self.tree.locate(parent)
        if place is None:
            return None
        path = self.roots[place[0]].settings.path
        if too_long(below(path, join(place[1], name))):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        wd = self._inotify.watch(fd)
        node = self.tree.watched.get(wd)
        if node is not None and node is parent.children.get(name):
            return node
        if node is None:
            node = Node()
        elif node in self.tree.roots:
            root = self.roots[self.tree.roots[node]]
            if root.is_there():
                return None  # reached by a symlink or a second mount there
            self._lose(root, "moved away")
        elif parent.is_below(node) or self._is_still(node, fd):
            return None  # a mount inside itself, or of what is watched in its own place
        displaced = self.tree.place(node, parent, name)
        if displaced is not None:
            self.forget(displaced)
        self.tree.set_wd(node, wd)
        return node

    def _is_still(self, node: Node, fd: int) -> bool:
        """Whether an open directory is, too, where the tree has it."""
        place = self.tree.locate(node)
        if place is None:
            return False
        try:
            there = os.lstat(below(self.roots[place[0]].settings.path, place[1]))
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(fd))

    def _failed(self, parent: Node, name: str, error: OSError) -> None:
        """A directory could not be opened or watched."""
        if not name:  # the walk found no way back up: what is there was moved meanwhile
            place = self.tree.locate(parent)
            if place is not None:
                self._cover_soon(self.roots[place[0]])
            return
        node = parent.children.get(name)
        if error.errno in GONE:
            if node is not None:
                self.forget(node)
            return
        if node is None:
            node = Node()
            self.tree.place(node, parent, name)
        self._refusals.add(node, error)

    def _drop_all(self, node: Node) -> Iterator[None]:
        """Remove the watches of a subtree, but for what has been placed again meanwhile."""
        stack = [node]
        while stack:
            node = stack.pop()
            if self.tree.is_adrift(node):
                for child in node.children.values():
                    child.parent = None
                    stack.append(child)
                node.children = {}
                self._drop(node)
                yield

    def _drop(self, node: Node) -> None:
        self._refusals.discard(node)
        wd = node.wd
        self.tree.set_wd(node, UNWATCHED)
        if wd != UNWATCHED:
            self._inotify.unwatch(wd)


def _adopts(root: Root) -> bool:
    """Whether directories that are new are watched, or only those there from the start."""
    return root.settings.auto_add or not root.covered


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
