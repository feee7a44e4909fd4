"""Which watch, move and task a path falls under. Pure: only names are looked at, never files."""

import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from watchman.config.moves import HIDDEN
from watchman.config.settings import (
    DEFAULT_EXCLUDES,
    MoveSettings,
    Settings,
    TaskSettings,
    WatchSettings,
)
from watchman.uploads.beneath import is_below
from watchman.uploads.upload import Task

#: What `{...}` may stand for inside the strings of a task's `args` and `kwargs`.
PLACEHOLDERS = (
    "path",
    "original",
    "name",
    "stem",
    "suffix",
    "directory",
    "watch",
    "user",
    "client",
    "protocol",
    "size",
)

#: Directories of a watch of which is remembered whether a name on the way there is excluded.
DIRECTORIES = 4096

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")

Match = Callable[[str], re.Match[str] | None]


class _Excludes:
    """What is excluded in a watch: by patterns of names, of whole sub-paths, which have a slash in
    them, and as the destination of a move.
    """

    def __init__(self, watch: WatchSettings, moves: Iterable[MoveSettings]) -> None:
        #: The moves whose destination lies below it, and where.
        self._destinations = [
            (move, os.path.relpath(move.destination, watch.path))
            for move in moves
            if is_below(move.destination, watch.path)
        ]
        patterns = (*watch.exclude, *(DEFAULT_EXCLUDES if watch.exclude_defaults else ()), HIDDEN)
        self._patterns: list[tuple[str, Match]] = [
            (pattern, compiled(pattern).match) for pattern in patterns
        ]
        # All of a kind as one, for nearly all files match none.
        self._match_name = _any_of(pattern for pattern in patterns if "/" not in pattern)
        subpaths = [pattern for pattern in patterns if "/" in pattern]
        self._match_subpath = _any_of(subpaths) if subpaths else None
        #: Files are asked about by the directory.
        self._is_directory_excluded = functools.lru_cache(DIRECTORIES)(self._has_excluded_name)

    def first(self, subpath: str) -> str | None:
        """Return what excludes it, if anything does."""
        directory, _, name = subpath.rpartition("/")
        if not (
            self._match_name(name)
            or self._is_directory_excluded(directory)
            or (self._match_subpath and self._match_subpath(subpath))
            or self._destinations
        ):
            return None  # as nearly all
        move = self._destination(subpath)
        if move is not None:
            return f"[move:{move.name}], whose destination it lies below"
        names = subpath.split("/")
        for pattern, match in self._patterns:
            if match(subpath) if "/" in pattern else any(map(match, names)):
                return pattern
        return None

    def _destination(self, subpath: str) -> MoveSettings | None:
        found = (move for move, below in self._destinations if is_below(subpath, below))
        return next(found, None)

    def _has_excluded_name(self, directory: str) -> bool:
        """Whether the name of a directory, or of any on the way there, is excluded."""
        return bool(directory) and any(map(self._match_name, set(directory.split("/"))))


