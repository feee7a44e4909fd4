"""Records of ProFTPD's transfer log: where one begins and ends, and what it says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from watchman.errors import ForeignRecord
from watchman.upload import Kind, Notification, Source

#: Bytes of the longest line that ProFTPD writes; what is longer loses its end and its newline.
LONGEST = 4223

#: Our LogFormat, behind the token and its separator.
LOG_FORMAT = "%{epoch}|%P|%m|%s|%{transfer-status}|%{file-size}|%{protocol}|%a|%u|%f"

#: What it makes.
FIELDS = re.compile(
    rb"(?P<epoch>\d{1,19})\|(?P<pid>\d{1,10})\|(?P<command>[A-Z ]{2,20})\|(?P<status>\d{3}|-)\|"
    rb"(?P<transfer>[a-z-]{1,20})\|(?P<size>\d{1,19}|-)\|(?P<protocol>[a-z0-9-]{1,20})\|"
    rb"(?P<client>[0-9A-Za-z.:_%-]{1,255})\|(?P<user>[^|\n]{0,255})\|(?P<path>/.*|-)",
    re.DOTALL,
)

STORES = frozenset({b"STOR", b"APPE", b"STOU"})


@dataclass(frozen=True, slots=True)
class Record:
    """What one write of ProFTPD's says: a command, its result, and the path it was about."""

    pid: str
    command: bytes
    status: str
    transfer: str
    size: int | None
    protocol: str
    client: str
    user: str
    path: bytes


def parse(line: bytes) -> Record:
    """Return the record behind a token and its separator, or raise ForeignRecord."""
    if len(line) >= LONGEST - 100 and not line.endswith(b"\n"):
        raise ForeignRecord("over-long, so its path is cut")
    if not line.endswith(b"\n"):
        raise ForeignRecord("without its end")
    match = FIELDS.fullmatch(line[:-1])
    if match is None:
        raise ForeignRecord("not in our LogFormat")
    text = {name: os.fsdecode(value) for name, value in match.groupdict().items()}
    return Record(
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


class Interpreter:
    """Turns the records of one log into notifications."""

    def __init__(self) -> None:
        #: By pid, what RNFR has named: RNTO comes next.
        self._renaming: dict[str, bytes] = {}

    def notification(self, record: Record) -> Notification | None:
        """Return what a record says of a file; None where it says nothing of any."""
        if record.path == b"-":
            return None
        path = _existing(record.path)
        good = record.status == "-" or record.status.startswith("2")
        kind, old, reason = Kind.COMPLETED, "", ""
        if record.command == b"RNFR":
            self._renaming[record.pid] = record.path
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


def _existing(path: bytes) -> bytes:
    """Return a path without what another program may have written behind it.

    A name may hold newlines, and ProFTPD does not escape them; so may lines follow that are none
    of ours. The disk knows which it is.
    """
    first = path.partition(b"\n")[0]
    return first if first != path and not os.path.lexists(path) else path
