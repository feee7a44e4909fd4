"""The tree of watched directories in memory: the place of each, and the roots of the watches."""

from __future__ import annotations

import logging

from watchman.config.settings import WatchSettings
from watchman.sources.scan.roots import found
from watchman.sources.scan.walk import Identity

logger = logging.getLogger(__name__)

#: Stands for the watch descriptor of a directory that has none.
UNWATCHED = -1


#: The children of every directory without subdirectories, which most are. It is shared and never
#: written to: a dict of its own would double the memory of a node.
CHILDLESS: dict[str, Node] = {}


class Node:
    """A directory in the tree. It knows its name and its parent, not its path.

    So a rename is one step, however many directories lie below.
    """

    __slots__ = ("children", "name", "parent", "root", "wd")

    def __init__(self) -> None:
        self.name = ""
        #: None for the root of a watch, and while the directory is detached.
        self.parent: Node | None = None
        #: Set if this directory is the root of a watch.
        self.root: Root | None = None
        self.children = CHILDLESS
        self.wd = UNWATCHED

    def locate(self) -> Place | None:
        """Return its root and its sub-path below that; None if it is detached from every root."""
        node, names = self, []
        while (parent := node.parent) is not None:
            names.append(node.name)
            node = parent
        if node.root is None:
            return None
        names.reverse()
        return node.root, "/".join(names)

    def is_below(self, other: Node) -> bool:
        """Whether it is `other` or lies below it."""
        node: Node | None = self
        while node is not None and node is not other:
            node = node.parent
        return node is not None

    def is_adrift(self) -> bool:
        """Whether it was detached and has not been placed again."""
        return self.parent is None and self.root is None

    def nearest(self, subpath: str) -> tuple[Node, str]:
        """Follow a sub-path as far as its directories are in the tree.

        Return the last directory reached and the name that follows. The last component is never
        followed, even if it is in the tree.
        """
        node = self
        *names, last = subpath.split("/")
        for name in names:
            child = node.children.get(name)
            if child is None:
                return node, name
            node = child
        return node, last

    def place(self, parent: Node, name: str) -> Node | None:
        """Put it, with everything below it, under a name in `parent`.

        Return the directory that had that name before, which is now detached.
        """
        self.detach()
        displaced = parent.children.get(name)
        if displaced is not None:
            displaced.parent = None
        if parent.children is CHILDLESS:
            parent.children = {}
        parent.children[name] = self
        self.parent, self.name = parent, name
        return displaced

    def detach(self) -> None:
        """Take it, with everything below it, out of its parent."""
        if self.parent is not None:
            del self.parent.children[self.name]
            self.parent = None

    def count(self) -> int:
        """Return how many directories are watched, itself and below. Any thread may call it."""
        count, stack = 0, [self]
        while stack:
            node = stack.pop()
            count += node.wd != UNWATCHED
            # Copied in one step, because the watcher's thread goes on changing the tree.
            stack.extend(list(node.children.values()))
        return count


class Root:
    """The root directory of a watch, which may come and go. `node` is None while it is missing."""

    def __init__(self, settings: WatchSettings, inner: frozenset[str]) -> None:
        self.settings = settings
        #: Sub-paths that are roots of other watches.
        self.inner = inner
        self.node: Node | None = None
        self.identity: Identity | None = None
        #: Whether every directory below it was visited since the root was last found.
        self.covered = False
        #: Whether such a visit waits to begin.
        self.queued = False
        #: Why the root is missing, None if it is there.
        self.missing: str | None = None

    def mark_present(self, identity: Identity) -> None:
        """Note that the root was found; none of its directories is watched yet."""
        if self.missing is not None:
            logger.info("Watch %s: %r is there now.", self.settings.name, self.settings.path)
        self.identity, self.missing = identity, None
        self.move_to(Node())

    def move_to(self, node: Node) -> None:
        """Make another node the root."""
        if self.node is not None:
            self.node.root = None
        self.node, node.root = node, self

    def mark_missing(self, reason: str) -> None:
        """Note that the root is gone, or is another directory now; logged once."""
        if self.missing is None:
            logger.warning(
                "Watch %s: %r is not there: %s. Waiting for it.",
                self.settings.name,
                self.settings.path,
                reason,
            )
        if self.node is not None:
            self.node.root = None
        self.node, self.identity, self.missing, self.covered = None, None, reason, False

    def is_there(self) -> bool:
        """Whether its path still leads to the directory that is watched."""
        return self.identity == found(self.settings)

    def adopts(self) -> bool:
        """Whether new directories are watched too, or only those that were there at the start."""
        return self.settings.auto_add or not self.covered


#: A root, and the sub-path of a directory below it.
Place = tuple[Root, str]
