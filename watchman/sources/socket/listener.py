"""Answers requests on the Unix socket: one thread for all peers, one more for queries."""

import errno
import json
import logging
import os
import queue
import resource
import selectors
import socketserver
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from watchman.errors import RequestRefused, WatchmanError
from watchman.sources.socket.connection import Connection, Due
from watchman.sources.socket.peers import Admins, Peer
from watchman.sources.socket.refused import Refused
from watchman.sources.socket.requests import Request
from watchman.sources.socket.socketfile import SocketFile
from watchman.sources.socket.wire import line
from watchman.uploads.session import may_be_of
from watchman.uploads.upload import Answer, Notification

logger = logging.getLogger(__name__)

Submit = Callable[[Notification, Callable[[Answer], None]], None]
Query = Callable[[str, dict[str, str]], Iterable[Mapping[str, Any] | None]]

#: Peers at once, if the limit on file descriptors allows; half of those are left to the others.
CONNECTIONS = 1024

#: Bytes, and seconds, after which a query's answer makes way for the next query's.
PART = 64 * 1024
TURN = 0.1

#: Peers let in before those that are in get their turn.
ACCEPT_LIMIT = 64

#: Words of one user that may wait for their answer, on all of his connections.
SHARE = 64

#: Connections of one user that are read from before the others get their turn.
READ_AT_ONCE = 8

#: Seconds between looks for peers that have had their time.
SWEEP = 1.0

#: Seconds that stop() leaves for answers that are owed.
STOP_GRACE = 1.0

INTERNAL_ERROR = line("ERROR", "an internal error of the daemon; its log says more")


class Listener:
    """The source behind watchman-send, and the queries of all commands.

    `submit` is called from the listener's thread, which waits while the dispatcher's inbox is
    full; its callback may be called from any thread, also after the end. `query` is called from
    a thread of its own, one at a time, and what it returns is iterated over there as the peer reads
    the answer: None says that there is nothing yet. A WatchmanError, or an OSError of a disk that
    cannot be read, becomes an ERROR answer.
    """

    def __init__(
        self, path: str, *, submit: Submit, query: Query, admins: Collection[str] = ()
    ) -> None:
        self._path = path
        self._submit = submit
        self._query = query
        self._admins = admins
        self._server: _Server | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Return once peers can connect; raises SocketUnavailable, which says what to do."""
        server = _Server(self._path, self._submit, self._query, Admins(self._admins))
        self._server = server
        self._threads = [
            threading.Thread(target=server.serve_forever, name="listener", daemon=True),
            threading.Thread(target=server.answer_queries, name="queries", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        logger.info("Listening on %r.", self._path)

    def stop(self) -> None:
        """Take no more requests; answers that are owed are sent if they come soon."""
        if self._server is not None:
            self._server.shutdown()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def admit(self, admins: Collection[str]) -> None:
        """Let others be the admins from now on; any thread."""
        self._admins = admins
        if self._server is not None:
            self._server.admins = Admins(admins)


class _Answer:
    """The answer to a query, made in parts. Only the queries' thread works on it."""

    def __init__(self, query: Query, request: Request, due: Due) -> None:
        self.due = due
        self._query = query
        self._request = request
        self._lines: Iterator[bytes] | None = None

    def part(self) -> tuple[bytes, bool]:
        """The next part, and whether it is the last."""
        text, until = bytearray(), time.monotonic() + TURN
        try:
            self._lines = self._lines or self._answer()
            for one in self._lines:
                text += one
                if len(text) >= PART or time.monotonic() > until:
                    return bytes(text), False
        except (WatchmanError, OSError) as refusal:
            text += line("ERROR", str(refusal))
        except Exception:
            logger.exception("Could not answer %s.", self._request.name)
            text += INTERNAL_ERROR
        return bytes(text), True

    def _answer(self) -> Iterator[bytes]:
        count = 0
        for one in self._query(self._request.name, dict(self._request.fields)):
            if one is not None:
                count += 1
            yield b"" if one is None else json.dumps(one).encode() + b"\n"
        yield line("OK", str(count))


