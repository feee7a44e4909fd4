"""The requests of the socket: the fields of each, who may send it, and what it becomes."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from watchman.errors import RequestRefused
from watchman.sources.socket.wire import REQUEST_LIMIT, decode
from watchman.uploads.session import session_in
from watchman.uploads.text import shorten
from watchman.uploads.upload import Kind, Notification, Source

#: Bytes of the longest path that a system call takes, see PATH_MAX in limits.h.
PATH_LIMIT = 4095

#: The size of the largest file, see loff_t in lseek64(3).
SIZE_LIMIT = 2**63 - 1


Read = Callable[[str, str], str]


def _absolute(key: str, path: str) -> str:
    """Return an absolute path without empty components and `.`.

    A `..` stays: what it means depends on symlinks, so the kernel resolves it later.
    """
    if not path.startswith("/"):
        raise RequestRefused(f"{key} {shorten(path)} is not absolute; it begins with /")
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise RequestRefused(f"{key} is longer than {PATH_LIMIT} bytes, which no file's path is")
    return "/" + "/".join(name for name in path.split("/") if name not in ("", "."))


def _number(key: str, value: str) -> str:
    """Return a number in ASCII digits that is not larger than a file's size may be."""
    is_number = value.isascii() and value.isdecimal() and len(value) <= len(str(SIZE_LIMIT))
    if not is_number or int(value) > SIZE_LIMIT:
        raise RequestRefused(f"{key} {shorten(value)} is not a number from 0 to {SIZE_LIMIT}")
    return value


def _text(limit: int) -> Read:
    def read(key: str, value: str) -> str:
        if len(os.fsencode(value)) > limit:
            raise RequestRefused(f"{key} is longer than {limit} bytes")
        return value

    return read


def _yes(key: str, value: str) -> str:
    if value != "yes":
        raise RequestRefused(f"{key} {shorten(value)} can only be yes")
    return value


#: By field, the function that reads its value: it returns the value or raises RequestRefused.
FIELDS: Mapping[str, Read] = {
    **dict.fromkeys(("path", "as", "from"), _absolute),
    **dict.fromkeys(("size", "limit"), _number),
    **dict.fromkeys(("same_id", "all", "failed", "deferred"), _yes),
    # ProFTPD takes no longer user names, and DNS has no longer host names (RFC 1035, 2.3.4).
    **dict.fromkeys(("user", "client", "broker", "name", "watch", "task"), _text(256)),
    **dict.fromkeys(("protocol", "id", "what"), _text(64)),
    "session": _text(128),
    "reason": _text(1024),
    "pattern": _text(PATH_LIMIT),
    # As many ids, or paths, as one request can hold.
    **dict.fromkeys(("ids", "open"), _text(REQUEST_LIMIT)),
}


#: Fields with which ProFTPD's hook says whose transfer it is.
ABOUT = ("user", "client", "protocol")


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the table below. Without a `kind` (of notification) it is a query."""

    required: tuple[str, ...] = ()
    #: At least one of these is needed.
    either: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    admins_only: bool = True
    kind: Kind | None = None


def _upload(kind: Kind, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> Event:
    return Event(required, optional=optional, admins_only=False, kind=kind)


#: Fields that select uploads: those that pass every filter. `ids` names them one by one instead,
#: separated by blanks, each by any beginning that no other has.
FILTERS = ("failed", "deferred", "broker", "pattern")

EVENTS: Mapping[str, Event] = {
    # The path may be empty: STOU and refused transfers have no name yet, and mod_exec has none when
    # an SFTP session transfers two files at once. Such a request says nothing about any file.
    # A hook that gives up sends `started` a second time, then with its session.
    "started": _upload(Kind.STARTED, optional=("path", "session", *ABOUT)),
    "completed": _upload(Kind.COMPLETED, optional=("path", "size", *ABOUT)),
    "failed": _upload(Kind.FAILED, optional=("path", "reason", *ABOUT)),
    "renamed": _upload(Kind.RENAMED, required=("from", "path"), optional=ABOUT),
    "ended": _upload(Kind.ENDED, optional=ABOUT),
    "resubmit": Event(required=("path",), optional=("as", "same_id"), kind=Kind.COMPLETED),
    "status": Event(),
    # `open` names files that are open for writing, as a list in JSON.
    "queue": Event(optional=("limit", "open", "ids", *FILTERS)),
    # The same in groups, each of what has the same state, place and reason.
    "groups": Event(optional=("open", "ids", *FILTERS)),
    "tail": Event(optional=("pattern", "watch", "task", "user")),
    "explain": Event(either=("path", "id")),
    "retry": Event(either=("ids", "all", *FILTERS)),
    "drop": Event(either=("ids", *FILTERS)),
    # What a retry or drop would do. An event of its own: fields that a daemon does not know it
    # ignores, and then would do it.
    "rehearse": Event(required=("what",), either=("ids", "all", *FILTERS)),
    "pause": Event(optional=("name",)),
    "resume": Event(optional=("name",)),
    "reload": Event(),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is complete and well-formed. The peer's right to send it is checked later."""

    name: str
    event: Event
    fields: Mapping[str, str]

    @classmethod
    def decode(cls, request: bytes) -> "Request":
        """Read a request; raises RequestRefused, which says what would be right."""
        given = decode(request)
        name = given.get("event", "")
        if not name:
            raise RequestRefused(f"field event is missing; it is one of {', '.join(EVENTS)}")
        if name not in EVENTS:
            close = get_close_matches(name[:80], EVENTS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(EVENTS)}"
            raise RequestRefused(f"unknown event {shorten(name)}; {hint}")
        event = EVENTS[name]
        fields = {}
        for key in (*event.required, *event.either, *event.optional):
            value = given.get(key, "")
            if value:
                value = FIELDS[key](key, value)
            elif key in event.required:
                raise RequestRefused(f"{name} needs a field {key}, which is missing or empty")
            if value:
                fields[key] = value
        if event.either and not fields.keys() & set(event.either):
            raise RequestRefused(f"{name} needs a field {' or '.join(event.either)}")
        return cls(name, event, fields)

    def notification(self) -> Notification | None:
        """Return the notification that it is; None for a query."""
        if self.event.kind is None:
            return None
        get = self.fields.get
        size = get("size")
        return Notification(
            self.event.kind,
            get("path", ""),
            Source.RESUBMIT if self.event.admins_only else Source.HOOK,
            old_path=get("from", ""),
            user=get("user", ""),
            client=get("client", ""),
            protocol=get("protocol", ""),
            size=None if size is None else int(size),
            reason=get("reason", ""),
            session=session_in(get("session", "")),
            resubmit_as=get("as", ""),
            same_id=get("same_id") == "yes",
        )
