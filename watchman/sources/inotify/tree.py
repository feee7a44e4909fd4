"""The map of directories: where each of them lies, and which are the roots of the watches."""

from __future__ import annotations

import logging

from watchman.config.settings import WatchSettings
from watchman.sources.scan.roots import found
from watchman.sources.scan.walk import Identity

logger = logging.getLogger(__name__)

#: The watch descriptor of a directory that has none.
UNWATCHED = -1


#: What all have in common that have no children, which are most: it is never written to. A dict of
#: its own would take as much memory as all else of a node.
CHILDLESS: dict[str, Node] = {}


class Node:
    """A directory, by its name in its parent. Renaming one with all below it is one step."""

    __slots__ = ("children", "name", "parent", "root", "wd")

    def __init__(self) -> None:
        self.name = ""
        #: None for a root, and for one that is nowhere at the moment.
        self.parent: Node | None = None
        #: What it is the root of.
        self.root: Root | None = None
        self.children = CHILDLESS
        self.wd = UNWATCHED

    def locate(self) -> Place | None:
        """The root and the sub-path below it; None for what lies below no root."""
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
        """Whether it was taken out and has not been placed again, itself or as a root."""
        return self.parent is None and self.root is None

    def nearest(self, subpath: str) -> tuple[Node, str]:
        """Return where below it a sub-path leaves the map: the last one on the map, and the name
        that comes next. The last component counts as being off the map.
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
        """Put it, with all below it, under a name; what was there before is adrift."""
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
        """Take it, with all below it, out of its parent."""
        if self.parent is not None:
            del self.parent.children[self.name]
            self.parent = None

    def count(self) -> int:
        """How many directories at and below it are watched; from any thread."""
        count, stack = 0, [self]
        while stack:
            node = stack.pop()
            count += node.wd != UNWATCHED
            stack.extend(list(node.children.values()))  # list() at once: the map goes on changing
        return count


class Root:
    """A watch's root directory, which may come and go. `node` is None while it is not there."""

    def __init__(self, settings: WatchSettings, inner: frozenset[str]) -> None:
        self.settings = settings
        #: Sub-paths that are the roots of other watches.
        self.inner = inner
        self.node: Node | None = None
        self.identity: Identity | None = None
        #: Whether its tree has been gone through since it came.
        self.covered = False
        #: Whether that is about to be done, not begun yet.
        self.queued = False
        #: Why it is not there.
        self.missing: str | None = None

    def come(self, identity: Identity) -> None:
        if self.missing is not None:
            logger.info("Watch %s: %r is there now.", self.settings.name, self.settings.path)
        self.identity, self.missing = identity, None
        self.move_to(Node())

    def move_to(self, node: Node) -> None:
        """It is another node from now on."""
        if self.node is not None:
            self.node.root = None
        self.node, node.root = node, self

    def leave(self, reason: str) -> None:
        """It is not there, or not the same any more; said once."""
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
        """Whether directories that are new are watched, or only those there from the start."""
        return self.settings.auto_add or not self.covered


#: A root, and a sub-path below it.
Place = tuple[Root, str]
