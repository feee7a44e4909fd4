"""inotify by way of pyinotify, without what would lose or delay events there."""

from __future__ import annotations

import os
import select
import struct
import sys
import threading
from typing import Any

import pyinotify

from watchman.errors import InotifyUnavailable

# pyinotify brings its own stderr handler and level, and propagates as well: every line twice.
pyinotify.log.handlers.clear()
pyinotify.log.setLevel("NOTSET")

CLOSE_WRITE: int = pyinotify.IN_CLOSE_WRITE
CREATE: int = pyinotify.IN_CREATE
MODIFY: int = pyinotify.IN_MODIFY
MOVED_FROM: int = pyinotify.IN_MOVED_FROM
MOVED_TO: int = pyinotify.IN_MOVED_TO
MOVE_SELF: int = pyinotify.IN_MOVE_SELF
IGNORED: int = pyinotify.IN_IGNORED
UNMOUNT: int = pyinotify.IN_UNMOUNT
OVERFLOW: int = pyinotify.IN_Q_OVERFLOW
ISDIR: int = pyinotify.IN_ISDIR

#: What we ask for. The kernel's queue is short, so nothing is in it that we would not use: a
#: directory that is deleted or unmounted sends IGNORED and UNMOUNT unasked. IN_DONT_FOLLOW has no
#: place here: a descriptor is watched, and it was opened with O_NOFOLLOW.
MASK: int = CLOSE_WRITE | CREATE | MOVED_FROM | MOVED_TO | MOVE_SELF | pyinotify.IN_ONLYDIR

#: Bytes per read(2): some 2,000 events, a few milliseconds of work.
READ_SIZE = 65536

_HEADER = struct.Struct("iIII")
_ENCODING = sys.getfilesystemencoding()
_ERRORS = sys.getfilesystemencodeerrors()


#: An inotify event: watch descriptor, mask, cookie, and name as from `os.fsdecode`, empty for the
#: directory itself. A plain tuple, for there are many.
Event = tuple[int, int, int, str]


class _Calls(pyinotify._CtypesLibcINotifyWrapper):  # type: ignore[misc]
    """pyinotify's system calls, with paths in bytes and a descriptor that no child inherits."""

    def _inotify_init(self) -> int:
        flags = os.O_CLOEXEC | os.O_NONBLOCK  # IN_CLOEXEC and IN_NONBLOCK are the same bits
        return int(self._libc.inotify_init1(flags))

    def inotify_add_watch(self, fd: int, pathname: bytes, mask: int) -> int:
        return int(self._libc.inotify_add_watch(fd, pathname, mask))


class Inotify:
    """One inotify instance. Its watches are set on open directories, never on paths.

    pyinotify's Notifier and WatchManager are left aside: they decode strictly, format every event
    for a debug log and search all watches for each new one.
    """

    def __init__(self) -> None:
        self._calls: Any = _Calls()
        self._fd = self._wake = -1
        self._poll = select.poll()
        #: Guards `_wake`, which any thread writes to, against being closed and used again.
        self._wake_lock = threading.Lock()

    def open(self, beside: int = -1) -> None:
        """Make the instance; raises InotifyUnavailable. `beside` is a descriptor that is waited for
        as well, for POLLPRI.
        """
        if not self._calls.init():
            raise InotifyUnavailable("The C library has no inotify.")
        fd = self._calls.inotify_init()
        if fd < 0:
            raise InotifyUnavailable(
                f"inotify refused: {os.strerror(self._calls.get_errno())}."
                " If too many programs use it, raise sysctl fs.inotify.max_user_instances."
            )
        self._fd = fd
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for one in (self._fd, self._wake):
            self._poll.register(one, select.POLLIN)
        if beside >= 0:
            self._poll.register(beside, select.POLLPRI)

    def close(self) -> None:
        """Close it, unless it is; nobody may be waiting."""
        with self._wake_lock:
            for fd in (self._fd, self._wake):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._wake = -1

    def wait(self, timeout: float) -> bool:
        """Return when there are events, after `timeout` seconds, or at once when woken before.

        True: what is waited for beside has something to tell. It is told once.
        """
        is_beside = False
        for fd, _ in self._poll.poll(1000 * timeout):
            if fd == self._wake:
                os.eventfd_read(fd)
            is_beside |= fd not in (self._wake, self._fd)
        return is_beside

    def wake(self) -> None:
        """End the wait that is, or else the next one, if it is open; from any thread."""
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def watch(self, directory: int, mask: int = MASK) -> int:
        """Watch an open directory; the watch descriptor, the same for the same inode."""
        # By way of the descriptor no component can be swapped for a symlink, and any depth goes.
        wd: int = self._calls.inotify_add_watch(self._fd, b"/proc/self/fd/%d" % directory, mask)
        if wd < 0:
            error = self._calls.get_errno()
            raise OSError(error, os.strerror(error))
        return wd

    def unwatch(self, wd: int) -> None:
        """Remove a watch; one that the kernel removed already does no harm."""
        self._calls.inotify_rm_watch(self._fd, wd)

    def read(self) -> list[Event]:
        """What has happened, in order, without waiting."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return []
        events = []
        position, end = 0, len(data)
        while position < end:
            wd, mask, cookie, length = _HEADER.unpack_from(data, position)
            name = position + _HEADER.size
            position = name + length
            text = data[name:position].rstrip(b"\0").decode(_ENCODING, _ERRORS)
            events.append((wd, mask, cookie, text))
        return events
