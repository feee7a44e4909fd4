"""The values that are passed around: notifications, states of files, uploads and reports.

They are named tuples, because some are made for each event, file and upload. To make one takes a
quarter to half the time of a frozen dataclass, and to replace a field a tenth.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from watchman.uploads.outcome import Outcome


class Source(StrEnum):
    """Where a notification comes from."""

    HOOK = "hook"
    LOG = "log"
    INOTIFY = "inotify"
    SCAN = "scan"
    RESUBMIT = "resubmit"


#: Sources that know whether ProFTPD has received the whole file.
PROFTPD = frozenset({Source.HOOK, Source.LOG})


class Kind(StrEnum):
    """What a notification says has happened to its path."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    RENAMED = "renamed"
    ENDED = "ended"


class State(StrEnum):
    """The state of an upload, spelled as in the journal and in `watchman queue`."""

    NOTICED = "noticed"
    ACCEPTED = "accepted"
    MOVED = "moved"
    DONE = "done"
    DEFERRED = "deferred"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    RENAMED = "renamed"
    GONE = "gone"
    DROPPED = "dropped"


class Answer(NamedTuple):
    """An outcome, with the upload id if OK or DUPLICATE, or the reason if IGNORED or ERROR."""

    outcome: Outcome
    detail: str = ""


#: Is called with the answer to a notification, in the dispatcher's thread.
Respond = Callable[[Answer], None]


def nobody(_: Answer) -> None:
    """Discard the answer, for sources that do not wait for one."""


class Notification(NamedTuple):
    """What a source says about a path. It is only a hint: the judge looks at the file itself.

    `path` is absolute, from `os.fsdecode`.
    `old_path` is where a RENAMED file or directory was before.
    `user`, `client` and `protocol` are those of the FTP session, `session` is its process.
    `size` is how many bytes the file has, as ProFTPD says.
    `reason` says why a transfer FAILED.
    `refused` says that a FAILED transfer never opened the file, `perhaps_refused` that it may not
    have.
    `is_directory` says that what was RENAMED is a directory.
    `appeared` says that the path is new. It may have been written or not, and may still be.
    `closed` says that somebody closed the file who had it open for writing.
    `resubmit_as` and `same_id` are the options --as and --same-id of watchman-send; `old_id` is the
    upload id that was found for the latter.
    `patience` is for how many seconds better word may still come from another source.
    `at` is when ProFTPD wrote the line of its log (epoch, whole seconds), else 0.
    `uid` and `groups` are those of the process that sent it on the socket. `groups` is None if that
    process may speak of any file.
    `owner` is the uid of the file's owner, as a scan saw it.
    """

    kind: Kind
    path: str
    source: Source
    old_path: str = ""
    user: str = ""
    client: str = ""
    protocol: str = ""
    size: int | None = None
    session: str = ""
    reason: str = ""
    refused: bool = False
    perhaps_refused: bool = False
    is_directory: bool = False
    appeared: bool = False
    closed: bool = False
    resubmit_as: str = ""
    same_id: bool = False
    old_id: str = ""
    patience: float = 0.0
    at: float = 0.0
    uid: int | None = None
    groups: frozenset[int] | None = None
    owner: int | None = None


class FileState(NamedTuple):
    """A regular file as lstat(2) saw it; times in nanoseconds since the epoch."""

    device: int
    inode: int
    size: int
    ctime: int
    mtime: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Self:
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns, stat.st_mtime_ns)

    def is_same_file(self, other: FileState) -> bool:
        return (self.device, self.inode) == (other.device, other.inode)

    def rewritten_since(self, size: int, ctime: int) -> bool:
        """Whether this inode was written after it was seen with that size and ctime.

        A write sets mtime and ctime to the same moment. So if mtime is later than ctime, or not
        later than the old ctime, somebody has set it by utimensat(2), and it tells nothing about a
        write.
        """
        return self.size != size or ctime < self.mtime <= self.ctime

    def encode(self) -> list[int]:
        return list(self)

    @classmethod
    def decode(cls, values: list[int]) -> Self:
        return cls(*values)


@dataclass(frozen=True, slots=True)
class Task:
    """The Celery task of one upload, with every placeholder filled in.

    `options` are the options of `[task:...]` that `send_task` takes (`queue`, `priority`, ...),
    each with its type.
    """

    section: str
    broker: str
    name: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "broker": self.broker,
            "name": self.name,
            "args": self.args,
            "kwargs": self.kwargs,
            "options": self.options,
        }

    @classmethod
    def decode(cls, values: dict[str, Any]) -> Self:
        # Interned, since many uploads name the same section, and some are kept.
        return cls(**values | {"section": sys.intern(values["section"])})


