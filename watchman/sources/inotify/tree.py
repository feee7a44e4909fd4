"""The map of watched directories: which watch descriptor lies where."""

from __future__ import annotations

#: The watch descriptor of a directory that has none.
UNWATCHED = -1


class Node:
    """A directory; `parent` is None for a root, and for one that is nowhere at the moment."""

    __slots__ = ("children", "name", "parent", "wd")

    def __init__(self) -> None:
        self.name = ""
        self.parent: Node | None = None
        self.children: dict[str, Node] = {}
        self.wd = UNWATCHED

    def is_below(self, other: Node) -> bool:
        """Whether it is `other` or lies below it."""
        node: Node | None = self
        while node is not None and node is not other:
            node = node.parent
        return node is not None


class Tree:
    """Directories by name and by watch descriptor. Renaming one with all below it is one step."""

    def __init__(self) -> None:
        #: The root directories, with the names of their watches.
        self.roots: dict[Node, str] = {}
        #: Watched directories by watch descriptor. The kernel does not use one twice.
        self.watched: dict[int, Node] = {}

    def locate(self, node: Node) -> tuple[str, str] | None:
        """The watch and the sub-path below it; None for what lies below no root."""
        names = []
        while (parent := node.parent) is not None:
            names.append(node.name)
            node = parent
        watch = self.roots.get(node)
        if watch is None:
            return None
        names.reverse()
        return watch, "/".join(names)

    def nearest(self, node: Node, subpath: str) -> tuple[Node, str]:
        """Return where below a directory a sub-path leaves the map: the last one on the map, and
        the name that comes next. The last component counts as being off the map.
        """
        *names, last = subpath.split("/")
        for name in names:
            child = node.children.get(name)
            if child is None:
                return node, name
            node = child
        return node, last

    def is_adrift(self, node: Node) -> bool:
        """Whether it was taken out and has not been placed again, itself or as a root."""
        return node.parent is None and node not in self.roots

    def place(self, node: Node, parent: Node, name: str) -> Node | None:
        """Put a directory, with all below it, under a name; what was there before is adrift."""
        self.detach(node)
        displaced = parent.children.get(name)
        if displaced is not None:
            displaced.parent = None
        parent.children[name] = node
        node.parent, node.name = parent, name
        return displaced

    def detach(self, node: Node) -> None:
        """Take a directory, with all below it, out of its parent."""
        if node.parent is not None:
            del node.parent.children[node.name]
            node.parent = None

    def set_wd(self, node: Node, wd: int) -> None:
        """Note the watch descriptor of a directory, UNWATCHED for none."""
        if self.watched.get(node.wd) is node:
            del self.watched[node.wd]
        node.wd = wd
        if wd != UNWATCHED:
            self.watched[wd] = node

    def count(self, root: Node) -> int:
        """How many watched directories there are at and below `root`; from any thread."""
        found, stack = 0, [root]
        while stack:
            node = stack.pop()
            found += node.wd != UNWATCHED
            stack.extend(list(node.children.values()))  # list() at once: the map goes on changing
        return found
