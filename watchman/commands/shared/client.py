"""The client of the daemon's socket, for the commands."""

import io
import itertools
import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from watchman.errors import RequestRefused, SocketUnavailable
from watchman.sources.socket.wire import encode
from watchman.uploads.outcome import Outcome
from watchman.uploads.text import shorten

#: Seconds to wait for the next answer.
TIMEOUT = 10.0

#: Seconds to wait for the next answer that needs a disk.
COMMIT_TIMEOUT = 30.0

#: Bytes of an answer that are kept in memory; the rest is in a temporary file.
IN_MEMORY = 1 << 20

#: Requests sent before their answers are read. So few fit into the socket's buffer. With more, the
#: daemon could wait for us to read while we wait for it to read.
WINDOW = 64


def request(
    socket_path: str,
    event: str,
    fields: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
    heard: Callable[[int], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Send a query, and yield each line of the answer as an object.

    All lines are read before the first is yielded, as fast as the daemon sends them. Otherwise the
    daemon would give us up while somebody reads our output in a pager. Many lines go to a temporary
    file, so they need not fit into memory. `heard` is called with the number of lines read so far.

    Raises SocketUnavailable, or RequestRefused with the daemon's reason.
    """
    count = 0
    with ExitStack() as inside:
        found: BinaryIO = io.BytesIO()
        with _conversation(socket_path, encode(event, fields or {}), timeout) as answers:
            while (text := _next(answers, socket_path)).startswith("{"):
                if isinstance(found, io.BytesIO) and found.tell() > IN_MEMORY:
                    found = _on_disk(found, inside)
                found.write(text.encode() + b"\n")
                count += 1
                heard(count)
        word, _, detail = text.partition(" ")
        if word != "OK":
            raise RequestRefused(detail or text)
        if detail != str(count):
            raise SocketUnavailable(f"{socket_path!r} answered {count} of {detail} lines")
        found.seek(0)
        for line in found:
            yield json.loads(line)


def follow(socket_path: str, event: str, fields: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Send a query whose answer has no end, and yield each line as it comes.

    Only the first line must come within TIMEOUT. Raises as `request`.
    """
    with _connection(socket_path, TIMEOUT) as connected:
        connected.sendall(encode(event, fields))
        with connected.makefile("rb") as answers:
            while (text := _next(answers, socket_path)).startswith("{"):
                connected.settimeout(None)
                yield json.loads(text)
    word, _, detail = text.partition(" ")
    if word != "OK":
        raise RequestRefused(detail or text)


def _on_disk(found: io.BytesIO, inside: ExitStack) -> BinaryIO:
    """Return a temporary file with what was found so far; `inside` closes it."""
    from tempfile import TemporaryFile  # its import takes longer than most answers

    file = inside.enter_context(TemporaryFile())  # noqa: SIM115
    file.write(found.getbuffer())
    return file


def resubmit(
    socket_path: str, paths: Iterable[str], fields: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Outcome, str]]:
    """Resubmit paths. Yield each with its outcome, and with the upload's id or the reason.

    An upload is durable when its path is yielded. `fields` are sent with each path. Raises
    SocketUnavailable.
    """
    following = iter(paths)
    while window := list(itertools.islice(following, WINDOW)):
        requests = [_resubmission({"path": path, **(fields or {})}) for path in window]
        sent = b"".join(one for one in requests if isinstance(one, bytes))
        with _conversation(socket_path, sent, COMMIT_TIMEOUT) as answers:
            for path, one in zip(window, requests, strict=True):
                if isinstance(one, RequestRefused):
                    yield path, Outcome.ERROR, str(one)
                else:
                    yield path, *_answer(_next(answers, socket_path))


def _resubmission(fields: Mapping[str, str]) -> bytes | RequestRefused:
    """Return a request, or why none can be made."""
    try:
        return encode("resubmit", fields)
    except RequestRefused as refusal:
        return refusal


def _answer(text: str) -> tuple[Outcome, str]:
    word, _, detail = text.partition(" ")
    if word not in set(Outcome):
        raise SocketUnavailable(f"an answer that is not watchman's: {shorten(text)}")
    return Outcome(word), detail


@contextmanager
def _conversation(path: str, requests: bytes, timeout: float) -> Iterator[BinaryIO]:
    """Send `requests` and yield the answers to read. Raises SocketUnavailable for any failure."""
    with _connection(path, timeout) as connected:
        connected.sendall(requests)
        with connected.makefile("rb") as answers:
            yield answers


@contextmanager
def _connection(path: str, timeout: float) -> Iterator[socket.socket]:
    """Connect to the daemon. Raises SocketUnavailable for any failure, also in the block."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.settimeout(timeout)
        try:
            connected.connect(path)
            yield connected
        except TimeoutError as error:
            raise SocketUnavailable(
                f"the daemon on {path!r} did not answer within {timeout:g} seconds"
            ) from error
        except PermissionError as error:
            raise SocketUnavailable(
                f"may not connect to {path!r}: {error.strerror};"
                " you need x on every directory above it"
            ) from error
        except OSError as error:
            raise SocketUnavailable(
                f"no daemon answers on {path!r}: {error.strerror or error}"
            ) from error


def _next(answers: BinaryIO, path: str) -> str:
    text = answers.readline()
    if not text.endswith(b"\n"):
        raise SocketUnavailable(f"the daemon on {path!r} ended before it answered")
    return text.decode(errors="backslashreplace").rstrip("\n")
