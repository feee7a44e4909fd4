"""The watches that are set: which directory each watch descriptor belongs to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from watchman.sources.inotify.events import Inotify
from watchman.sources.inotify.refusals import Refusals
from watchman.sources.inotify.tree import CHILDLESS, UNWATCHED, Node, Place, Root
from watchman.sources.scan.walk import too_long
from watchman.uploads.beneath import below


class Watched:
    """Sets and removes watches, and puts each directory where it belongs in the tree.

    `later` is given work that takes long, as a generator that works in small steps.
    """

    def __init__(
        self, inotify: Inotify, refusals: Refusals, later: Callable[[Iterator[None]], None]
    ) -> None:
        self._inotify = inotify
        self._refusals = refusals
        self._later = later
        #: Each directory by its watch descriptor, which the kernel does not use a second time.
        self.by_wd: dict[int, Node] = {}
        #: How often it has changed what is watched, or where. Counted after each change, so that
        #: a count that was made meanwhile is made again.
        self._changes = 0
        #: By root, its node, the changes so far, and how many directories there were.
        self._counted: dict[Root, tuple[Node | None, int, int]] = {}

    def count(self, root: Root) -> int:
        """Return how many directories of a watch are watched. Any thread may call it.

        They are counted only after a change, as it takes 70 ms for 100,000, and is asked for every
        few seconds.
        """
        node, changes = root.node, self._changes
        known = self._counted.get(root)
        if known is None or known[:2] != (node, changes):
            known = node, changes, 0 if node is None else node.count()
            self._counted[root] = known
        return known[2]

    def enter_root(self, root: Root, fd: int) -> Node:
        """Watch the open root directory of a watch and return its node; raises OSError."""
        ours = root.node
        assert ours is not None
        wd = self._inotify.watch(fd)
        node = self.by_wd.get(wd)
        if node is None:
            self._set_wd(ours, wd)
            return ours
        if node is ours:
            return node
        if node.root is not None:
            other = node.root.settings.name
            raise OSError(errno.EEXIST, f"it is the directory of watch {other} too")
        # Until now it was a directory inside another watch. It was renamed to be this root, or the
        # root's path is a symlink to it.
        self.detach(node)
        root.move_to(node)
        self.forget(ours)
        return node

    def enter(self, fd: int, parent: Node, name: str, place: Place) -> Node | None:
        """Watch an open directory and put it at `place`, the `name` in `parent`; raises OSError.

        Return its node, or None if it belongs to another place in the tree.
        """
        if too_long(place[0].settings.path, place[1]):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        wd = self._inotify.watch(fd)
        node = self.by_wd.get(wd)
        if node is not None and node is parent.children.get(name):
            return node
        if node is None:
            node = Node()
        elif node.root is not None:
            if node.root.is_there():
                return None  # another watch's root, by way of a symlink or a second mount
            self.lose(node.root, "moved away")
        elif parent.is_below(node) or _is_still(node, fd):
            return None  # a bind mount: of a directory above, or of one watched at its own place
        self.place(node, parent, name)
        self._set_wd(node, wd)
        return node

    def place(self, node: Node, parent: Node, name: str) -> None:
        """Put a directory under a name, and forget the one that had that name before."""
        displaced = node.place(parent, name)
        self._changes += 1
        if displaced is not None:
            self.forget(displaced)

    def lose(self, root: Root, reason: str) -> None:
        """Mark a root as missing, and remove its watches."""
        node = root.node
        root.mark_missing(reason)
        if node is not None:
            self.forget(node)

    def detach(self, node: Node) -> None:
        """Take a directory out of its place, with everything below it; it keeps its watches."""
        node.detach()
        self._changes += 1

    def forget(self, node: Node) -> None:
        """Remove a directory that has left, with everything below it."""
        self.detach(node)
        if node.children:
            self._later(self._drop_all(node))
        else:
            self._drop(node)

    def _drop_all(self, node: Node) -> Iterator[None]:
        """Remove the watches of a subtree, except for parts that were placed again meanwhile."""
        stack = [node]
        while stack:
            node = stack.pop()
            if node.is_adrift():
                for child in node.children.values():
                    child.parent = None
                    stack.append(child)
                node.children = CHILDLESS
                self._drop(node)
                yield

    def _drop(self, node: Node) -> None:
        self._refusals.pop(node, None)
        wd = node.wd
        self._set_wd(node, UNWATCHED)
        if wd != UNWATCHED:
            self._inotify.unwatch(wd)

    def _set_wd(self, node: Node, wd: int) -> None:
        if self.by_wd.get(node.wd) is node:
            del self.by_wd[node.wd]
        node.wd = wd
        if wd != UNWATCHED:
            self.by_wd[wd] = node
        self._changes += 1


def _is_still(node: Node, fd: int) -> bool:
    """Whether the path that the tree has for a directory still leads to the open one."""
    place = node.locate()
    if place is None:
        return False
    try:
        there = os.lstat(below(place[0].settings.path, place[1]))
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(fd))
