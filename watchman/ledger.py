"""What has been decided about the files that stay in a watch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from watchman.segments import fsync_directory
from watchman.upload import FileState

logger = logging.getLogger(__name__)

#: Decisions kept in memory before they are merged into the file.
DELTA = 50_000

#: Key, size with EXISTING, ctime in nanoseconds. Big-endian, so that bytes sort as keys do.
ENTRY = struct.Struct(">QQq")

#: Set in the size of a file that was there before its watch: nobody decided on a write of it.
EXISTING = 1 << 63

MAGIC = "watchman ledger 1"


class Decision(NamedTuple):
    """The size in bytes and ctime in nanoseconds of a file when it was decided about."""

    size: int
    ctime: int
    existing: bool = False


#: In memory for a file in the ledger's file about which nothing is decided any more.
FORGOTTEN = Decision(0, 0)


def key(subpath: str, inode: int) -> int:
    """Return the 64-bit key of a file.

    Of its name only, not of its directory: to rename a directory changes nothing of the files in
    it, not even their ctime.
    """
    name = os.fsencode(subpath.rpartition("/")[2])
    digest = hashlib.blake2b(inode.to_bytes(8, "big") + name, digest_size=8).digest()
    return int.from_bytes(digest, "big")


class Ledger:
    """The decisions of one watch: a sorted file of 24 bytes each, and the newest in memory.

    Written by the dispatcher, asked by the scanner too. What is not in the file yet stands in the
    journal; `flush` says when it need not any more.
    """

    def __init__(self, path: str, watch_path: str) -> None:
        self._path = path
        self._watch_path = watch_path
        #: Guards everything below: the scanner asks while the dispatcher decides.
        self._lock = threading.RLock()
        self._delta: dict[int, Decision] = {}
        self._map: mmap.mmap | None = None
        self._start = 0
        self._count = 0
        #: Files without a decision whose ctime is before this (ns) were there before the watch.
        self._baseline = 0
        #: Counts what makes a scan under way unfit to prune: a directory may have moved past it.
        self._disturbances = 0
        self._flushes = 0
        #: The inode of the watch's root when a whole scan last saw files there. Not its device:
        #: those are numbered anew at a boot.
        self._root = 0

    def open(self) -> bool:
        """Read the file; return False where there is none yet: the watch's first sight."""
        try:
            with open(self._path, "rb") as file:
                header = json.loads(file.readline())
                if header["magic"] != MAGIC or header["watch"] != self._watch_path:
                    raise ValueError(f"not the ledger of {self._watch_path!r}")
                self._adopt(file, file.tell())
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError) as e:
            aside = self._path + ".bad"
            os.replace(self._path, aside)
            logger.error("Ledger set aside as %r, it cannot be read: %s.", aside, e)
            return False
        self._baseline = header["baseline"]
        self._root = header["root"]
        return True

    def begin(self, baseline: int) -> None:
        """From now on take a file without a decision and with a ctime before `baseline` (ns) as
        one that needs none. Durable on return; over when a whole scan has written them down.
        """
        with self._lock:
            self._baseline = baseline
            self._write(self._merged())

    def get(self, subpath: str, state: FileState) -> Decision | None:
        """Return the last decision about a file of that name and inode."""
        return self._get(key(subpath, state.inode), state)

    def _get(self, wanted: int, state: FileState) -> Decision | None:
        with self._lock:
            decision = self._delta.get(wanted) or self._find(wanted)
            if decision is FORGOTTEN:
                decision = None
            if decision is None and state.ctime < self._baseline:
                decision = Decision(state.size, state.ctime, existing=True)
        return decision

    def put(self, subpath: str, state: FileState) -> None:
        """Write a decision down, in memory."""
        with self._lock:
            self._delta[key(subpath, state.inode)] = Decision(state.size, state.ctime)

    def restore(self, subpath: str, inode: int, decision: Decision | None) -> None:
        """Undo a `put`: what it replaced is the last decision again."""
        wanted = key(subpath, inode)
        with self._lock:
            if decision is not None:
                self._delta[wanted] = decision
            else:
                # Nothing is merged into the file before the journal has it: `put` undone in time.
                self._delta.pop(wanted, None)

    def forget(self, subpath: str, inode: int) -> None:
        """Drop the decision about a file that has left: the next one may well have its inode."""
        wanted = key(subpath, inode)
        with self._lock:
            self._delta.pop(wanted, None)
            if self._find(wanted) is not None:
                self._delta[wanted] = FORGOTTEN

    def known(self, subpath: str, state: FileState) -> bool:
        """Whether a scan may pass a file over: it was decided about and not written since.

        A scan does not take another ctime alone for a write: chmod(1) and hard links set it too.
        """
        return self._known(key(subpath, state.inode), state) is not None

    def _known(self, wanted: int, state: FileState) -> Decision | None:
        decision = self._get(wanted, state)
        if decision is None or state.rewritten_since(decision.size, decision.ctime):
            return None
        return decision

    def disturb(self) -> None:
        """Tell that a directory moved: a scan under way may have missed it and must not prune."""
        with self._lock:
            self._disturbances += 1

    def sweep(self) -> Sweep:
        """Begin a scan of the whole watch."""
        with self._lock:
            return Sweep(self, self._disturbances, self._flushes, _inode(self._watch_path))

    def full(self) -> bool:
        """Whether enough has come together for a `flush`."""
        return len(self._delta) >= DELTA

    def flush(self) -> None:
        """Merge what is in memory into the file. Durable on return, or OSError."""
        with self._lock:
            if self._delta or self._map is None:
                self._write(self._merged())
                self._delta.clear()
                self._flushes += 1

    def finish(self, seen: Sequence[bytearray], disturbances: int, flushes: int, root: int) -> None:
        """Make the file hold what a whole scan has `seen`, and what came since; or OSError."""
        with self._lock:
            if disturbances != self._disturbances or root != _inode(self._watch_path):
                return
            before = self._baseline, self._root
            # Decisions made and flushed during the scan stand in the file only: keep it all. So
            # too when this is another root than before, as an empty mount point.
            prune = flushes == self._flushes and root == self._root
            self._baseline = 0
            if any(seen):
                self._root = root
            try:
                self._write(self._merged(seen, prune=prune))
            except OSError:
                self._baseline, self._root = before
                raise

    def close(self) -> None:
        """Write everything down and let go of the file."""
        with self._lock:
            self.flush()
            if self._map is not None:
                self._map.close()
                self._map = None
                self._count = 0

    def _find(self, wanted: int) -> Decision | None:
        """Search by interpolation: keys are hashes, so a key tells where about it stands."""
        entries, low, high = self._map, 0, self._count - 1
        first, last = 0, (1 << 64) - 1
        while entries is not None and low <= high and first <= wanted <= last:
            middle = low + (wanted - first) * (high - low) // max(last - first, 1)
            found, size, ctime = ENTRY.unpack_from(entries, self._start + middle * ENTRY.size)
            if found == wanted:
                return Decision(size & ~EXISTING, ctime, bool(size & EXISTING))
            if found < wanted:
                low, first = middle + 1, found + 1
            else:
                high, last = middle - 1, found - 1
        return None

    def _merged(self, seen: Sequence[bytearray] = (), *, prune: bool = False) -> Iterator[bytes]:
        """Yield file, `seen` and memory together, sorted, in parts by the key's first byte.

        With `prune` what stands in the file alone is left out, and memory, which stays.
        """
        parts: list[dict[bytes, bytes]] = [{} for _ in range(256)]
        for wanted, decision in self._delta.items() if not prune else ():
            entry = pack(wanted, decision)
            parts[entry[0]][entry[:8]] = b"" if decision is FORGOTTEN else entry
        end = self._start + self._count * ENTRY.size if not prune else 0
        at = self._start
        for first, newest in enumerate(parts):
            entries = {}
            while self._map is not None and at < end and self._map[at] == first:
                entries[self._map[at : at + 8]] = self._map[at : at + ENTRY.size]
                at += ENTRY.size
            if seen:
                entries |= _by_key(bytes(seen[first]))
            yield b"".join(sorted((entries | newest).values()))

    def _write(self, entries: Iterator[bytes]) -> None:
        """Replace the file: written and synced under another name, then renamed."""
        temporary = self._path + ".new"
        header = {
            "magic": MAGIC,
            "watch": self._watch_path,
            "baseline": self._baseline,
            "root": self._root,
        }
        try:
            with open(temporary, "w+b", opener=_owner_only) as file:
                file.write(json.dumps(header).encode("ascii") + b"\n")
                start = file.tell()
                for part in entries:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                os.rename(temporary, self._path)
                fsync_directory(os.path.dirname(self._path))
                self._adopt(file, start)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _adopt(self, file: BinaryIO, start: int) -> None:
        if self._map is not None:
            self._map.close()
        self._start = start
        size = os.fstat(file.fileno()).st_size
        if (size - start) % ENTRY.size:
            raise ValueError("it ends within an entry")
        self._count = (size - start) // ENTRY.size
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Sweep:
    """One scan of a whole watch: what it sees unchanged is what the ledger keeps."""

    def __init__(self, ledger: Ledger, disturbances: int, flushes: int, root: int) -> None:
        self._ledger = ledger
        self._began = disturbances, flushes, root
        self._seen = [bytearray() for _ in range(256)]

    def known(self, subpath: str, state: FileState) -> bool:
        """As `Ledger.known`, and keep the file's decision."""
        wanted = key(subpath, state.inode)
        decision = self._ledger._known(wanted, state)
        if decision is None:
            return False
        self._seen[wanted >> 56] += pack(wanted, decision)
        return True

    def finish(self, *, complete: bool) -> None:
        """Drop the decisions about files that a complete scan did not see."""
        if complete:
            try:
                self._ledger.finish(self._seen, *self._began)
            except OSError as e:
                logger.warning("Ledger kept as it was, it cannot be written: %s.", e.strerror)


def pack(wanted: int, decision: Decision) -> bytes:
    """Return the entry of a decision."""
    return ENTRY.pack(wanted, decision.size | decision.existing << 63, decision.ctime)


def _by_key(entries: bytes) -> dict[bytes, bytes]:
    """Return entries by key: two hard links of one name, in two directories, share one."""
    starts = range(0, len(entries), ENTRY.size)
    return {entries[at : at + 8]: entries[at : at + ENTRY.size] for at in starts}


def _inode(path: str) -> int:
    """Return the inode of a directory, 0 where there is none."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