class _Server(socketserver.UnixStreamServer):
    """socketserver's binding and accepting under a selector loop of our own.

    Its mix-ins make a thread or a process for each connection; here a peer that is slow or silent
    costs a file descriptor and delays nobody.
    """

    request_queue_size = 1024

    def __init__(self, path: str, submit: Submit, query: Query, admins: Admins) -> None:
        self._file = SocketFile(path)
        self._submit = submit
        self._query = query
        self.admins = admins
        self._refused = Refused()
        self._limit = min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        #: Each with the selector's events that it waits for.
        self._connections: dict[Connection, int] = {}
        #: By uid, how many words wait for their answer.
        self._owed: Counter[int] = Counter()
        #: By uid, who may have more to say once there is room: the next one first.
        self._starved: dict[int, OrderedDict[Connection, None]] = {}
        self._next_sweep = 0.0
        self._stopping = threading.Event()
        self._queries: queue.SimpleQueue[_Answer | None] = queue.SimpleQueue()
        #: Each with whoever knows what follows, if something does.
        self._answers: deque[tuple[Due, bytes, _Answer | None]] = deque()
        super().__init__(path, socketserver.BaseRequestHandler)
        self.socket.setblocking(False)
        #: Guards `_wake`, which any thread writes to, against being closed and used again.
        self._wake_lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.socket, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def server_bind(self) -> None:
        self._file.bind(self.socket)

    def server_close(self) -> None:
        self._file.remove()
        super().server_close()

    def shutdown(self) -> None:
        """Only signals, unlike socketserver's, which waits."""
        self._stopping.set()
        self._queries.put(None)
        self._rouse()

    def serve_forever(self, poll_interval: float = SWEEP) -> None:
        """The listener's thread."""
        try:
            while not self._stopping.is_set():
                self._turn(poll_interval if self._connections else None)
            self._finish(time.monotonic() + STOP_GRACE)
        except Exception:
            logger.critical("The listener has ended; no command is answered.", exc_info=True)
            raise
        finally:
            self._end()

    def answer_queries(self) -> None:
        """The queries' thread."""
        while (answer := self._queries.get()) is not None:
            text, is_last = answer.part()
            self._settle(answer.due, text, None if is_last else answer)

    def _turn(self, timeout: float | None) -> None:
        """Wait until there is something to do, and do it."""
        read: Counter[int] = Counter()
        # In the order in which they became ready, see epoll(7). Who is not read from now is ready
        # in the next turn as well.
        for key, events in self._selector.select(timeout):
            if key.fileobj is self.socket:
                self._accept()
            elif key.fileobj == self._wake:
                os.eventfd_read(self._wake)
            elif key.data in self._connections:  # not displaced in this very turn
                uid = key.data.peer.uid
                may_read = read[uid] < READ_AT_ONCE
                read[uid] += bool(events & selectors.EVENT_READ)
                if may_read or events & selectors.EVENT_WRITE:
                    receive = may_read and bool(events & selectors.EVENT_READ)
                    self._serve(key.data, receive=receive and self._has_share(uid))
        # Not those that come meanwhile: who asks again at each answer would keep the loop here.
        for _ in range(len(self._answers)):
            due, text, rest = self._answers.popleft()
            due.text, due.rest = text, rest
            peer = due.connection.peer
            if due.is_share:
                self._owed[peer.uid] -= 1
            if text.startswith(b"ERROR ") and peer not in self.admins:
                self._refused.tell(peer, text[6:-1].decode())
            if due.connection in self._connections:
                self._serve(due.connection)
        self._feed()
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP
            for connection in list(self._connections):
                connection.expire(now)
                self._serve(connection)

    def _feed(self) -> None:
        """Take more words of users who are owed few answers by now."""
        for uid, starved in list(self._starved.items()):
            while starved and self._has_share(uid):
                connection, _ = starved.popitem(last=False)
                if connection in self._connections:
                    self._serve(connection)
            if not starved:
                del self._starved[uid]
                self._owed += Counter()  # which drops those who are owed none

    def _has_share(self, uid: int) -> bool:
        return self._owed[uid] < SHARE

    def _accept(self) -> None:
        for _ in range(ACCEPT_LIMIT):
            try:
                connected, _address = self.get_request()
            except BlockingIOError:
                return
            except OSError as error:
                # accept(2) also reports what happened to a peer that has left meanwhile.
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    logger.warning("No file descriptor is left for a peer: %s.", error.strerror)
                    self._displace()
                return
            if len(self._connections) >= self._limit:
                self._displace()
            connected.setblocking(False)
            connection = Connection(connected, time.monotonic())
            self._connections[connection] = 0
            self._serve(connection, receive=True)

    def _displace(self) -> None:
        """Close the oldest idle connection of the user who has most of them."""
        if not self._connections:
            self._stopping.wait(0.1)  # or the waiting peer would make the loop spin
            return
        users = Counter(connection.peer.uid for connection in self._connections)
        [(greediest, _)] = users.most_common(1)
        victim = min(
            (one for one in self._connections if one.peer.uid == greediest),
            key=lambda one: (bool(one.pending), one.progress),
        )
        logger.debug("Closing a connection of uid %d to make room.", greediest)
        self._drop(victim)

    def _serve(self, connection: Connection, *, receive: bool = False) -> None:
        """Whatever can be done for a peer now; nothing that it does reaches the others."""
        now = time.monotonic()
        try:
            if receive:
                connection.receive(now)
            connection.send(now)
            uid, taken = connection.peer.uid, True
            while taken:
                taken = False
                for request in connection.requests(now) if self._has_share(uid) else ():
                    taken = True
                    self._take(connection, request)
                    if not self._has_share(uid):
                        break
                connection.send(now)
            if isinstance(rest := connection.continues(), _Answer):
                self._queries.put(rest)
            if not self._has_share(uid):
                self._starved.setdefault(uid, OrderedDict())[connection] = None
                self._await(connection, connection.wants(more=False))
            elif connection.finished(now):
                self._drop(connection)
            else:
                self._await(connection, connection.wants())
        except OSError:
            self._drop(connection)  # the peer has left
        except Exception:
            logger.exception("Closing the connection of pid %d.", connection.peer.pid)
            self._drop(connection)

    def _take(self, connection: Connection, raw: bytes) -> None:
        due = connection.owe()
        try:
            request = Request.decode(raw)
            if request.event.admins_only and connection.peer not in self.admins:
                raise RequestRefused(f"only {self.admins} may ask for {request.name}")
        except RequestRefused as refusal:
            self._refused.tell(connection.peer, str(refusal))
            due.text = line("ERROR", str(refusal))
            return
        if request.event.notification is None:
            connection.asked = due
            self._queries.put(_Answer(self._query, request, due))
            return
        notification = request.event.notification(request.fields)
        if not request.event.admins_only:
            if connection.peer.session and notification.session:
                # It said so before, and was not gone when it did.
                due.text = line("OK")
                return
            notification = self._signed(notification, connection.peer)
        due.is_share = True
        self._owed[connection.peer.uid] += 1
        try:
            self._submit(
                notification,
                lambda answer: self._settle(due, line(answer.outcome, answer.detail)),
            )
        except Exception:
            logger.exception("Could not submit %s.", request.name)
            self._settle(due, INTERNAL_ERROR)

    def _signed(self, notification: Notification, peer: Peer) -> Notification:
        """Return what was said with who has said it, and in which session."""
        groups = None if peer in self.admins else peer.groups | {peer.gid}
        session = peer.session
        if not session and (groups is None or may_be_of(notification.session, peer.uid)):
            # A hook that gave up, whose parent is not known any more, names it.
            session = notification.session
        return replace(notification, uid=peer.uid, groups=groups, session=session)

    def _await(self, connection: Connection, events: int) -> None:
        known = self._connections[connection]
        if events == known:
            return
        # Not with a mask of 0: epoll would report a peer that hung up again and again.
        if not events:
            self._selector.unregister(connection.socket)
        elif not known:
            self._selector.register(connection.socket, events, connection)
        else:
            self._selector.modify(connection.socket, events, connection)
        self._connections[connection] = events

    def _drop(self, connection: Connection) -> None:
        if self._connections.pop(connection, 0):
            self._selector.unregister(connection.socket)
        connection.socket.close()

    def _settle(self, due: Due, text: bytes, rest: _Answer | None = None) -> None:
        """Any thread: hand an answer over to the loop."""
        self._answers.append((due, text, rest))
        self._rouse()

    def _rouse(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _finish(self, deadline: float) -> None:
        self._selector.unregister(self.socket)
        for connection in list(self._connections):
            connection.finish()
            self._serve(connection)
        self.server_close()
        while self._connections and (left := deadline - time.monotonic()) > 0:
            self._turn(left)

    def _end(self) -> None:
        for connection in list(self._connections):
            self._drop(connection)
        self.server_close()
        self._selector.close()
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1
