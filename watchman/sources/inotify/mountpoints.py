"""Which directories are mount points, and word of those that come and go."""

from __future__ import annotations

import os
import re

#: Mounts of our namespace, see proc(5). poll(2) tells with POLLPRI that it has changed.
MOUNTINFO = "/proc/self/mountinfo"

_ESCAPE = re.compile(rb"\\(\d{3})")


class MountPoints:
    """The mounts that this process sees. No event of inotify tells of one that comes, nor of one
    that goes while its filesystem stays mounted elsewhere.
    """

    def __init__(self) -> None:
        self._fd = -1
        #: By mount point, the ids of what is mounted there, the outermost last.
        self._known: dict[str, list[bytes]] = {}

    def open(self) -> int:
        """Begin; return a descriptor that poll(2) reports POLLPRI for when mounts change."""
        self._fd = os.open(MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
        self._known = self._read()
        return self._fd

    def changed(self) -> list[str]:
        """Return the mount points where another filesystem is since the last call, or none any
        more; those further up first.
        """
        before, self._known = self._known, self._read()
        points = before.keys() | self._known.keys()
        return sorted(point for point in points if before.get(point) != self._known.get(point))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        with open(MOUNTINFO, "rb") as file:
            for line in file:
                number, _, device, root, point, _ = line.split(b" ", 5)
                name = os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), point))
                found.setdefault(name, []).append(b" ".join((number, device, root)))
        return found
