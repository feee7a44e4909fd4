"""The connection of one peer: what it has sent, and the answers that it waits for. Never blocks."""

import socket
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from selectors import EVENT_READ, EVENT_WRITE
from typing import NamedTuple

from watchman.errors import RequestRefused
from watchman.sources.socket.peers import Peer
from watchman.sources.socket.wire import REQUEST_LIMIT, Splitter, line

#: Requests of a peer that may wait for their answers. With more, we read nothing from it.
PENDING_LIMIT = 128

#: Bytes of answers that a peer may leave unread. With more, we read nothing from it.
OUTPUT_LIMIT = 256 * 1024

#: Bytes sent in one call, so that a long answer does not hold up other peers.
SEND_LIMIT = 64 * 1024

#: Seconds that a peer may take to finish a request, to read an answer, or to send anything.
IDLE = 30.0

#: Seconds for which we still read from a peer whose framing is lost, and ignore what it sends. If
#: we closed the connection at once, its send(2) would fail with EPIPE, and it would never read our
#: answer.
LINGER = 2.0


class Part(NamedTuple):
    """A part of an answer. `is_live` if what follows it has yet to happen."""

    text: bytes
    is_last: bool = False
    is_live: bool = False


#: The parts of an answer, made one by one.
Parts = Generator[Part, None, None]


@dataclass(slots=True, eq=False)
class Due:
    """An answer that is due. It has its place in the order of requests before it is known.

    `text` is None until then. A long answer comes in parts: `rest` makes the next part once the
    peer has read most of this one.
    """

    connection: "Connection"
    text: bytes | None = None
    rest: Parts | None = None
    #: Whether it goes on until the peer leaves, and when its next part may be made (monotonic).
    is_live: bool = False
    after: float = 0.0
    #: Whether it counts towards the answers that one user may wait for, see `listener.SHARE`.
    is_share: bool = False

    @property
    def is_whole(self) -> bool:
        return self.text is not None and self.rest is None


class Connection:
    """A connected peer. Only the listener's thread uses it.

    Its methods raise OSError once the peer is gone.
    """

    def __init__(self, connected: socket.socket, now: float) -> None:
        self.socket = connected
        self.peer = Peer.of(connected)
        self.pending: deque[Due] = deque()
        self.progress = now
        #: Its last query. The requests after it wait for its answer, because queries are expensive.
        self.asked: Due | None = None
        self.ended = False
        self._lost = False
        self._input = Splitter()
        self._output = bytearray()

    def receive(self, now: float) -> None:
        """Read what has arrived, at most as many bytes as one request may have."""
        try:
            data = self.socket.recv(REQUEST_LIMIT)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
        elif not self._lost and not self.is_live:
            if not self._input.unfinished:
                self.progress = now
            self._input.feed(data)

    def requests(self, now: float) -> Iterator[bytes]:
        """Yield whole requests while the peer may wait for one more answer."""
        while self._has_room():
            try:
                request = self._input.take()
            except RequestRefused as refusal:
                self._lose(str(refusal))
                return
            if request is None:
                break
            self.progress = now
            yield request
        if self.ended and self._input.unfinished and self._has_room():
            self._lose("the request is not ended; an empty field (a second NUL) ends it")

    def owe(self) -> Due:
        """Reserve the place of the next answer."""
        due = Due(self)
        self.pending.append(due)
        return due

    def send(self, now: float) -> None:
        """Send the answers that are known, in order, as much as the peer takes now."""
        while self.pending and (text := self.pending[0].text) is not None:
            self._output += text
            if self.pending[0].is_whole:
                self.pending.popleft()
            else:
                self.pending[0].text = None
        if self._output:
            try:
                sent = self.socket.send(self._output[:SEND_LIMIT])
            except BlockingIOError:
                return
            del self._output[:sent]
            self.progress = now
        if self._lost and not self._owed():
            self.socket.shutdown(socket.SHUT_WR)

    @property
    def is_live(self) -> bool:
        """Whether the peer is told of what happens. It can ask for nothing else then."""
        return bool(self.pending) and self.pending[0].is_live

    def close(self) -> None:
        """Close the socket, and end what would be told of."""
        for due in self.pending:
            if due.rest is not None:
                due.rest.close()
        self.socket.close()

    def continues(self, now: float) -> tuple[Due, Parts] | None:
        """Return an answer whose next part is needed soon, with what makes that part.

        Each part is asked for once; None if none is needed.
        """
        due = self.pending[0] if self.pending else None
        if due is None or due.text is not None or len(self._output) >= SEND_LIMIT:
            return None
        if now < due.after:
            return None
        rest, due.rest = due.rest, None
        return None if rest is None else (due, rest)

    def expire(self, now: float) -> None:
        """Send an error to a peer that has been silent in the middle of a request for too long."""
        if self._input.unfinished and not self._owed() and now > self.progress + IDLE:
            self._lose(f"the request was not ended within {IDLE:.0f} seconds")
            self.progress = now

    def finish(self) -> None:
        """Take no more requests. Answers that are due will still be sent."""
        self.ended = True
        self._lost = True

    def finished(self, now: float) -> bool:
        """Whether the connection can be closed: all is done, or the peer was silent too long."""
        if self.is_live:
            return self.ended  # however slow it is: it is told what it has missed
        if self._owed():
            return bool(self._output) and now > self.progress + IDLE
        return self.ended or now > self.progress + (LINGER if self._lost else IDLE)

    def wants(self, *, more: bool = True) -> int:
        """Return the selector's events to wait for, 0 for none.

        `more` says whether another request of this peer would be taken.
        """
        # Of one that is told of what happens we read only that it has left.
        reading = self._lost or self.is_live or (more and self._has_room())
        reading = reading and not self.ended
        return (EVENT_READ if reading else 0) | (EVENT_WRITE if self._output else 0)

    def _has_room(self) -> bool:
        return (
            not self._lost
            and (self.asked is None or self.asked.is_whole)
            and len(self.pending) < PENDING_LIMIT
            and len(self._output) < OUTPUT_LIMIT
        )

    def _owed(self) -> bool:
        return bool(self.pending or self._output)

    def _lose(self, reason: str) -> None:
        self._lost = True
        self._input = Splitter()
        self.owe().text = line("ERROR", reason)
