"""Records of ProFTPD's transfer log: where one begins and ends, and what it says."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from watchman.errors import ForeignRecord
from watchman.uploads.upload import Kind, Notification, Source

#: Bytes of the longest line that ProFTPD writes; what is longer loses its end and its newline.
LONGEST = 4223

#: Our LogFormat, behind the token and its separator.
LOG_FORMAT = "%{epoch}|%P|%m|%s|%{transfer-status}|%{file-size}|%{protocol}|%a|%u|%f"

#: What it makes.
FIELDS = re.compile(
    r"(?a:(?P<epoch>\d{1,15})\|(?P<pid>\d{1,10})\|(?P<command>[^|\n]{1,40})\|(?P<status>\d{3}|-)\|"
    r"(?P<transfer>[a-z-]{1,20})\|(?P<size>\d{1,19}|-)\|(?P<protocol>[a-z0-9-]{1,20})\|"
    r"(?P<client>(?=[^|]*[.:])[0-9A-Za-z.:_%-]{1,255})\|(?P<user>[^\n]{0,255}?)\|)"
    r"(?P<path>/[^\n\0]*(?s:\n.*)?|-)\n",
)

STORES = frozenset({"STOR", "APPE", "STOU"})

#: Replies to a transfer that ProFTPD refused before it opened the file, see RFC 959: there is no
#: right, a filter, an overwrite that is not allowed; or the command is wrong.
REFUSALS = frozenset({"501", "502", "503", "504", "530", "532", "550", "553"})

#: Why a line is refused of which a part may belong to the user's name or to the path.
AMBIGUOUS = "whose user name may hold part of its path"

#: Renames begun and not ended that are remembered: a client may leave it at RNFR.
RENAMING = 1_000


class Record(NamedTuple):
    """What one write of ProFTPD's says: when (epoch), a command, its result, and the path."""

    at: int
    pid: str
    command: str
    status: str
    transfer: str
    size: int | None
    protocol: str
    client: str
    user: str
    path: str


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
    line = piece[len(token) : LONGEST]
    end = line.rfind(b"\n") + 1
    if not end:
        raise ForeignRecord("over-long" if len(piece) >= LONGEST else "cut short")
    # Decoded once: this is done for each line.
    match = FIELDS.fullmatch(os.fsdecode(line[:end]))
    if match is None:
        raise ForeignRecord("not in our LogFormat")
    at, pid, command, status, transfer, size, protocol, client, user, path = match.groups()
    number = int(size) if size != "-" else None
    return Record(int(at), pid, command, status, transfer, number, protocol, client, user, path)


def check(path: str) -> None:
    """Raise ForeignRecord if part of a path may be the user's name, which may hold a `|`.

    One in a directory that is there is right, no user's name makes one. Other readings are not
    tried: whoever makes directories of such names could speak of another's file.
    """
    if "|/" in path and not os.path.isdir(os.path.dirname(path)):
        raise ForeignRecord(AMBIGUOUS)


def whole(path: str) -> str:
    """Return a path without what another program has written behind it.

    ProFTPD does not escape newlines in names, so lines that follow may be either. The disk knows:
    the longest that is there. Who could forge one by a name may also write to its directory.
    """
    found = path
    while "\n" in found:
        if os.path.lexists(found):
            return found
        found = found.rpartition("\n")[0]
    if found == path or os.path.lexists(found):
        return found
    # No name holds a NUL, but a block of them is what a power failure may leave.
    return found if "\0" in path else path


class Interpreter:
    """Turns the records of one log into notifications."""

    def __init__(self) -> None:
        #: By pid, what RNFR has named: RNTO comes next.
        self._renaming: dict[str, str] = {}

    def notification(self, record: Record, path: str) -> Notification | None:
        """Return what a record says of the file at `path`; None where it says nothing of any."""
        if path == "-":
            return None
        good = record.status == "-" or record.status.startswith("2")
        kind, old, reason, perhaps = Kind.COMPLETED, "", "", False
        if record.command == "RNFR":
            self._renaming[record.pid] = path
            if len(self._renaming) > RENAMING:
                del self._renaming[next(iter(self._renaming))]
            return None
        if record.command == "RNTO":
            old = self._renaming.pop(record.pid, "")
            if not good or not old:
                return None
            kind = Kind.RENAMED
        elif record.command not in STORES:
            return None
        elif not good or record.transfer != "success":
            kind, reason = Kind.FAILED, f"ProFTPD logged {record.status} {record.transfer}"
            # 552 is too large. SFTP has one status for all.
            perhaps = record.status.startswith("5") and record.status != "552"
            perhaps |= record.protocol in ("sftp", "scp") and record.status == "451"
        return Notification(
            kind,
            path,
            Source.LOG,
            old_path=old,
            user=record.user,
            client=record.client,
            protocol=record.protocol,
            size=record.size,
            session=f"{record.pid}.",
            reason=reason,
            refused=kind is Kind.FAILED and record.status in REFUSALS,
            perhaps_refused=perhaps,
            at=record.at,
        )
