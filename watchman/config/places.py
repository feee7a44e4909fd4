"""Finds the watch that a path is in, however the path is written."""

from __future__ import annotations

import os
from collections.abc import Iterable

from watchman.config.rules import Rules
from watchman.config.settings import WatchSettings
from watchman.uploads.beneath import canonical

#: A watch, and the path of a file below it.
Place = tuple[WatchSettings, str]


def locate(rules: Rules, watches: Iterable[WatchSettings], path: str) -> Place | None:
    """Return the watch that owns a path, and the sub-path there; None if there is none.

    The path may have `..` and symlinked directories in it, see `canonical`.
    """
    return rules.locate(canonical(path, (watch.path for watch in watches)))


def why_nowhere(watches: Iterable[WatchSettings], path: str) -> str:
    """Return a message that says why no watch owns a path."""
    real, roots = os.path.realpath(path), [(watch.name, watch.path) for watch in watches]
    for name, root in roots:
        if real == os.path.realpath(root):
            return f"it is the directory of [watch:{name}] itself, not a file in it"
    return f"it is below no watch. The watches are: {', '.join(root for _, root in roots)}"
