"""Talks to the daemon on its socket, for the commands."""

import json
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from watchman.errors import RequestRefused, SocketUnavailable
from watchman.sources.socket.wire import encode
from watchman.uploads.text import shorten
from watchman.uploads.upload import Answer, Outcome

#: Seconds to wait for the next answer.
TIMEOUT = 10.0

#: Seconds to wait for the next answer that needs a disk.
COMMIT_TIMEOUT = 30.0

#: Bytes of an answer that are kept in memory; the rest is in a temporary file.
IN_MEMORY = 1 << 20

#: Bytes of requests sent before their answers are read. They fit into the socket's buffer, so
#: the daemon never waits for us to read while we wait for it to.
WINDOW = 64 * 1024


def request(
    socket_path: str,
    event: str,
    fields: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> list[dict[str, Any]]:
    """Ask a query; raises SocketUnavailable, or RequestRefused with the daemon's reason."""
    return list(stream(socket_path, event, fields, timeout))


def stream(
    socket_path: str,
    event: str,
    fields: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Iterator[dict[str, Any]]:
    """As `request`, for any number of lines: they need not fit into memory.

    All of them are read before the first is yielded, as fast as the daemon tells them: it would
    give up a peer that looks at each for as long as somebody at a pager does.
    """
    count = 0
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as found:
        with _conversation(socket_path, encode(event, fields or {}), timeout) as answers:
            while (text := _next(answers, socket_path)).startswith("{"):
                found.write(text.encode() + b"\n")
                count += 1
        word, _, detail = text.partition(" ")
        if word != "OK":
            raise RequestRefused(detail or text)
        if detail != str(count):
            raise SocketUnavailable(f"{socket_path!r} answered {count} of {detail} lines")
        found.seek(0)
        for line in found:
            yield json.loads(line)


def resubmit(
    socket_path: str,
    paths: Iterable[str],
    fields: Mapping[str, str] | None = None,
    timeout: float = COMMIT_TIMEOUT,
) -> Iterator[tuple[str, Answer]]:
    """Resubmit paths, each answered once it is durable; raises SocketUnavailable.

    `fields` are sent along with each of them.
    """
    for window in _windows(paths, fields or {}):
        requests = b"".join(encoded for _, encoded in window if isinstance(encoded, bytes))
        with _conversation(socket_path, requests, timeout) as answers:
            for path, encoded in window:
                if isinstance(encoded, Answer):
                    yield path, encoded
                else:
                    yield path, _answer(_next(answers, socket_path))


def _windows(
    paths: Iterable[str], fields: Mapping[str, str]
) -> Iterator[list[tuple[str, bytes | Answer]]]:
    """Paths with their requests, or with the answer where no request can be made."""
    window: list[tuple[str, bytes | Answer]] = []
    size = 0
    for path in paths:
        encoded: bytes | Answer
        try:
            encoded = encode("resubmit", {"path": path, **fields})
            length = len(encoded)
        except RequestRefused as refusal:
            encoded, length = Answer(Outcome.ERROR, str(refusal)), 0
        if window and size + length > WINDOW:
            yield window
            window, size = [], 0
        window.append((path, encoded))
        size += length
    if window:
        yield window


def _answer(text: str) -> Answer:
    word, _, detail = text.partition(" ")
    if word not in set(Outcome):
        raise SocketUnavailable(f"an answer that is not watchman's: {shorten(text)}")
    return Answer(Outcome(word), detail)


@contextmanager
def _conversation(path: str, requests: bytes, timeout: float) -> Iterator[BinaryIO]:
    """Send `requests`, then read answers; whatever fails is SocketUnavailable."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.settimeout(timeout)
        try:
            connected.connect(path)
            connected.sendall(requests)
            with connected.makefile("rb") as answers:
                yield answers
        except TimeoutError as error:
            raise SocketUnavailable(
                f"the daemon on {path!r} did not answer within {timeout:g} seconds"
            ) from error
        except PermissionError as error:
            raise SocketUnavailable(
                f"may not connect to {path!r}: {error.strerror}; every directory above it needs x"
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
