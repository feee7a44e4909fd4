"""One peer of the listener: what it has sent, what it is owed. Never blocks."""

import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from selectors import EVENT_READ, EVENT_WRITE

from watchman.errors import RequestRefused
from watchman.sources.socket.peers import Peer
from watchman.sources.socket.wire import REQUEST_LIMIT, Splitter, line

#: Requests that a peer may have unanswered; beyond that it is not read from.
PENDING_LIMIT = 128

#: Bytes that a peer may leave unread; beyond that it is not read from.
OUTPUT_LIMIT = 256 * 1024

#: Bytes sent at once, so that the answer to one query lets others in between.
SEND_LIMIT = 64 * 1024

#: Seconds that a peer may take to end a request, to read an answer, or to say anything.
IDLE = 30.0

#: Seconds that a peer whose framing is lost may go on sending, so that it comes to read why.
#: Closed at once, its send would fail by EPIPE before it looks for an answer.
LINGER = 2.0


#: An answer in parts, each with whether it is the last.
Parts = Iterator[tuple[bytes, bool]]


@dataclass(slots=True, eq=False)
class Due:
    """An answer's place in its connection's order; `text` is None until it is known.

    A long one comes in parts: `rest` gives the next, once the peer has read this one.
    """

    connection: "Connection"
    text: bytes | None = None
    rest: Parts | None = None
    #: Whether it is one of those that its user may be owed at once.
    is_share: bool = False

    @property
    def is_whole(self) -> bool:
        return self.text is not None and self.rest is None


class Connection:
    """Only the listener's thread uses it. Methods raise OSError once the peer is gone."""

    def __init__(self, connected: socket.socket, now: float) -> None:
        self.socket = connected
        self.peer = Peer.of(connected)
        self.pending: deque[Due] = deque()
        self.progress = now
        #: Its last query. What follows one waits for its answer: queries are dear.
        self.asked: Due | None = None
        self.ended = False
        self._lost = False
        self._input = Splitter()
        self._output = bytearray()

    def receive(self, now: float) -> None:
        """Read what is there, at most one request's worth."""
        try:
            data = self.socket.recv(REQUEST_LIMIT)
        except BlockingIOError:
            return
        if not data:
            self.ended = True
        elif not self._lost:
            if not self._input.unfinished:
                self.progress = now
            self._input.feed(data)

    def requests(self, now: float) -> Iterator[bytes]:
        """Whole requests, for as long as the peer may be owed one more answer."""
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
        due = Due(self)
        self.pending.append(due)
        return due

    def send(self, now: float) -> None:
        """Send what is known and in order, as much as the peer takes."""
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

    def continues(self) -> tuple[Due, Parts] | None:
        """An answer whose last part is nearly sent, and what gives the next one; once."""
        due = self.pending[0] if self.pending else None
        if due is None or due.text is not None or len(self._output) >= SEND_LIMIT:
            return None
        rest, due.rest = due.rest, None
        return None if rest is None else (due, rest)

    def expire(self, now: float) -> None:
        """Tell a peer that has been silent in the middle of a request."""
        if self._input.unfinished and not self._owed() and now > self.progress + IDLE:
            self._lose(f"the request was not ended within {IDLE:.0f} seconds")
            self.progress = now

    def finish(self) -> None:
        """Take no further request; what is owed will be sent."""
        self.ended = True
        self._lost = True

    def finished(self, now: float) -> bool:
        """Whether nothing more is to come, or the peer has had its time."""
        if self._owed():
            return bool(self._output) and now > self.progress + IDLE
        return self.ended or now > self.progress + (LINGER if self._lost else IDLE)

    def wants(self, *, more: bool = True) -> int:
        """The selector's events to wait for; 0 for none. `more`: a request could be taken."""
        reading = not self.ended and (self._lost or (more and self._has_room()))
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
