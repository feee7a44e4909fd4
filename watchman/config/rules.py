"""Finds the watch, move and task that a path belongs to, by the path alone. Reads no file."""

import fnmatch
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from watchman.config.moves import HIDDEN
from watchman.config.settings import (
    DEFAULT_EXCLUDES,
    MoveSettings,
    Settings,
    TaskSettings,
    WatchSettings,
)
from watchman.uploads.beneath import below, is_below
from watchman.uploads.upload import Task

#: The names that may stand in `{...}` inside the strings of a task's `args` and `kwargs`.
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

#: Paths whose results are remembered, because one upload asks for the same several times.
PATHS = 4_096

#: Directories whose results are remembered, because many files come in the same one.
DIRECTORIES = 4_096

#: Patterns that are compiled into one expression. Fifty together may take a third of the time that
#: they take one by one. In an expression of a thousand, each may take ten times as long.
TOGETHER = 50

#: The part of a pattern before the plain text that it ends with.
_END = re.compile(r".*[*?\[\]]", re.DOTALL)

T = TypeVar("T")

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Rules:
    """The patterns of the settings, compiled. All parts share this object; any thread may ask."""

    def __init__(self, settings: Settings) -> None:
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Use other settings from now on."""
        self._watches = {watch.path.rstrip("/"): watch for watch in settings.watches.values()}
        self._locate = functools.lru_cache(PATHS)(self._find_watch)
        self._of_directory = functools.lru_cache(DIRECTORIES)(self._find_directory)
        self._excludes = {watch.name: Excludes(watch) for watch in settings.watches.values()}
        self._moves = {move.source.rstrip("/"): move for move in settings.moves.values()}
        self._destinations = {
            move.destination.rstrip("/"): move for move in reversed([*settings.moves.values()])
        }
        self._tasks = settings.tasks
        patterns = Patterns(
            (pattern, task.ignore_case, task)
            for task in settings.tasks
            for pattern in task.patterns
        )
        self._first_task = functools.lru_cache(PATHS)(patterns.first)

    def watches(self) -> list[WatchSettings]:
        """Return all watches, each before the one that it lies in."""
        return sorted(self._watches.values(), key=lambda watch: len(watch.path), reverse=True)

    def locate(self, path: str) -> tuple[WatchSettings, str] | None:
        """Return the watch that owns `path`, and the sub-path there; None if no watch owns it.

        Of nested watches the inner one owns its directory. No watch owns a path with `..` in it,
        because symlinks decide what `..` means: the caller has to resolve it before.
        """
        return self._locate(path)

    def _find_watch(self, path: str) -> tuple[WatchSettings, str] | None:
        directory, slash, name = path.rpartition("/")
        if not slash or name in ("", ".", ".."):
            plain = _plain(path)
            return self._find_watch(plain) if plain else None
        found = self._of_directory(directory)
        return (found[0], found[1] + name) if found is not None else None

    def _find_directory(self, directory: str) -> tuple[WatchSettings, str] | None:
        """Return the watch that owns a directory's files, and what their sub-paths begin with."""
        plain = _plain(directory)
        watch = _nearest(self._watches, plain) if plain is not None else None
        if plain is None or watch is None:
            return None
        above = plain[len(watch.path.rstrip("/")) + 1 :]
        return watch, f"{above}/" if above else ""

    def excluded(self, watch: WatchSettings, subpath: str) -> str | None:
        """Return what keeps `subpath` from being an upload of `watch`, None if nothing does.

        It is a pattern, or says which move has its destination above `subpath`.
        """
        if self._destinations:
            move = _nearest(self._destinations, below(watch.path, subpath))
            if move is not None and is_below(move.destination, watch.path):
                return f"[move:{move.name}], whose destination it lies below"
        return self._excludes[watch.name].first(subpath)

    def move_for(self, path: str) -> MoveSettings | None:
        """Return the move whose source is above `path`; of several, the innermost one."""
        return _nearest(self._moves, path)

    def moved_by(self, path: str) -> MoveSettings | None:
        """Return the move whose destination is above `path`; of several, the innermost one."""
        return _nearest(self._destinations, path)

    def matches(self, path: str, original: str = "") -> bool:
        """Whether the file at `path` has a move, or has a task if it was uploaded as `original`."""
        return self.move_for(path) is not None or self.task_for(original or path) is not None

    def task_for(self, path: str) -> TaskSettings | None:
        """Return the task for the file uploaded as `path`: the first in the INI file to match."""
        return self._first_task(path)

    def tasks_for(self, path: str) -> list[TaskSettings]:
        """Return every task that matches the file uploaded as `path`. Only the first is sent."""
        return [
            task
            for task in self._tasks
            if any(compiled(pattern, task.ignore_case).match(path) for pattern in task.patterns)
        ]


