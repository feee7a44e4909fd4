"""Values: what a source says of a path, what a file looked like, what became of it.

Tuples, for some are made of each event, file and upload: that takes half the time of a frozen
dataclass, and to replace a field a tenth.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self

from watchman.uploads.outcome import Outcome


class Source(StrEnum):
    """Who spoke of a path."""

    HOOK = "hook"
    LOG = "log"
    INOTIFY = "inotify"
    SCAN = "scan"
    RESUBMIT = "resubmit"


#: Sources that tell whether ProFTPD has received a file whole.
PROFTPD = frozenset({Source.HOOK, Source.LOG})


class Kind(StrEnum):
    """What a notification says has happened to its path."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    RENAMED = "renamed"
    ENDED = "ended"


class State(StrEnum):
    """Where an upload stands, as the journal and `watchman queue` spell it."""

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
    """An outcome with its upload id (OK, DUPLICATE) or its reason (IGNORED, ERROR)."""

    outcome: Outcome
    detail: str = ""


#: Takes the answer to a notification; called in the dispatcher's thread.
Respond = Callable[[Answer], None]


def nobody(_: Answer) -> None:
    """Answer a source that does not ask."""


class Notification(NamedTuple):
    """What a source says of a path: a hint, the file itself is looked at.

    `path` is absolute, from `os.fsdecode`. `old_path` is where a RENAMED file or directory came
    from. `size` in bytes is what ProFTPD says the file holds. What FAILED was `refused` if it never
    came to open the file, and `perhaps_refused` if it may never have. `appeared` says that the path
    is new, which tells nothing of a write, nor of an end of it; `closed` that somebody closed the
    file who had it open for writing. `resubmit_as` and `same_id` are watchman-send's `--as` and
    `--same-id`; `old_id` is the upload id that the latter found. For `patience` seconds somebody
    else may know better. `at` is when ProFTPD wrote a line of its log (epoch, whole seconds), 0 if
    it did not. `uid` is that of the process that spoke on the socket, and `groups` are all of its
    groups, None for who may speak of any file. `owner` is the uid of the file's as a scan saw it.

    A tuple, for the watcher makes one of each file: that takes a quarter of the time of a frozen
    dataclass.
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

        The kernel sets mtime and ctime together at a write: an mtime beyond ctime, or not beyond
        the ctime seen then, was set by utimensat(2) and says nothing of a write.
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

    `options` are those of `[task:...]` that `send_task` takes, typed (`queue`, `priority`, ...).
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
        return cls(**values)


class Upload(NamedTuple):
    """An accepted file, from the journal to done.

    `id` is the upload id and the task id. `path` is where the file lies now, `original` the path it
    was uploaded as. `accepted` in seconds since the epoch. `task` is None for a file that is moved
    and matches no task. `move` names the `[move:...]` section it falls under, and `destination` is
    where it goes; `moved_from` and `source_state` are where and what it was before it was moved.
    `sample` is that of its content, 0 if it could not be read. `root` is the root of its watch as
    it was when the file was seen there, by device and inode; `owner` the file's owner and group as
    it was accepted. `position` is where the journal keeps its record, -1 before that.
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
    position: int = -1

    @property
    def source_path(self) -> str:
        """Where it was found, also after it was moved; `original` may be what an operator said."""
        return self.moved_from or self.path

    @property
    def owned_by(self) -> int | None:
        """The uid of its file's owner as it was accepted; None if it was not written down."""
        return self.owner[0] if self.owner is not None else None

    @property
    def is_copied(self) -> bool:
        """Whether it was moved across filesystems, so that two files may be there yet."""
        before = self.source_state
        return before is not None and not before.is_same_file(self.state)

    def at(self, position: int) -> Self:
        return self._replace(position=position)

    def encode(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "id": self.id,
            "watch": self.watch,
            "path": self.path,
            "original": self.original,
            "state": self.state.encode(),
            "source": self.source.value,
            "accepted": self.accepted,
            "task": self.task.encode() if self.task else None,
        }
        for name in ("user", "client", "protocol", "move", "destination", "moved_from"):
            if getattr(self, name):
                values[name] = getattr(self, name)
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
            watch=values["watch"],
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
            position=position,
        )


class Report(NamedTuple):
    """What a sink made of an upload that it took: MOVED or DONE, FAILED, or DEFERRED to be taken
    again; or what it found out about the file.

    `lane` names what a deferred upload is held up by, and is to be left alone for `delay` seconds:
    an exchange and routing key of its broker, or with "" the broker as a whole.
    """

    upload: Upload
    state: State
    reason: str = ""
    lane: str = ""
    delay: float = 0.0
