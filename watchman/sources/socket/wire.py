"""The protocol of the socket: a request is fields that end with NUL, an answer is a line.

NUL, because it is the only byte that a path cannot hold. An empty field ends the request.
"""

import os
from collections.abc import Mapping

from watchman.errors import RequestRefused
from watchman.uploads.text import printable, shorten

#: Bytes that one request may have, including the empty field that ends it.
REQUEST_LIMIT = 64 * 1024


#: Fields that one request may have.
FIELD_LIMIT = 64


def encode(event: str, fields: Mapping[str, str]) -> bytes:
    """Return one request as bytes; raises RequestRefused if a value cannot be sent."""
    request = bytearray(b"event=" + os.fsencode(event) + b"\0")
    for key, value in fields.items():
        if "\0" in value:
            raise RequestRefused(f"{key} holds a NUL, which no file name can: {value!r}")
        request += os.fsencode(key) + b"=" + os.fsencode(value) + b"\0"
    request += b"\0"
    if len(request) > REQUEST_LIMIT:
        raise RequestRefused(f"{event} is {len(request)} bytes long, {REQUEST_LIMIT} are allowed")
    return bytes(request)


def decode(request: bytes) -> dict[str, str]:
    """Return the fields of a request, given without its end; raises RequestRefused."""
    fields: dict[str, str] = {}
    if request.count(b"\0") >= FIELD_LIMIT:
        raise RequestRefused(f"a request has more than {FIELD_LIMIT} fields")
    for field in request.split(b"\0"):
        key, equals, value = field.partition(b"=")
        if not (key and equals):
            raise RequestRefused(
                f"a field is KEY=VALUE, ended by NUL; this one is {shorten(field)}"
            )
        name = os.fsdecode(key)
        if name in fields:
            raise RequestRefused(f"field {shorten(key)} is repeated; give each field once")
        fields[name] = os.fsdecode(value)
    return fields


class Splitter:
    """Cuts what a peer sends into requests."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def take(self) -> bytes | None:
        """Return the next whole request without its end; None if there is none yet.

        Raises RequestRefused if nothing that follows could make sense of what was sent.
        """
        if self._buffer.startswith(b"\0"):
            raise RequestRefused(
                "a request is empty; send event=NAME, its other fields, each ended by NUL,"
                " and one empty field"
            )
        end = self._buffer.find(b"\0\0", self._searched)
        if end + 2 > REQUEST_LIMIT or (end < 0 and len(self._buffer) >= REQUEST_LIMIT):
            raise RequestRefused(
                f"a request has more than {REQUEST_LIMIT} bytes before the empty field that ends it"
            )
        if end < 0:
            self._searched = max(0, len(self._buffer) - 1)
            return None
        request = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        self._searched = 0
        return request

    @property
    def unfinished(self) -> bool:
        """Whether a request has begun and not ended."""
        return bool(self._buffer)


def line(word: str, text: str = "") -> bytes:
    """Return one answer. What could break the line or confuse a terminal is escaped."""
    return f"{word} {printable(text)}".rstrip().encode() + b"\n"
