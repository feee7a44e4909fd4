"""The records of ProFTPD's transfer log: where each begins and ends, and what it says."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from watchman.errors import ForeignRecord
from watchman.uploads.upload import Kind, Notification, Source

#: Bytes of the longest line that ProFTPD writes. It cuts a longer one, which loses its newline.
LONGEST = 4223

#: Our LogFormat, behind the token and its separator.
LOG_FORMAT = "%{epoch}|%P|%m|%s|%{transfer-status}|%{file-size}|%{protocol}|%a|%u|%f"

#: The lines that ProFTPD writes with it. The path comes last and takes the rest, for ProFTPD
#: escapes nothing: a name can hold a `|`, and over SFTP a newline.
FIELDS = re.compile(
    r"(?a:(?P<epoch>\d{1,15})\|(?P<pid>\d{1,10})\|(?P<command>[^|\n]{1,40})\|(?P<status>\d{3}|-)\|"
    r"(?P<transfer>[a-z-]{1,20})\|(?P<size>\d{1,19}|-)\|(?P<protocol>[a-z0-9-]{1,20})\|"
    r"(?P<client>(?=[^|]*[.:])[0-9A-Za-z.:_%-]{1,255})\|(?P<user>[^\n]{0,255}?)\|)"
    r"(?P<path>/[^\n\0]*(?s:\n.*)?|-)\n",
)

#: Commands that upload a file, see RFC 959; mod_sftp logs SFTP and scp under the same names.
STORES = frozenset({"STOR", "APPE", "STOU"})

#: Replies of ProFTPD to a transfer that it refused before it opened the file, see RFC 959: the
#: command was wrong, a right was missing, a filter forbade the name, or it may not be overwritten.
REFUSALS = frozenset({"501", "502", "503", "504", "530", "532", "550", "553"})

#: Why a line is refused in which it is not clear where the user's name ends and the path begins.
AMBIGUOUS = "whose user name may hold part of its path"

#: RNFR commands that are remembered until their RNTO. A client may never send that.
RENAMING = 1_000


class Record(NamedTuple):
    """What ProFTPD wrote in one write(2): when (epoch), the command, its result, and the path."""

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
    """Cut what was appended to a log into pieces; return them, and how many bytes they have.

    Each piece begins with the token, except one that ProFTPD did not write. ProFTPD writes a record
    in one write(2), so a piece ends where the next token begins, even if the record lost its
    newline or has newlines in its path. A last piece that may not be whole yet is left for the next
    time; with `more`, that is any piece to which the bytes that follow may still belong.
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

    Its path has all lines of the piece that follow; `whole` takes away what is not part of it.
    """
    if not piece.startswith(token):
        raise ForeignRecord("without our token")
    line = piece[len(token) : LONGEST]
    end = line.rfind(b"\n") + 1
    if not end:
        raise ForeignRecord("over-long" if len(piece) >= LONGEST else "cut short")
    # Decoded as a whole and once, because this runs for each line.
    match = FIELDS.fullmatch(os.fsdecode(line[:end]))
    if match is None:
        raise ForeignRecord("not in our LogFormat")
    at, pid, command, status, transfer, size, protocol, client, user, path = match.groups()
    number = int(size) if size != "-" else None
    return Record(int(at), pid, command, status, transfer, number, protocol, client, user, path)


def check(path: str) -> None:
    """Raise ForeignRecord if part of the path may belong to the user's name, which may hold a `|`.

    If the path's directory exists, the path is right: a user name does not create directories.
    Other places to split the line are not tried. Otherwise a user who makes directories with such
    names could have us believe something about another user's file.
    """
    if "|/" in path and not os.path.isdir(os.path.dirname(path)):
        raise ForeignRecord(AMBIGUOUS)


def whole(path: str) -> str:
    """Return a path without lines that another program has written behind it.

    ProFTPD does not escape newlines in names, so a line that follows may be part of the name or
    not. The longest path that exists on disk is taken. A user could deceive us only by making a
    file of that name, and then he may write to its directory anyway.
    """
    found = path
    while "\n" in found:
        if os.path.lexists(found):
            return found
        found = found.rpartition("\n")[0]
    if found == path or os.path.lexists(found):
        return found
    # A name cannot hold a NUL, but a power failure may leave a block of them in the log.
    return found if "\0" in path else path


class Interpreter:
    """Turns the records of one log into notifications.

    It has a memory, because a rename is two records of one session: RNFR and then RNTO.
    """

    def __init__(self) -> None:
        #: By pid of the session, the path of an RNFR whose RNTO has not come yet.
        self._renaming: dict[str, str] = {}

    def notification(self, record: Record, path: str) -> Notification | None:
        """Return what a record says about the file at `path`; None if it says nothing."""
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
            # 552 says that the file became too large, so it was opened. mod_sftp logs 451 for every
            # failure, so that one tells nothing.
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