class Rules:
    """The settings' patterns, compiled. All parts go by the same object, any thread."""

    def __init__(self, settings: Settings) -> None:
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Go by other settings from now on."""
        # The longest path first: with nested watches the inner one owns its directory.
        watches = sorted(settings.watches.values(), key=lambda watch: len(watch.path), reverse=True)
        self._watches = [(watch.path.rstrip("/") + "/", watch) for watch in watches]
        self._moves = sorted(
            settings.moves.values(), key=lambda move: len(move.source), reverse=True
        )
        self._excludes = {watch.name: _Excludes(watch, self._moves) for watch in watches}
        self._tasks = [
            (task, [compiled(pattern, task.ignore_case) for pattern in task.patterns])
            for task in settings.tasks
        ]

    def watches(self) -> list[WatchSettings]:
        return [watch for _, watch in self._watches]

    def locate(self, path: str) -> tuple[WatchSettings, str] | None:
        """The watch that owns `path`, and where below it; None for a path below none.

        A path with `..` in it is below none: what that means depends on symlinks, so it has to be
        resolved before.
        """
        if ".." in path.split("/"):
            return None
        # normpath keeps two leading slashes (POSIX gives them a meaning that Linux does not).
        path = re.sub("^//", "/", os.path.normpath(path))
        for prefix, watch in self._watches:
            if path.startswith(prefix) and path != prefix:
                return watch, path[len(prefix) :]
        return None

    def excluded(self, watch: WatchSettings, subpath: str) -> str | None:
        """What keeps `subpath` from being an upload of `watch`, if anything: a pattern, or a move
        whose destination it lies below.
        """
        return self._excludes[watch.name].first(subpath)

    def move_for(self, path: str) -> MoveSettings | None:
        """The move whose source is the longest that is a parent of `path`."""
        return next((move for move in self._moves if is_below(path, move.source)), None)

    def moved_by(self, path: str) -> MoveSettings | None:
        """The move whose destination is the longest that is a parent of `path`."""
        found = [move for move in self._moves if is_below(path, move.destination)]
        return max(found, key=lambda move: len(move.destination), default=None)

    def matches(self, path: str, original: str = "") -> bool:
        """Whether a move wants the file at `path`, or a task the one uploaded as `original`."""
        return self.move_for(path) is not None or bool(self.tasks_for(original or path))

    def tasks_for(self, path: str) -> list[TaskSettings]:
        """Every task that wants the file uploaded as `path`, in file order: the first one wins."""
        return [task for task, regexes in self._tasks if any(r.match(path) for r in regexes)]


def fill(
    task: TaskSettings,
    *,
    path: str,
    original: str,
    watch: str,
    user: str,
    client: str,
    protocol: str,
    size: int,
) -> Task:
    """The task of one upload: every placeholder in every string of its arguments filled in.

    `path` is where the file lies now, after a move, and what `{name}`, `{stem}`, `{suffix}` and
    `{directory}` are taken from. What is filled in is not looked at for placeholders again.
    """
    directory, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    values = {
        "path": path,
        "original": original,
        "name": name,
        "stem": stem,
        "suffix": suffix,
        "directory": directory,
        "watch": watch,
        "user": user,
        "client": client,
        "protocol": protocol,
        "size": str(size),
    }
    return Task(
        section=task.name,
        broker=task.broker,
        name=task.task,
        args=_filled(task.args, values),
        kwargs=_filled(task.kwargs, values),
        options=dict(task.options),
    )


def faults(arguments: Any) -> Iterator[str]:
    """What in the strings of `arguments` cannot be filled: `{unknown}`, a lone `{` or `}`."""
    if isinstance(arguments, str):
        for match in _BRACES.finditer(arguments):
            if match[0] not in ("{{", "}}") and match[1] not in PLACEHOLDERS:
                yield match[0]
    elif isinstance(arguments, list):
        for item in arguments:
            yield from faults(item)
    elif isinstance(arguments, dict):
        yield from faults(list(arguments.values()))


def _filled(arguments: Any, values: dict[str, str]) -> Any:
    if isinstance(arguments, str):
        return _BRACES.sub(lambda m: m[0][0] if m[1] is None else values[m[1]], arguments)
    if isinstance(arguments, list):
        return [_filled(item, values) for item in arguments]
    if isinstance(arguments, dict):
        return {key: _filled(item, values) for key, item in arguments.items()}
    return arguments


def _any_of(patterns: Iterable[str]) -> Match:
    """Compile patterns into one, which matches what any of them does."""
    return re.compile("|".join(map(_translated, patterns))).match


def compiled(pattern: str, ignore_case: bool = False) -> re.Pattern[str]:
    """A pattern of fnmatch(3)'s kind; it may come from anyone."""
    return re.compile(_translated(pattern), re.IGNORECASE if ignore_case else re.NOFLAG)


def _translated(pattern: str) -> str:
    # translate() looks for the end of each [ up to the pattern's: 100,000 of them take minutes.
    end = pattern.rfind("]") + 1
    # It sets (?s): names may hold newlines.
    return fnmatch.translate(pattern[:end] + pattern[end:].replace("[", "[[]"))
