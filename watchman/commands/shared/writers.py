"""Which programs have files open for writing, as /proc says. Of others' programs only root sees."""

import contextlib
import os
import pwd
from collections.abc import Iterable, Iterator
from typing import Any

#: A program: its `pid`, its `program` and its `user`.
Writer = dict[str, Any]


def writers(places: Iterable[str]) -> dict[str, list[Writer]]:
    """Return the programs by file, of all files that are one of `places` or lie below it."""
    real = {os.path.realpath(place): place for place in places}
    found: dict[str, list[Writer]] = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            for path in set(_opened_by(pid, real)):
                place = _place_of(path, real) or ""
                below = path[len(place) :].lstrip("/")
                # As the daemon spells it, who may know the place by way of a symlink.
                name = os.path.join(real[place], below) if below else real[place]
                found.setdefault(name, []).append(_writer(pid))
    return found


def _opened_by(pid: str, places: Iterable[str]) -> Iterator[str]:
    """Yield what a process has open for writing below some places."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            path = os.readlink(f"/proc/{pid}/fd/{fd}")
            # Of a file that was deleted the link names another one, see proc(5).
            if _place_of(path, places) is not None and os.path.lexists(path):
                flags = int(_fields(f"/proc/{pid}/fdinfo/{fd}")["flags"], 8)
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    yield path


def _place_of(path: str, places: Iterable[str]) -> str | None:
    for place in places:
        if path == place or path.startswith(os.path.join(place, "")):
            return place
    return None


def _writer(pid: str) -> Writer:
    fields = _fields(f"/proc/{pid}/status")
    # The directory's owner is root where a program has changed its user, as ProFTPD's sessions.
    user = fields["Uid"].split()[1]
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(int(user)).pw_name
    return {"pid": int(pid), "program": fields["Name"], "user": user}


def _fields(place: str) -> dict[str, str]:
    """Return what a file of /proc tells, by name."""
    with open(place, encoding="utf-8", errors="backslashreplace") as lines:
        return dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)
