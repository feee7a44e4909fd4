"""Which watch a path is in, however it is spelled."""

from __future__ import annotations

import os
from collections.abc import Iterable

from watchman.config.rules import Rules
from watchman.config.settings import WatchSettings
from watchman.uploads.beneath import canonical

#: A watch, and the path of a file below it.
Place = tuple[WatchSettings, str]


def locate(rules: Rules, watches: Iterable[WatchSettings], path: str) -> Place | None:
    """Find the watch that owns a path, in whatever spelling, through symlinks, it is given."""
    return rules.locate(canonical(path, (watch.path for watch in watches)))


def why_nowhere(watches: Iterable[WatchSettings], path: str) -> str:
    """Say why a path has no place."""
    real, roots = os.path.realpath(path), [(watch.name, watch.path) for watch in watches]
    for name, root in roots:
        if real == os.path.realpath(root):
            return f"it is [watch:{name}] itself, whose files are the uploads"
    return f"it is below no watch. There are: {', '.join(root for _, root in roots)}"
