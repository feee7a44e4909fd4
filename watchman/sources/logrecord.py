"""Records of ProFTPD's transfer log: where one begins and ends, and what it says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from watchman.errors import ForeignRecord
from watchman.upload import Kind, Notification, Source

#: Bytes of the longest line that ProFTPD writes; what is longer loses its end and its newline.
LONGEST = 4223

#: Our LogFormat, behind the token and its separator.
LOG_FORMAT = "%{epoch}|%P|%m|%s|%{transfer-status}|%{file-size}|%{protocol}|%a|%u|%f"

#: What it makes.
FIELDS = re.compile(
    rb"(?P<epoch>\d{1,15})\|(?P<pid>\d{1,10})\|(?P<command>[^|\n]{1,40})\|(?P<status>\d{3}|-)\|"
    rb"(?P<transfer>[a-z-]{1,20})\|(?P<size>\d{1,19}|-)\|(?P<protocol>[a-z0-9-]{1,20})\|"
    rb"(?P<client>[0-9A-Za-z.:_%-]{1,255})\|(?P<user>[^|\n]{0,255})\|(?P<path>/[^\n\0]*(?s:\n.*)?|-)\n",
)

STORES = frozenset({b"STOR", b"APPE", b"STOU"})

#: Renames begun and not ended that are remembered: a client may leave it at RNFR.
RENAMING = 1_000


@dataclass(frozen=True, slots=True)
class Record:
    """What one write of ProFTPD's says: when (epoch), a command, its result, and the path."""

    at: int
    pid: str
    command: bytes
    status: str
    transfer: str
    size: int | None
    protocol: str
    client: str
    user: str
    path: bytes


def cut(data: bytes, token: bytes, *, more: bool) -> tuple[list[bytes], int]:
    """Return the pieces of what was appended to a log, and how many of its bytes that is.

    Each begins with the token, all but what is none of ours. ProFTPD writes a record at once, so
    the next one begins where this one ends, even if it lost its newline or has some in its name.
    What may not have ended yet is left: with `more`, what the next bytes may still belong to.
    """
    foreign, *records = data.split(token)
    pieces = [foreign] if foreign else []
    pieces += [token + record for record in records]
    length = len(data)
    last = pieces[-1] if pieces else b""
    if len(last) <= LONGEST and (more or not last.endswith(b"\n")):
        length -= len(pieces.pop()) if pieces else 0
    elif not last.endswith(b"\n"):
        length -= len(token) - 1  # the next token may have begun there
        pieces[-1] = last[: 1 - len(token)]
    return pieces, length


def parse(piece: bytes, token: bytes) -> Record:
    """Return the record of a piece, or raise ForeignRecord.

    Its path holds all lines that follow: see `whole`.
    """
    if not piece.startswith(token):
        raise ForeignRecord("without our token")
    line = piece[:LONGEST]
    end = line.rfind(b"\n") + 1
    if not end:
        raise ForeignRecord("over-long" if len(piece) >= LONGEST else "cut short")
    match = FIELDS.fullmatch(line, len(token), end)
    if match is None:
        raise ForeignRecord("not in our LogFormat")
    text = {name: os.fsdecode(value) for name, value in match.groupdict().items()}
    return Record(
        at=int(text["epoch"]),
        pid=text["pid"],
        command=match["command"],
        status=text["status"],
        transfer=text["transfer"],
        size=int(text["size"]) if text["size"] != "-" else None,
        protocol=text["protocol"],
        client=text["client"],
        user=text["user"],
        path=match["path"],
    )


def whole(path: bytes, exists: Callable[[bytes], bool] = os.path.lexists) -> bytes:
    """Return a path without what another program has written behind it.

    ProFTPD does not escape newlines in names, so lines that follow may be either. The disk knows:
    the longest that is there. Who could forge one by a name may also write to its directory.
    """
    if b"\n" not in path:
        return path
    found = path
    while b"\n" in found:
        if exists(found):
            return found
        found = found.rpartition(b"\n")[0]
    # No name holds a NUL, but a block of them is what a power failure may leave.
    return found if exists(found) or b"\0" in path else path


class Interpreter:
    """Turns the records of one log into notifications."""

    def __init__(self) -> None:
        #: By pid, what RNFR has named: RNTO comes next.
        self._renaming: dict[str, bytes] = {}

    def notification(self, record: Record, path: bytes) -> Notification | None:
        """Return what a record says of the file at `path`; None where it says nothing of any."""
        if path == b"-":
            return None
        good = record.status == "-" or record.status.startswith("2")
        kind, old, reason = Kind.COMPLETED, "", ""
        if record.command == b"RNFR":
            self._renaming[record.pid] = path
            if len(self._renaming) > RENAMING:
                del self._renaming[next(iter(self._renaming))]
            return None
        if record.command == b"RNTO":
            old = os.fsdecode(self._renaming.pop(record.pid, b""))
            if not good or not old:
                return None
            kind = Kind.RENAMED
        elif record.command not in STORES:
            return None
        elif not good or record.transfer != "success":
            kind, reason = Kind.FAILED, f"ProFTPD logged {record.status} {record.transfer}"
        return Notification(
            kind,
            os.fsdecode(path),
            Source.LOG,
            old_path=old,
            user=record.user,
            client=record.client,
            protocol=record.protocol,
            size=record.size,
            session=f"{record.pid}.",
            reason=reason,
        )
