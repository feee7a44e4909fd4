"""The store of what is begun and done: one sqlite file for all worker processes of a host."""

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

#: Seconds to wait while other processes write. Each holds the file for milliseconds.
BUSY = 60.0

#: Seconds between two looks whether another process has finished the same upload.
PAUSE = 0.2

#: Old ids that are deleted with each new one. More go than come, so the store stays bounded.
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
    """The mark by which a file is recognized. It stays the same until somebody writes the file.

    It has no device number, because a mount may change that.
    """

    inode: int
    size: int
    mtime: int

    @classmethod
    def of(cls, status: os.stat_result) -> Mark:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class Done(NamedTuple):
    """How an upload's work ended: the folder for its file, "" for none, and that file's mark."""

    folder: str
    mark: Mark | None


class Store:
    """Remembers done ids for `keep` seconds. It keeps no file open, because workers fork."""

    def __init__(self, path: str, keep: float) -> None:
        self._path = path
        self._keep = keep

    @contextlib.contextmanager
    def holding(self, upload_id: str) -> Iterator[None]:
        """Wait until nobody else on this host works on an upload, then keep others waiting.

        Two copies of a message often arrive together, at two processes. The kernel releases the
        lock if our process dies.
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
        """Write down that the work begins. Return how often it has begun without a known end.

        This time is counted too. Each time before, the process died.
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
        """Write down that the work is done; durable on return. Delete some old ids."""
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
        """Yield a connection. Its transaction is committed at the end of the block."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=BUSY)) as database:
            database.execute("pragma synchronous = full")
            database.executescript(_TABLE)
            with database:
                yield database


def _lock(fd: int, upload_id: str) -> bool:
    """Lock the byte of a file that stands for an upload. Return False if it is locked already."""
    digest = hashlib.blake2b(upload_id.encode(errors="surrogateescape"), digest_size=8).digest()
    offset = int.from_bytes(digest) >> 2
    # struct flock of fcntl(2). F_OFD_SETLK locks for an open file, not for a process. So threads
    # of one process keep each other out too.
    lock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError:
        return False
    return True
