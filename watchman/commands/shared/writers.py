"""Which programs have files open for writing, from /proc. Only root sees programs of others."""

import contextlib
import os
import pwd
from collections.abc import Iterable, Iterator
from typing import Any

#: A program that has a file open: its `pid`, its name as `program`, and its `user`.
Writer = dict[str, Any]


def writers(places: Iterable[str]) -> dict[str, list[Writer]]:
    """Return the programs for each file that is one of `places` or lies below one."""
    real = {os.path.realpath(place): place for place in places}
    found: dict[str, list[Writer]] = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # the process has ended, or is another user's
            for path in set(_opened_by(pid, real)):
                place = _place_of(path, real) or ""
                below = path[len(place) :].lstrip("/")
                # Named as in `places`, which may lead over a symlink: the daemon names it so too.
                name = os.path.join(real[place], below) if below else real[place]
                found.setdefault(name, []).append(_writer(pid))
    return found


def _opened_by(pid: str, places: Iterable[str]) -> Iterator[str]:
    """Yield the paths that a process has open for writing at or below `places`."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            path = os.readlink(f"/proc/{pid}/fd/{fd}")
            # If the file was deleted, the link has another name, with ` (deleted)`, see proc(5).
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
    # Not the owner of /proc/PID: that is root if the program has changed its user, as ProFTPD's
    # sessions do.
    user = fields["Uid"].split()[1]
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(int(user)).pw_name
    return {"pid": int(pid), "program": fields["Name"], "user": user}


def _fields(place: str) -> dict[str, str]:
    """Return the fields of a file of /proc, by name."""
    with open(place, encoding="utf-8", errors="backslashreplace") as lines:
        return dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)
