"""The store of what is begun and done: one sqlite file, for all workers' processes of a host."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

#: Seconds that another process may take to write; each holds the file for milliseconds.
BUSY = 60.0

#: Seconds between two looks whether another process has finished the same upload.
PAUSE = 0.2

#: Old ids that go with each new one: more than come, so that the store stays bounded.
FORGOTTEN = 10

_TABLE = """
create table if not exists done (
    id text primary key, at real not null,
    folder text not null, inode integer, size integer, mtime integer
) without rowid;
create index if not exists done_at on done (at);
create table if not exists begun (
    id text primary key, at real not null, times integer not null
) without rowid;
create index if not exists begun_at on begun (at);
"""


class Mark(NamedTuple):
    """By what a file is known again: it is the same if nobody has written it since.

    Without the device, whose number a mount may change.
    """

    inode: int
    size: int
    mtime: int

    @classmethod
    def of(cls, status: os.stat_result) -> Mark:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class Done(NamedTuple):
    """The end of an upload's work: the folder for its file, empty for none, and which file."""

    folder: str
    mark: Mark | None


class Store:
    """Remembers the ids that are done for `keep` seconds. Holds nothing open: workers fork."""

    def __init__(self, path: str, keep: float) -> None:
        self._path = path
        self._keep = keep

    @contextlib.contextmanager
    def holding(self, upload_id: str) -> Iterator[None]:
        """Wait until nobody else on this host works on that upload, and keep others waiting.

        Two copies of a message often arrive together, at two processes. The kernel lets go of the
        lock when the process dies.
        """
        fd = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Not F_OFD_SETLKW: a pool of green threads would wait for itself for ever.
            while not _lock(fd, upload_id):
                time.sleep(PAUSE)
            yield
        finally:
            os.close(fd)

    def find(self, upload_id: str) -> Done | None:
        with self._open() as database:
            row = database.execute(
                "select folder, inode, size, mtime from done where id = ?", (upload_id,)
            ).fetchone()
        if row is None:
            return None
        folder, *mark = row
        return Done(folder, None if mark[0] is None else Mark(*mark))

    def begin(self, upload_id: str) -> int:
        """Write down that the work begins; return how often it has, and nobody said how it ended.

        Each of those before has ended with its process.
        """
        with self._open() as database:
            [times] = database.execute(
                "insert into begun values (?, ?, 1)"
                " on conflict (id) do update set times = times + 1 returning times",
                (upload_id, time.time()),
            ).fetchone()
        return int(times)

    def end(self, upload_id: str) -> None:
        """Write down that the work has ended without being done."""
        with self._open() as database:
            database.execute("delete from begun where id = ?", (upload_id,))

    def record(self, upload_id: str, done: Done) -> None:
        """Write down that the work is done; it is on disk on return. Old ids go."""
        now = time.time()
        mark = done.mark or (None, None, None)
        with self._open() as database:
            database.execute(
                "insert or replace into done values (?, ?, ?, ?, ?, ?)",
                (upload_id, now, done.folder, *mark),
            )
            database.execute("delete from begun where id = ?", (upload_id,))
            for table in ("done", "begun"):
                database.execute(
                    f"delete from {table} where id in"
                    f" (select id from {table} where at < ? order by at limit ?)",
                    (now - self._keep, FORGOTTEN),
                )

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose transaction is committed at the end of the block."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=BUSY)) as database:
            database.execute("pragma synchronous = full")
            database.executescript(_TABLE)
            with database:
                yield database


def _lock(fd: int, upload_id: str) -> bool:
    """Lock the byte of a file that stands for an upload; False if somebody else has it."""
    digest = hashlib.blake2b(upload_id.encode(errors="surrogateescape"), digest_size=8).digest()
    offset = int.from_bytes(digest) >> 2
    # struct flock of fcntl(2), whose lock belongs to the open file: threads keep each other out.
    lock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError:
        return False
    return True
