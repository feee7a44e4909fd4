"""Who is connected: lets peers in, waits for what they do, makes room for others."""

import errno
import logging
import os
import resource
import selectors
import threading
import time
from collections import Counter
from collections.abc import Iterator

from watchman.sources.socket.connection import Connection
from watchman.sources.socket.socketfile import SocketFile

logger = logging.getLogger(__name__)

#: Peers at once, if the limit on file descriptors allows; half of those are left to the others.
CONNECTIONS = 1024

#: Peers let in before those that are in get their turn.
ACCEPT_LIMIT = 64


class Connections(dict[Connection, int]):
    """Who is in, each with the selector's events that it waits for. For the listener's thread, all
    but `rouse`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._limit = min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        #: Guards `_wake`, which any thread writes to, against being closed and used again.
        self._wake_lock = threading.Lock()
        self._wake = -1

    def open(self) -> None:
        """Have peers connect from now on; raises SocketUnavailable, which says what to do."""
        self._server = SocketFile(self._path)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        logger.info("Listening on %r.", self._path)

    def refuse(self) -> None:
        """Let nobody in any more."""
        if self._server.fileno() >= 0:
            self._selector.unregister(self._server)
            self._server.server_close()

    def close(self) -> None:
        self.refuse()
        for connection in list(self):
            self.drop(connection)
        self._selector.close()
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1

    def rouse(self) -> None:
        """End the wait that is, or else the next one, if it is open; from any thread."""
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def wait(self, timeout: float) -> Iterator[tuple[Connection | None, int]]:
        """Wait until there is something to do; yield who is ready and for which of the selector's
        events, None for those who are to be let in.
        """
        # In the order in which they became ready, see epoll(7).
        for key, events in self._selector.select(timeout if self else None):
            if key.fileobj is self._server:
                yield None, events
            elif key.fileobj == self._wake:
                os.eventfd_read(self._wake)
            elif key.data in self:  # not displaced in this very turn
                yield key.data, events

    def accept(self) -> Iterator[Connection]:
        """Let peers in."""
        for _ in range(ACCEPT_LIMIT):
            try:
                connected, _address = self._server.get_request()
            except BlockingIOError:
                return
            except OSError as error:
                # accept(2) also reports what happened to a peer that has left meanwhile.
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    logger.warning("No file descriptor is left for a peer: %s.", error.strerror)
                    self._displace()
                return
            if len(self) >= self._limit:
                self._displace()
            connected.setblocking(False)
            connection = Connection(connected, time.monotonic())
            self[connection] = 0
            yield connection

    def expect(self, connection: Connection, events: int) -> None:
        """Wait for these of the selector's events."""
        known = self[connection]
        if events == known:
            return
        # Not with a mask of 0: epoll would report a peer that hung up again and again.
        if not events:
            self._selector.unregister(connection.socket)
        elif not known:
            self._selector.register(connection.socket, events, connection)
        else:
            self._selector.modify(connection.socket, events, connection)
        self[connection] = events

    def drop(self, connection: Connection) -> None:
        if self.pop(connection, 0):
            self._selector.unregister(connection.socket)
        connection.socket.close()

    def _displace(self) -> None:
        """Close the oldest idle connection of the user who has most of them."""
        if not self:
            time.sleep(0.1)  # or the waiting peer would make the loop spin
            return
        users = Counter(connection.peer.uid for connection in self)
        [(greediest, _)] = users.most_common(1)
        victim = min(
            (one for one in self if one.peer.uid == greediest),
            key=lambda one: (bool(one.pending), one.progress),
        )
        logger.debug("Closing a connection of uid %d to make room.", greediest)
        self.drop(victim)