class Patterns(Generic[T]):
    """Patterns as of fnmatch(3), each with a meaning.

    Most patterns name a directory, or end with plain text. A pattern is not tried on a path without
    that directory or that end, so a thousand task sections cost what ten do.
    """

    def __init__(self, patterns: Iterable[tuple[str, bool, T]]) -> None:
        """Each of `patterns` is a pattern, whether it ignores case, and its meaning."""
        self._meanings: list[T] = []
        by_name: dict[str, list[str]] = {}
        by_end: dict[str, list[str]] = {}
        for number, (pattern, ignore_case, meaning) in enumerate(patterns):
            self._meanings.append(meaning)
            flags = "(?i:" if ignore_case else "(?:"
            alternative = f"(?P<p{number}>{flags}{_translated(pattern)}))"
            if not ignore_case and (name := _directory_in(pattern)):
                by_name.setdefault(name, []).append(alternative)
            else:
                end = "" if ignore_case else _END.sub("", pattern)
                by_end.setdefault(end, []).append(alternative)
        self._by_name = {name: _any_of(some) for name, some in by_name.items()}
        self._by_end = {end: _any_of(some) for end, some in by_end.items()}
        self._lengths = sorted({len(end) for end in by_end})

    def first(self, text: str) -> T | None:
        """Return the meaning of the first pattern that matches, None if none does."""
        found = -1
        for candidate in self._candidates(text):
            if match := candidate.match(text):
                # `lastgroup` is the group that was closed last. That is the outermost one: the
                # alternative that matched.
                number = int((match.lastgroup or "")[1:])
                found = number if found < 0 else min(found, number)
        return self._meanings[found] if found >= 0 else None

    def _candidates(self, text: str) -> list[re.Pattern[str]]:
        candidates: list[re.Pattern[str]] = []
        for length in self._lengths:
            candidates += self._by_end.get(text[len(text) - length :] if length else "", ())
        if self._by_name:
            for name in set(text.split("/")):
                candidates += self._by_name.get(name, ())
        return candidates


def _any_of(alternatives: list[str]) -> list[re.Pattern[str]]:
    """Compile alternatives, TOGETHER at a time."""
    starts = range(0, len(alternatives), TOGETHER)
    return [re.compile("|".join(alternatives[at : at + TOGETHER])) for at in starts]


def _directory_in(pattern: str) -> str:
    """Return the longest name of a directory in a pattern that has no wildcard, "" if none has."""
    names = [] if "[" in pattern else pattern.split("/")[1:-1]
    return max((name for name in names if not _END.search(name)), key=len, default="")


class Excludes:
    """The exclude patterns of a watch. One with a slash is for sub-paths, any other for names."""

    def __init__(self, watch: WatchSettings) -> None:
        patterns = (*watch.exclude, *(DEFAULT_EXCLUDES if watch.exclude_defaults else ()), HIDDEN)
        self._of_names = Patterns((one, False, one) for one in patterns if "/" not in one)
        self._of_paths = Patterns((one, False, one) for one in patterns if "/" in one)
        #: Remembered, because first the watcher asks and then the judge. The results of directories
        #: are remembered too, because many files come in the same one.
        self.first = functools.lru_cache(PATHS)(self._first)
        self._of_directory = functools.lru_cache(DIRECTORIES)(self._first_of_names)

    def _first(self, subpath: str) -> str | None:
        """Return the pattern that excludes a file, if any does."""
        directory, _, name = subpath.rpartition("/")
        return (
            self._of_names.first(name)
            or self._of_directory(directory)
            or self._of_paths.first(subpath)
        )

    def _first_of_names(self, directory: str) -> str | None:
        names = dict.fromkeys(directory.split("/"))
        return next(filter(None, map(self._of_names.first, names)), None)


def _plain(path: str) -> str | None:
    """Return an absolute path without empty parts and `.`, "" for the root.

    None if the path is relative, or has `..` in it.
    """
    parts = path.split("/")
    if parts[0] or ".." in parts:
        return None
    return "".join(f"/{part}" for part in parts if part not in ("", "."))


def _nearest(by_path: Mapping[str, T], path: str) -> T | None:
    """Return the value of the longest path that is `path` or above it, None if there is none."""
    if not by_path:
        return None
    path = path.rstrip("/")
    while path not in by_path:
        if not path:
            return None
        path = path[: path.rfind("/")] if "/" in path else ""
    return by_path[path]


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
    """Return the task of one upload, with all placeholders in its arguments filled in.

    `path` is where the file is now, after a move. `{name}`, `{stem}`, `{suffix}` and `{directory}`
    are parts of it. If a text that is filled in has braces, it stays as it is.
    """
    values = _Values(
        path=path,
        original=original,
        watch=watch,
        user=user,
        client=client,
        protocol=protocol,
        size=str(size),
    )
    return Task(
        section=task.name,
        broker=task.broker,
        name=task.task,
        args=_filled(task.args, values),
        kwargs=_filled(task.kwargs, values),
        options=dict(task.options),
    )


class _Values(dict[str, str]):
    """The values of placeholders. The parts of the path are made when the first one is needed."""

    def __missing__(self, placeholder: str) -> str:
        directory, name = os.path.split(self["path"])
        stem, suffix = os.path.splitext(name)
        self.update(directory=directory, name=name, stem=stem, suffix=suffix)
        return self.get(placeholder, "")


def faults(arguments: Any) -> Iterator[str]:
    """Yield what cannot be filled in the strings of `arguments`: `{unknown}`, a lone `{` or `}`."""
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
    if arguments == "{path}":  # the argument of nearly all tasks
        return values["path"]
    if isinstance(arguments, str):
        return _BRACES.sub(lambda m: m[0][0] if m[1] is None else values[m[1]], arguments)
    if isinstance(arguments, list):
        return [_filled(item, values) for item in arguments]
    if isinstance(arguments, dict):
        return {key: _filled(item, values) for key, item in arguments.items()}
    return arguments


def compiled(pattern: str, ignore_case: bool = False) -> re.Pattern[str]:
    """Return a compiled pattern as of fnmatch(3).

    Anyone may have written it: `_translated` keeps it from taking minutes to compile.
    """
    return re.compile(_translated(pattern), re.IGNORECASE if ignore_case else re.NOFLAG)


def _translated(pattern: str) -> str:
    # For each [ translate() searches the rest of the pattern for a ]: 100,000 of them take minutes.
    # So those after the last ] are written as [[], which means the same.
    end = pattern.rfind("]") + 1
    # translate() sets the flag (?s), so that * matches newlines, which names may hold.
    return fnmatch.translate(pattern[:end] + pattern[end:].replace("[", "[[]"))
