"""The lines of the journal: one record each, with a checksum."""

from __future__ import annotations

import json
import zlib
from typing import Any

from watchman.errors import JournalCorrupt

CHECKSUM = b',"crc":"'

#: What comes before the upload's id in a record. It is the first such text in the line.
ID = b'"id":"'


_JSON = json.JSONEncoder(separators=(",", ":"))


def encode(record: dict[str, Any]) -> bytes:
    """Return the line of a record: ASCII JSON whose last member is the CRC-32 of what precedes."""
    body = _JSON.encode(record).encode("ascii")[:-1]
    return b'%b%b%08x"}\n' % (body, CHECKSUM, zlib.crc32(body))


def decode(line: bytes) -> dict[str, Any]:
    """Return the record of a line, or raise JournalCorrupt."""
    body, _, tail = line.rpartition(CHECKSUM)
    if tail != b'%08x"}\n' % zlib.crc32(body) or not body:
        raise JournalCorrupt("its checksum does not match")
    record: dict[str, Any] = json.loads(body + b"}")
    return record


def id_of(line: bytes) -> str:
    """Return the upload id in a record's line, "" if it has none. It is faster than `decode`."""
    _, found, after = line.partition(ID)
    return after[: after.find(b'"')].decode("ascii") if found else ""
