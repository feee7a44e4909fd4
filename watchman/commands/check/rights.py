"""Checks a directory: whether we have the rights that we need, and whether FTP users may enter."""

import os
import stat
from pathlib import Path

from watchman.commands.check.findings import Finding, error, ok
from watchman.uploads.rights import complaint


def directory(subject: str, path: str, rights: int) -> Finding | None:
    """Return whether a path is a directory that grants us rights, None if nothing is there yet."""
    is_directory = os.path.isdir(path)
    if text := complaint(path, rights if is_directory else 0):
        return error(subject, text)
    if is_directory:
        return ok(subject, path)
    return error(subject, f"{path!r} is not a directory") if os.path.lexists(path) else None


def closed(path: str) -> list[str]:
    """Return a directory, and those above it, that FTP users cannot enter, the innermost first."""
    return [
        str(one)
        for one in (Path(path), *Path(path).parents)
        if os.path.isdir(one) and not one.stat().st_mode & stat.S_IXOTH
    ]