class Upload(NamedTuple):
    """An accepted file, from its record in the journal until it is settled.

    `id` is the id of the upload and of its task.
    `path` is where the file is now, `original` the path as which it was uploaded.
    `accepted` is when it was accepted (epoch).
    `task` is None for a file that is moved and matches no task.
    `move` names its `[move:...]` section, and `destination` is where that takes it.
    `moved_from` and `source_state` are the file's path and state before it was moved.
    `root` is device and inode of the watch's root when the file was seen there.
    `sample` is the sample of its content, 0 if it could not be read.
    `owner` is the file's owner and group when it was accepted.
    `alarm_of` is for an alarm alone, see `[watchman] on_failed`: the id of the upload that failed.
    `position` is where the journal has its record, -1 before it is written.
    """

    id: str
    watch: str
    path: str
    original: str
    state: FileState
    source: Source
    accepted: float
    task: Task | None
    user: str = ""
    client: str = ""
    protocol: str = ""
    move: str = ""
    destination: str = ""
    moved_from: str = ""
    source_state: FileState | None = None
    root: tuple[int, int] | None = None
    sample: int = 0
    owner: tuple[int, int] | None = None
    alarm_of: str = ""
    position: int = -1

    @property
    def source_path(self) -> str:
        """Where the file was found, even if it was moved since.

        That need not be `original`, which an operator can choose by `watchman-send --as`.
        """
        return self.moved_from or self.path

    @property
    def owned_by(self) -> int | None:
        """The uid of the file's owner when it was accepted; None if an old record lacks it."""
        return self.owner[0] if self.owner is not None else None

    @property
    def is_copied(self) -> bool:
        """Whether it was moved by copying, so that its source may still be there."""
        before = self.source_state
        return before is not None and not before.is_same_file(self.state)

    def at(self, position: int) -> Self:
        # It is the last field. `_replace` would take four times as long, for every upload.
        return type(self)(*self[:-1], position)

    def encode(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "id": self.id,
            "watch": self.watch,
            "path": self.path,
            "original": self.original,
            "state": self.state.encode(),
            "source": str(self.source),
            "accepted": self.accepted,
            "task": self.task.encode() if self.task else None,
        }
        for name, value in (
            ("user", self.user),
            ("client", self.client),
            ("protocol", self.protocol),
            ("move", self.move),
            ("destination", self.destination),
            ("moved_from", self.moved_from),
            ("alarm_of", self.alarm_of),
        ):
            if value:
                values[name] = value
        if self.source_state is not None:
            values["source_state"] = self.source_state.encode()
        if self.root is not None:
            values["root"] = list(self.root)
        if self.sample:
            values["sample"] = self.sample
        if self.owner is not None:
            values["owner"] = list(self.owner)
        return values

    @classmethod
    def decode(cls, values: dict[str, Any], position: int = -1) -> Self:
        return cls(
            id=values["id"],
            watch=sys.intern(values["watch"]),
            path=values["path"],
            original=values["original"],
            state=FileState.decode(values["state"]),
            source=Source(values["source"]),
            accepted=values["accepted"],
            task=Task.decode(values["task"]) if values["task"] else None,
            user=values.get("user", ""),
            client=values.get("client", ""),
            protocol=values.get("protocol", ""),
            move=values.get("move", ""),
            destination=values.get("destination", ""),
            moved_from=values.get("moved_from", ""),
            source_state=(
                FileState.decode(values["source_state"]) if "source_state" in values else None
            ),
            root=tuple(values["root"]) if "root" in values else None,
            sample=values.get("sample", 0),
            owner=tuple(values["owner"]) if "owner" in values else None,
            alarm_of=values.get("alarm_of", ""),
            position=position,
        )


#: Of an upload that no task was sent for.
NOT_SENT: Mapping[str, str] = MappingProxyType({})


class Report(NamedTuple):
    """What a sink reports about an upload that it took.

    `state` is MOVED or DONE, FAILED, DEFERRED if it must be taken again, or what was found out
    about its file. `lane` names what holds a DEFERRED upload up, such as an exchange and routing
    key of its broker; "" is the broker as a whole. The lane is left alone for `delay` seconds.
    `tried` says that the broker or the move was tried with this upload, and `reason` is the answer.
    `sent` has where the task of an upload that is DONE went, and the answer to that.
    """

    upload: Upload
    state: State
    reason: str = ""
    lane: str = ""
    delay: float = 0.0
    tried: bool = False
    sent: Mapping[str, str] = NOT_SENT
