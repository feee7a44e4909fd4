"""Which directories are mount points, and which of them have changed."""

from __future__ import annotations

import os
import re

#: The mounts of our namespace, see proc(5). poll(2) reports POLLPRI on it when they change.
MOUNTINFO = "/proc/self/mountinfo"

#: The kernel writes blanks and backslashes in a path as octal numbers, see proc(5).
_ESCAPE = re.compile(rb"\\(\d{3})")


class MountPoints:
    """The mounts that this process sees.

    inotify does not help here. It sends no event for a new mount. It sends UNMOUNT only when the
    filesystem is not mounted anywhere else.
    """

    def __init__(self) -> None:
        self._fd = -1
        #: By mount point, what is mounted there: mount id, device and root, the uppermost last.
        self._known: dict[str, list[bytes]] = {}

    def open(self) -> int:
        """Read the mounts, and return a descriptor on which poll(2) reports their changes."""
        self._fd = os.open(MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
        self._known = self._read()
        return self._fd

    def changed(self) -> list[str]:
        """Return the mount points where something was mounted or unmounted since the last call.

        A directory comes before what is below it.
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
