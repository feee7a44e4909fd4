"""Answers requests on the Unix socket: one thread for all peers, one more for queries."""

import json
import logging
import queue
import selectors
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from watchman.errors import RequestRefused, WatchmanError
from watchman.sources.socket.connection import Connection, Due, Parts
from watchman.sources.socket.connections import Connections
from watchman.sources.socket.peers import Admins, Peer
from watchman.sources.socket.refused import Refused
from watchman.sources.socket.requests import Request
from watchman.sources.socket.wire import line
from watchman.uploads.session import may_be_of
from watchman.uploads.upload import Answer, Notification

logger = logging.getLogger(__name__)

Submit = Callable[[Notification, Callable[[Answer], None]], None]
Query = Callable[[str, dict[str, str]], Iterable[Mapping[str, Any] | None]]

#: Bytes, and seconds, after which a query's answer makes way for the next query's.
PART = 64 * 1024
TURN = 0.1

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

    A peer that is slow or silent costs a file descriptor and delays nobody.
    """

    def __init__(
        self, path: str, *, submit: Submit, query: Query, admins: Collection[str] = ()
    ) -> None:
        self._connections = Connections(path)
        self._submit = submit
        self._query = query
        self._admins = Admins(admins)
        self._refused = Refused()
        #: By uid, how many words wait for their answer.
        self._owed: Counter[int] = Counter()
        #: By uid, who may have more to say once there is room: the next one first.
        self._starved: dict[int, OrderedDict[Connection, None]] = {}
        self._next_sweep = 0.0
        self._stopping = threading.Event()
        self._queries: queue.SimpleQueue[tuple[Due, Parts] | None] = queue.SimpleQueue()
        #: Each with what gives its next part, if there is one.
        self._answers: deque[tuple[Due, bytes, Parts | None]] = deque()
        self._threads = [
            threading.Thread(target=self._run, name="listener", daemon=True),
            threading.Thread(target=self._answer_queries, name="queries", daemon=True),
        ]

    def start(self) -> None:
        """Return once peers can connect; raises SocketUnavailable, which says what to do."""
        self._connections.open()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no more requests; answers that are owed are sent if they come soon."""
        self._stopping.set()
        self._queries.put(None)
        self._connections.rouse()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def admit(self, admins: Collection[str]) -> None:
        """Let others be the admins from now on; any thread."""
        self._admins = Admins(admins)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn(SWEEP)
            self._finish(time.monotonic() + STOP_GRACE)
        except Exception:
            logger.critical("The listener has ended; no command is answered.", exc_info=True)
            raise
        finally:
            self._connections.close()

    def _answer_queries(self) -> None:
        while (asked := self._queries.get()) is not None:
            due, parts = asked
            text, is_last = next(parts)
            self._settle(due, text, None if is_last else parts)

    def _parts(self, request: Request) -> Parts:
        """Answer a query, in the queries' thread."""
        text, until, count = bytearray(), time.monotonic() + TURN, 0
        try:
            for one in self._query(request.name, dict(request.fields)):
                if one is not None:
                    text += json.dumps(one).encode() + b"\n"
                    count += 1
                if len(text) >= PART or time.monotonic() > until:
                    yield bytes(text), False
                    text, until = bytearray(), time.monotonic() + TURN
            text += line("OK", str(count))
        except (WatchmanError, OSError) as refusal:
            text += line("ERROR", str(refusal))
        except Exception:
            logger.exception("Could not answer %s.", request.name)
            text += INTERNAL_ERROR
        yield bytes(text), True

    def _turn(self, timeout: float) -> None:
        """Wait until there is something to do, and do it."""
        read: Counter[int] = Counter()
        # Who is not read from now is ready in the next turn as well.
        for connection, events in self._connections.wait(0.0 if self._answers else timeout):
            if connection is None:
                for new in self._connections.accept():
                    self._serve(new, receive=True)
                continue
            uid, receive = connection.peer.uid, bool(events & selectors.EVENT_READ)
            may_read = read[uid] < READ_AT_ONCE
            read[uid] += receive
            if may_read or events & selectors.EVENT_WRITE:
                self._serve(connection, receive=may_read and receive and self._has_share(uid))
        # Not those that come meanwhile: who asks again at each answer would keep the loop here.
        for _ in range(len(self._answers)):
            due, text, rest = self._answers.popleft()
            due.text, due.rest = text, rest
            peer = due.connection.peer
            if due.is_share:
                self._owed[peer.uid] -= 1
            if text.startswith(b"ERROR ") and peer not in self._admins:
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
            if continued := connection.continues():
                self._queries.put(continued)
            if not self._has_share(uid):
                self._starved.setdefault(uid, OrderedDict())[connection] = None
                self._connections.expect(connection, connection.wants(more=False))
            elif connection.finished(now):
                self._connections.drop(connection)
            else:
                self._connections.expect(connection, connection.wants())
        except OSError:
            self._connections.drop(connection)  # the peer has left
        except Exception:
            logger.exception("Closing the connection of pid %d.", connection.peer.pid)
            self._connections.drop(connection)

    def _take(self, connection: Connection, raw: bytes) -> None:
        due = connection.owe()
        try:
            request = Request.decode(raw)
            if request.event.admins_only and connection.peer not in self._admins:
                raise RequestRefused(f"only {self._admins} may ask for {request.name}")
        except RequestRefused as refusal:
            self._refused.tell(connection.peer, str(refusal))
            due.text = line("ERROR", str(refusal))
            return
        notification = request.notification()
        if notification is None:
            connection.asked = due
            self._queries.put((due, self._parts(request)))
            return
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
        groups = None if peer in self._admins else peer.groups | {peer.gid}
        session = peer.session
        if not session and (groups is None or may_be_of(notification.session, peer.uid)):
            # A hook that gave up, whose parent is not known any more, names it.
            session = notification.session
        return notification._replace(uid=peer.uid, groups=groups, session=session)

    def _settle(self, due: Due, text: bytes, rest: Parts | None = None) -> None:
        """Any thread: hand an answer over to the loop."""
        self._answers.append((due, text, rest))
        # The first wakes it for those that follow, as those of one commit do; see `_turn`.
        if len(self._answers) == 1:
            self._connections.rouse()

    def _finish(self, deadline: float) -> None:
        for connection in list(self._connections):
            connection.finish()
            self._serve(connection)
        self._connections.refuse()
        while self._connections and (left := deadline - time.monotonic()) > 0:
            self._turn(left)
