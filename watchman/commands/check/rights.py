"""What is found of a directory: whether we have the rights that we need, and FTP users theirs."""

import os
import stat
from pathlib import Path

from watchman.commands.check.findings import Finding, error, ok
from watchman.uploads.rights import complaint


def directory(subject: str, path: str, rights: int) -> Finding | None:
    """Whether a path is a directory that grants us rights; None where there is nothing yet."""
    is_directory = os.path.isdir(path)
    if text := complaint(path, rights if is_directory else 0):
        return error(subject, text)
    if is_directory:
        return ok(subject, path)
    return error(subject, f"{path!r} is not a directory") if os.path.lexists(path) else None


def closed(path: str) -> list[str]:
    """Return what FTP users cannot pass on their way into a directory, the innermost first."""
    return [
        str(one)
        for one in (Path(path), *Path(path).parents)
        if os.path.isdir(one) and not one.stat().st_mode & stat.S_IXOTH
    ]
