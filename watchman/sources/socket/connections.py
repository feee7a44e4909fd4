"""All connections: accepts peers, waits for their events, and closes some to make room."""

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

#: Peers that may be connected at once, and never more than half of our file descriptors: the rest
#: of the daemon needs the others.
CONNECTIONS = 1024

#: Peers accepted in one turn, before those that are connected already are served.
ACCEPT_LIMIT = 64


class Connections(dict[Connection, int]):
    """The open connections, each with the selector's events that are waited for.

    Only the listener's thread uses it, except for `rouse`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._limit = min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        #: Guards `_wake`, to which any thread writes. If it were closed at that moment, its number
        #: could already belong to another file.
        self._wake_lock = threading.Lock()
        self._wake = -1

    def open(self) -> None:
        """Make the socket; peers can connect on return. Raises SocketUnavailable."""
        self._server = SocketFile(self._path)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        logger.info("Listening on %r.", self._path)

    def refuse(self) -> None:
        """Accept no more peers, and remove the socket."""
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
        """End the current wait, or else the next one; does nothing once closed. For any thread."""
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def wait(self, timeout: float) -> Iterator[tuple[Connection | None, int]]:
        """Wait until there is something to do. Yield each connection that is ready, and its events.

        None instead of a connection says that peers can be accepted.
        """
        # epoll_wait(2) reports those first that were ready first, so nobody is passed over.
        for key, events in self._selector.select(timeout if self else None):
            if key.fileobj is self._server:
                yield None, events
            elif key.fileobj == self._wake:
                os.eventfd_read(self._wake)
            elif key.data in self:  # it may have been closed in this turn, to make room
                yield key.data, events

    def accept(self) -> Iterator[Connection]:
        """Accept peers that wait."""
        for _ in range(ACCEPT_LIMIT):
            try:
                connected, _address = self._server.get_request()
            except BlockingIOError:
                return
            except OSError as error:
                # accept(2) also returns errors of a connection that broke while it waited. Those
                # are no concern of ours.
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
        """Wait for these events of the selector from now on; 0 for none."""
        known = self[connection]
        if events == known:
            return
        # With a mask of 0 epoll_ctl(2) would still report EPOLLHUP, again and again.
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
        connection.close()

    def _displace(self) -> None:
        """Close the oldest idle connection of the user who has most of them."""
        if not self:
            time.sleep(0.1)  # else the loop would spin, for the peer that waits stays ready
            return
        users = Counter(connection.peer.uid for connection in self)
        [(greediest, _)] = users.most_common(1)
        victim = min(
            (one for one in self if one.peer.uid == greediest),
            key=lambda one: (bool(one.pending), one.progress),
        )
        logger.debug("Closing a connection of uid %d to make room.", greediest)
        self.drop(victim)
