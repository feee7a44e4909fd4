"""The names that moves give to files, and what is wrong in `[move:...]` sections.

It reads nothing on the disk but symlinks, by realpath(3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from watchman.config.settings import MoveSettings, WatchSettings
from watchman.errors import Obstructed
from watchman.uploads.beneath import is_below, subpath_of

#: A pattern for the names of files while they are moved. Such a file is never an upload, whatever
#: the INI file says.
HIDDEN = ".watchman-*"

#: The lane of uploads whose move takes long. A thread of its own takes them.
ASIDE = "aside"

#: Most bytes in a file's name, see limits.h.
NAME_MAX = 255


def claim_name(upload_id: str) -> str:
    """Return the name of a claim: the file's name in its directory while it is moved."""
    return f".watchman-{upload_id}"


def copy_name(upload_id: str) -> str:
    """Return the name of a copy in the directory of its destination, until it is whole.

    It is not the claim's name, because two mounts may show one directory under two paths.
    """
    return f".watchman-{upload_id}.copy"


def unique_name(name: str, milliseconds: int) -> str:
    """Return `foo@1596705456400.txt` for `foo.txt`, with the stem cut if that is too long."""
    stem, suffix = os.path.splitext(name)
    tail = f"@{milliseconds}{suffix}"
    while stem and len(os.fsencode(stem + tail)) > NAME_MAX:
        stem = stem[:-1]
    # If the suffix alone is too long, the whole name is cut before it is split again.
    return stem + tail if stem else unique_name(name[: NAME_MAX // 4], milliseconds)


def destination_of(move: MoveSettings, path: str, milliseconds: int) -> str:
    """Return where a move puts the file uploaded as `path`, if that name is free.

    Raises Obstructed if the move has another source by now, which is not above the path.
    """
    subpath = subpath_of(path, move.source)
    if subpath is None:
        raise Obstructed(f"{path!r} is not below the source of [move:{move.name}] any more")
    directory, name = os.path.split(subpath)
    if move.unique == "always":
        name = unique_name(name, milliseconds)
    return os.path.join(move.destination, directory, name)


def origin_of(move: MoveSettings, path: str) -> str:
    """Return where a file below a move's destination was uploaded, as its path now suggests."""
    directory, name = os.path.split(os.path.relpath(path, move.destination))
    name = re.sub(r"@\d{13}(?=\.[^.]*$|$)", "", name)
    return os.path.normpath(os.path.join(move.source, directory, name))


def problems(
    moves: Mapping[str, MoveSettings], watches: Mapping[str, WatchSettings]
) -> Iterator[tuple[str, str, str, str]]:
    """Yield what does not fit between moves and watches: section, option, value, and message."""
    sources: dict[str, str] = {}
    for name, move in moves.items():
        section = f"move:{name}"
        if move.source in sources:
            what = f"is the source of [move:{sources[move.source]}] already"
            yield section, "source", move.source, what
        sources.setdefault(move.source, name)
        yield from _source_problems(section, move, moves, watches)
        yield from _destination_problems(section, move, watches)


def _source_problems(
    section: str,
    move: MoveSettings,
    moves: Mapping[str, MoveSettings],
    watches: Mapping[str, WatchSettings],
) -> Iterator[tuple[str, str, str, str]]:
    real = os.path.realpath(move.source)
    if real == os.path.realpath(move.destination):
        yield section, "destination", move.destination, "is the source: give another directory"
        return
    for other in moves.values():
        if is_below(real, os.path.realpath(other.destination)):
            what = f"lies below the destination of [move:{other.name}], where no file is an upload"
            yield section, "source", move.source, what
    if any(
        is_below(move.source, w.path) or is_below(w.path, move.source) for w in watches.values()
    ):
        return
    for watch in watches.values():
        root = os.path.realpath(watch.path)
        if is_below(real, root):
            path = os.path.normpath(os.path.join(watch.path, os.path.relpath(real, root)))
            what = f"lies below [watch:{watch.name}] over a symlink; write {path}"
            yield section, "source", move.source, what
            return
    if watches:
        yield section, "source", move.source, "is below no watch, so nothing would ever be moved"


def _destination_problems(
    section: str, move: MoveSettings, watches: Mapping[str, WatchSettings]
) -> Iterator[tuple[str, str, str, str]]:
    real = os.path.realpath(move.destination)
    for watch in watches.values():
        root = os.path.realpath(watch.path)
        if is_below(root, real):
            what = f"lies above [watch:{watch.name}], but no file below a destination is an upload"
            yield section, "destination", move.destination, what
        elif is_below(real, root) and not is_below(move.destination, watch.path):
            path = os.path.join(watch.path, os.path.relpath(real, root))
            what = f"lies below [watch:{watch.name}] over a symlink; write {path}"
            yield section, "destination", move.destination, what
