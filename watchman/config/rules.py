"""Which watch, move and task a path falls under. Pure: only names are looked at, never files."""

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

#: Paths of which is remembered what was found of them: of one upload it is asked several times.
PATHS = 4_096

#: Directories of a watch of which is remembered whether a name on the way there is excluded.
DIRECTORIES = 4_096

#: Patterns that are compiled as one.
TOGETHER = 50

#: What of a pattern stands before the text that it ends with.
_END = re.compile(r".*[*?\[\]]", re.DOTALL)

T = TypeVar("T")

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Rules:
    """The settings' patterns, compiled. All parts go by the same object, any thread."""

    def __init__(self, settings: Settings) -> None:
        self.change(settings)

    def change(self, settings: Settings) -> None:
        """Go by other settings from now on."""
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
        """All of them, the inner before those that they lie in."""
        return sorted(self._watches.values(), key=lambda watch: len(watch.path), reverse=True)

    def locate(self, path: str) -> tuple[WatchSettings, str] | None:
        """The watch that owns `path`, and where below it; None for a path below none.

        With nested watches the inner one owns its directory. A path with `..` in it is below none:
        what that means depends on symlinks, so it has to be resolved before.
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
        """The watch that owns the files in a directory, and what their sub-paths begin with."""
        plain = _plain(directory)
        watch = _nearest(self._watches, plain) if plain is not None else None
        if plain is None or watch is None:
            return None
        above = plain[len(watch.path.rstrip("/")) + 1 :]
        return watch, f"{above}/" if above else ""

    def excluded(self, watch: WatchSettings, subpath: str) -> str | None:
        """What keeps `subpath` from being an upload of `watch`, if anything: a pattern, or a move
        whose destination it lies below.
        """
        if self._destinations:
            move = _nearest(self._destinations, below(watch.path, subpath))
            if move is not None and is_below(move.destination, watch.path):
                return f"[move:{move.name}], whose destination it lies below"
        return self._excludes[watch.name].first(subpath)

    def move_for(self, path: str) -> MoveSettings | None:
        """The move whose source is the longest that is a parent of `path`."""
        return _nearest(self._moves, path)

    def moved_by(self, path: str) -> MoveSettings | None:
        """The move whose destination is the longest that is a parent of `path`."""
        return _nearest(self._destinations, path)

    def matches(self, path: str, original: str = "") -> bool:
        """Whether a move wants the file at `path`, or a task the one uploaded as `original`."""
        return self.move_for(path) is not None or self.task_for(original or path) is not None

    def task_for(self, path: str) -> TaskSettings | None:
        """The first task, in file order, that wants the file uploaded as `path`."""
        return self._first_task(path)

    def tasks_for(self, path: str) -> list[TaskSettings]:
        """Every task that wants the file uploaded as `path`, in file order: the first one wins."""
        return [
            task
            for task in self._tasks
            if any(compiled(pattern, task.ignore_case).match(path) for pattern in task.patterns)
        ]


class Patterns(Generic[T]):
    """Patterns of fnmatch(3)'s kind, each with what it stands for, asked as few as can be.

    Most have a directory's name in them, or end with some text, that a path must have for them to
    match. Those that it has nothing of are not asked.
    """

    def __init__(self, patterns: Iterable[tuple[str, bool, T]]) -> None:
        """Each is a pattern, whether it ignores case, and what it stands for."""
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
        """Return what the first pattern stands for that matches, None if none does."""
        found = -1
        for candidate in self._candidates(text):
            if match := candidate.match(text):
                # The group that was closed last is the outermost: the alternative itself.
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
    """Compile alternatives, some at once: the time that each takes grows with their number."""
    starts = range(0, len(alternatives), TOGETHER)
    return [re.compile("|".join(alternatives[at : at + TOGETHER])) for at in starts]


def _directory_in(pattern: str) -> str:
    """Return the longest name of a directory that a pattern spells out, "" if it has none."""
    names = [] if "[" in pattern else pattern.split("/")[1:-1]
    return max((name for name in names if not _END.search(name)), key=len, default="")


class Excludes:
    """What is excluded in a watch by its patterns: of names, and of sub-paths with a slash."""

    def __init__(self, watch: WatchSettings) -> None:
        patterns = (*watch.exclude, *(DEFAULT_EXCLUDES if watch.exclude_defaults else ()), HIDDEN)
        self._of_names = Patterns((one, False, one) for one in patterns if "/" not in one)
        self._of_paths = Patterns((one, False, one) for one in patterns if "/" in one)
        #: The watcher asks, and then the judge; and files come by the directory.
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
    """Return an absolute path without parts that mean nothing, "" for the root; None for others."""
    parts = path.split("/")
    if parts[0] or ".." in parts:
        return None
    return "".join(f"/{part}" for part in parts if part not in ("", "."))


def _nearest(by_path: Mapping[str, T], path: str) -> T | None:
    """Return what the longest path has that is `path` or a parent of it."""
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
    """The task of one upload: every placeholder in every string of its arguments filled in.

    `path` is where the file lies now, after a move, and what `{name}`, `{stem}`, `{suffix}` and
    `{directory}` are taken from. What is filled in is not looked at for placeholders again.
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
    """What placeholders stand for; the parts of a path are made when the first is asked for."""

    def __missing__(self, placeholder: str) -> str:
        directory, name = os.path.split(self["path"])
        stem, suffix = os.path.splitext(name)
        self.update(directory=directory, name=name, stem=stem, suffix=suffix)
        return self.get(placeholder, "")


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
    if arguments == "{path}":  # what nearly all tasks are given
        return values["path"]
    if isinstance(arguments, str):
        return _BRACES.sub(lambda m: m[0][0] if m[1] is None else values[m[1]], arguments)
    if isinstance(arguments, list):
        return [_filled(item, values) for item in arguments]
    if isinstance(arguments, dict):
        return {key: _filled(item, values) for key, item in arguments.items()}
    return arguments


def compiled(pattern: str, ignore_case: bool = False) -> re.Pattern[str]:
    """A pattern of fnmatch(3)'s kind; it may come from anyone."""
    return re.compile(_translated(pattern), re.IGNORECASE if ignore_case else re.NOFLAG)


def _translated(pattern: str) -> str:
    # translate() looks for the end of each [ up to the pattern's: 100,000 of them take minutes.
    end = pattern.rfind("]") + 1
    # It sets (?s): names may hold newlines.
    return fnmatch.translate(pattern[:end] + pattern[end:].replace("[", "[[]"))
