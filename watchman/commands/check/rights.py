"""Checks the rights on a path: whether we have those that we need, and FTP users theirs."""

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


def cannot_run(program: str) -> str:
    """Return why an FTP user cannot run a program, "" if he can."""
    if not os.path.isabs(program):
        return "is not an absolute path"
    for above in closed(os.path.dirname(os.path.realpath(program))):
        return f"cannot be reached by FTP users through {above}; chmod o+x {above}"
    try:
        mode = os.stat(program).st_mode
    except OSError as e:
        return f"cannot be run: {e.strerror}; install proftpd/watchman-hook there"
    if not stat.S_ISREG(mode):
        return "is not a file"
    if ~mode & (stat.S_IROTH | stat.S_IXOTH):
        return f"cannot be run by FTP users; chmod 755 {program}"
    if mode & stat.S_IWOTH:
        return f"may be changed by everybody; chmod 755 {program}"
    return ""
