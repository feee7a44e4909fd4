"""Answers requests on the Unix socket: one thread for all peers, one more for queries."""

import json
import logging
import queue
import selectors
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from typing import Any

from watchman.errors import RequestRefused, WatchmanError
from watchman.sources.socket.connection import Connection, Due, Part, Parts
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

#: Bytes and seconds after which a query's answer is interrupted, for the next query to get a turn.
PART = 64 * 1024
TURN = 0.1

#: Yielded by a query that tells of what happens, while nothing does; and seconds until it is asked
#: again. To be woken by each event would cost those who make them.
LATER: Mapping[str, Any] = {}
LIVE = 0.1

#: Notifications of one user that may wait for their answers, on all of his connections together.
SHARE = 64

#: Connections of one user that are read in one turn, so that other users get theirs.
READ_AT_ONCE = 8

#: Seconds between two searches for peers that were silent too long.
SWEEP = 1.0

#: Seconds after `stop` in which answers that are due may still be sent.
STOP_GRACE = 1.0

INTERNAL_ERROR = line("ERROR", "an internal error of the daemon; its log says more")


class Listener:
    """The source behind the hook and watchman-send; it also answers the queries of all commands.

    The listener's thread calls `submit`, and blocks there while the dispatcher's inbox is full. Any
    thread may call the callback that `submit` is given, even after the listener has ended.

    A second thread calls `query`, one query at a time. It iterates over the result as the peer
    reads the answer; None in it says that nothing was found yet. If `query` raises a WatchmanError,
    or an OSError because a disk cannot be read, the answer is ERROR.

    After LATER in a result the rest is asked for in a while, until the peer leaves.

    A peer that is slow or silent takes up a file descriptor, but delays nobody. The class is long
    because it has each way in which a peer may be slow.
    """

    def __init__(
        self, path: str, *, submit: Submit, query: Query, admins: Collection[str] = ()
    ) -> None:
        self._connections = Connections(path)
        self._submit = submit
        self._query = query
        self._admins = Admins(admins)
        self._refused = Refused()
        #: By uid, how many notifications wait for their answer.
        self._owed: Counter[int] = Counter()
        #: By uid, connections that may have more requests, which are not taken because the user has
        #: reached his SHARE. The first is served first.
        self._starved: dict[int, OrderedDict[Connection, None]] = {}
        self._next_sweep = 0.0
        #: Connections whose answers go on until they leave.
        self._live: set[Connection] = set()
        self._next_live = 0.0
        self._stopping = threading.Event()
        self._queries: queue.SimpleQueue[tuple[Due, Parts] | None] = queue.SimpleQueue()
        #: Answers that are known and not sent yet, each with what makes its next part, if any.
        self._answers: deque[tuple[Due, Part, Parts | None]] = deque()
        self._threads = [
            threading.Thread(target=self._run, name="listener", daemon=True),
            threading.Thread(target=self._answer_queries, name="queries", daemon=True),
        ]

    def start(self) -> None:
        """Start, and return once peers can connect; raises SocketUnavailable."""
        self._connections.open()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no more requests. Answers that are due are sent if they are known soon."""
        self._stopping.set()
        self._queries.put(None)
        self._connections.rouse()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def admit(self, admins: Collection[str]) -> None:
        """Replace the admins, after a reload. Any thread may call it."""
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
            part = next(parts)
            self._settle(due, part, None if part.is_last else parts)

    def _parts(self, request: Request) -> Parts:
        """Yield the answer to a query in parts. Runs in the thread of queries."""
        text, until, count = bytearray(), time.monotonic() + TURN, 0
        rows: Iterable[Mapping[str, Any] | None] = ()
        try:
            rows = self._query(request.name, dict(request.fields))
            for one in rows:
                if one is not None and one is not LATER:
                    text += json.dumps(one).encode() + b"\n"
                    count += 1
                if one is LATER or len(text) >= PART or time.monotonic() > until:
                    yield Part(bytes(text), is_live=one is LATER)
                    text, until = bytearray(), time.monotonic() + TURN
            text += line("OK", str(count))
        except (WatchmanError, OSError) as refusal:
            text += line("ERROR", str(refusal))
        except Exception:
            logger.exception("Could not answer %s.", request.name)
            text += INTERNAL_ERROR
        finally:
            if isinstance(rows, Generator):
                rows.close()
        yield Part(bytes(text), is_last=True)

    def _turn(self, timeout: float) -> None:
        """Wait until there is something to do, and do it."""
        read: Counter[int] = Counter()
        # Connections that are not read in this turn will be ready in the next one, too.
        timeout = 0.0 if self._answers else min(timeout, LIVE) if self._live else timeout
        for connection, events in self._connections.wait(timeout):
            if connection is None:
                for new in self._connections.accept():
                    self._serve(new, receive=True)
                continue
            uid, receive = connection.peer.uid, bool(events & selectors.EVENT_READ)
            may_read = read[uid] < READ_AT_ONCE
            read[uid] += receive
            if may_read or events & selectors.EVENT_WRITE:
                self._serve(connection, receive=may_read and receive and self._has_share(uid))
        # Only the answers that are there now. A peer that asks again after each answer would keep
        # this loop going for ever.
        for _ in range(len(self._answers)):
            due, part, rest = self._answers.popleft()
            text = due.text = part.text
            due.rest, peer = rest, due.connection.peer
            if due.is_share:
                self._owed[peer.uid] -= 1
            if text.startswith(b"ERROR ") and peer not in self._admins:
                self._refused.tell(peer, text[6:-1].decode())
            if due.connection not in self._connections:
                due.connection.close()
                continue
            if part.is_live:
                due.is_live, due.after = True, time.monotonic() + LIVE
                self._live.add(due.connection)
            self._serve(due.connection)
        self._feed()
        now = time.monotonic()
        if self._live and now >= self._next_live:
            self._next_live = now + LIVE
            self._live &= self._connections.keys()
            for connection in self._live:
                self._serve(connection)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP
            for connection in list(self._connections):
                connection.expire(now)
                self._serve(connection)

    def _feed(self) -> None:
        """Take more requests of users who wait for fewer answers than SHARE by now."""
        for uid, starved in list(self._starved.items()):
            while starved and self._has_share(uid):
                connection, _ = starved.popitem(last=False)
                if connection in self._connections:
                    self._serve(connection)
            if not starved:
                del self._starved[uid]
                self._owed += Counter()  # drops the users who wait for no answer

    def _has_share(self, uid: int) -> bool:
        return self._owed[uid] < SHARE

    def _serve(self, connection: Connection, *, receive: bool = False) -> None:
        """Do all that can be done for a peer now. Its errors close this connection alone."""
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
            if continued := connection.continues(now):
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
        """Take a request: refuse it, or give it to the dispatcher or to the thread of queries."""
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
                # A hook that gave up sends its request again, now with its session. We had found
                # the session when it connected, so its first request needs no correction.
                due.text = line("OK")
                return
            notification = self._signed(notification, connection.peer)
        due.is_share = True
        self._owed[connection.peer.uid] += 1
        try:
            self._submit(
                notification,
                lambda answer: self._settle(due, Part(line(answer.outcome, answer.detail))),
            )
        except Exception:
            logger.exception("Could not submit %s.", request.name)
            self._settle(due, Part(INTERNAL_ERROR))

    def _signed(self, notification: Notification, peer: Peer) -> Notification:
        """Return the notification with the uid and groups of who sent it, and its session."""
        groups = None if peer in self._admins else peer.groups | {peer.gid}
        session = peer.session
        if not session and (groups is None or may_be_of(notification.session, peer.uid)):
            # The hook had given up and ended before we looked for its parent. So its request names
            # the session.
            session = notification.session
        return notification._replace(uid=peer.uid, groups=groups, session=session)

    def _settle(self, due: Due, part: Part, rest: Parts | None = None) -> None:
        """Hand an answer over to the listener's thread. Any thread may call it."""
        self._answers.append((due, part, rest))
        # The first answer wakes the thread. The answers of one commit follow at once, and `_turn`
        # takes them along.
        if len(self._answers) == 1:
            self._connections.rouse()

    def _finish(self, deadline: float) -> None:
        """Send the answers that are still due, until `deadline` (monotonic)."""
        for connection in list(self._connections):
            connection.finish()
            self._serve(connection)
        self._connections.refuse()
        while self._connections and (left := deadline - time.monotonic()) > 0:
            self._turn(left)
