"""inotify through pyinotify's system calls, without the parts of it that lose or delay events."""

from __future__ import annotations

import os
import select
import struct
import sys
import threading
from typing import Any

import pyinotify

from watchman.errors import InotifyUnavailable

# On import pyinotify gives its logger a handler for stderr and a level. Its records also propagate
# to the root logger, so every line would be written twice.
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

#: The events that we ask for. The kernel's queue holds only 16,384 of them, see
#: fs.inotify.max_queued_events in inotify(7), so we ask for nothing that we do not use. IGNORED and
#: UNMOUNT come unasked when a directory is deleted or unmounted. IN_DONT_FOLLOW is not needed: we
#: watch descriptors, which were opened with O_NOFOLLOW.
MASK: int = CLOSE_WRITE | CREATE | MOVED_FROM | MOVED_TO | MOVE_SELF | pyinotify.IN_ONLYDIR

#: Bytes per read(2): some 2,000 events, a few milliseconds of work.
READ_SIZE = 65536

#: struct inotify_event of inotify(7), without the name: wd, mask, cookie, length of the name.
_HEADER = struct.Struct("iIII")
_ENCODING = sys.getfilesystemencoding()
_ERRORS = sys.getfilesystemencodeerrors()


#: An inotify event: watch descriptor, mask, cookie, and the name as from `os.fsdecode`, which is
#: empty if the event is about the directory itself. A plain tuple, because one is made of every
#: event.
Event = tuple[int, int, int, str]


class _Calls(pyinotify._CtypesLibcINotifyWrapper):  # type: ignore[misc]
    """pyinotify's system calls, changed to take paths in bytes and to make no inheritable fd.

    pyinotify encodes paths strictly, so that it cannot watch a name that is not UTF-8.
    """

    def _inotify_init(self) -> int:
        flags = os.O_CLOEXEC | os.O_NONBLOCK  # IN_CLOEXEC and IN_NONBLOCK are the same bits
        return int(self._libc.inotify_init1(flags))

    def inotify_add_watch(self, fd: int, pathname: bytes, mask: int) -> int:
        return int(self._libc.inotify_add_watch(fd, pathname, mask))


class Inotify:
    """One inotify instance. Its watches are set on open directories, never on paths.

    pyinotify's Notifier and WatchManager are not used, for three reasons. They decode names
    strictly, and one name that is not UTF-8 loses the rest of a read. They format every event for a
    debug log, which took half of all CPU time. They search all watches for each new directory.
    """

    def __init__(self) -> None:
        self._calls: Any = _Calls()
        self._fd = self._wake = -1
        self._poll = select.poll()
        #: Guards `_wake`, to which any thread writes. If it were closed at that moment, its number
        #: could already belong to another file.
        self._wake_lock = threading.Lock()

    def open(self, beside: int = -1) -> None:
        """Make the instance; raises InotifyUnavailable.

        `beside` is another descriptor, which `wait` also polls, for POLLPRI.
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
        """Close the instance, if it is open. Nobody may be in `wait`."""
        with self._wake_lock:
            for fd in (self._fd, self._wake):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._wake = -1

    def wait(self, timeout: float) -> bool:
        """Wait for events, for a `wake`, or for `timeout` seconds at most.

        Return whether the descriptor `beside` was ready. Its readiness is reported once.
        """
        is_beside = False
        for fd, _ in self._poll.poll(1000 * timeout):
            if fd == self._wake:
                os.eventfd_read(fd)
            is_beside |= fd not in (self._wake, self._fd)
        return is_beside

    def wake(self) -> None:
        """End the current wait, or else the next one; does nothing once closed. For any thread."""
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def watch(self, directory: int, mask: int = MASK) -> int:
        """Watch an open directory and return the watch descriptor: one inode always gets the same.

        Raises OSError.
        """
        # /proc leads to the open directory itself: nobody can swap a component of its path for a
        # symlink, and the path may be longer than PATH_MAX.
        wd: int = self._calls.inotify_add_watch(self._fd, b"/proc/self/fd/%d" % directory, mask)
        if wd < 0:
            error = self._calls.get_errno()
            raise OSError(error, os.strerror(error))
        return wd

    def unwatch(self, wd: int) -> None:
        """Remove a watch. The kernel may have removed it already; that error is ignored."""
        self._calls.inotify_rm_watch(self._fd, wd)

    def read(self) -> list[Event]:
        """Return the events that wait, in order, at most `READ_SIZE` bytes. Never blocks."""
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
