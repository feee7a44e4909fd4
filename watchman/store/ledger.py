"""A watch's ledger: the decisions about the files that stay in it.

The module is long because it also has the sweep, by which a scan of the whole watch drops decisions
about files that are gone: both work on the same file, under the same locks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from watchman.store.decision import (
    EXISTING,
    FORGOTTEN,
    SIZE,
    WAITING,
    Decision,
    key,
    name_key,
    pack,
    unpack,
)
from watchman.store.ledgerfile import ENTRY, KEY, VALUES, Changes, Draft, LedgerFile
from watchman.uploads.filesystems import OWN, Filesystems
from watchman.uploads.upload import FileState

logger = logging.getLogger(__name__)

#: Decisions kept in memory, some 250 bytes each, before they are merged into the file.
DELTA = 20_000

#: Seconds for which the decisions about an earlier root's files are kept after another directory
#: took its place. It is for a disk that is away for a while.
KEEP = 30 * 86400.0


class Ledger:
    """The decisions of one watch: a sorted file with 36 bytes for each, and the newest in memory.

    The dispatcher writes it, and the scanner asks it, too. The journal must keep the decisions that
    are in memory until `flush` has put them into the file. The class is long because one lock
    guards all of it.
    """

    def __init__(
        self, path: str, watch_path: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._path = path
        #: The file of decisions about an earlier root's files, which a scan of the present root did
        #: not see. The earlier root may come back, such as a disk that was unmounted.
        self._away = path + ".away"
        self.watch_path = watch_path
        self.filesystems = Filesystems(watch_path)
        #: Whether this ledger is new, and has yet to `adopt` what other ledgers know of its files.
        self.inherits = False
        #: Guards what is below. It is held for a moment only, because the scanner asks while the
        #: dispatcher decides, and a hook may be waiting for that decision.
        self._lock = threading.RLock()
        #: Held while the file is being replaced.
        self._writing = threading.Lock()
        self._delta: dict[bytes, Decision] = {}
        #: With this many decisions in memory a flush is due. After a failed flush it is higher.
        self._limit = DELTA
        self._file: LedgerFile | None = None
        #: If set, a file without a decision was there before the watch if its ctime is before this
        #: (ns). On a filesystem that is not local, every file without a decision counts as such:
        #: its ctime is from a server, whose clock may differ.
        self._baseline = 0
        #: Number of calls of `disturb`. A scan during which it grew may have missed a directory, so
        #: the files that it did not see need not be gone.
        self._disturbances = 0
        #: Whether a complete scan of the watch has ended since we started.
        self.scanned = False
        #: The inode of the watch's root when a whole scan last saw files there, or at the first
        #: decision. Its device is not kept, because device numbers may change at a boot.
        self._root = 0
        #: When this root took the place of another one (epoch); 0 if it has always been the root.
        self._since = 0.0

    def open(self) -> bool:
        """Read the file. Return False if there is none: the watch is new, or the file was bad.

        A bad file is renamed, to be out of the way. Raises OSError.
        """
        try:
            file = LedgerFile.open(self._path)
            header = file.header
            if header["watch"] != self.watch_path:
                raise ValueError(f"not the ledger of {self.watch_path!r}")
            self._baseline, self._root = header["baseline"], header["root"]
            self._since = header.get("since", 0.0)
            self.inherits = header.get("inherits", False)
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError) as e:
            aside = self._path + ".bad"
            os.replace(self._path, aside)
            logger.error("Ledger set aside as %r, it cannot be read: %s.", aside, e)
            return False
        self._file = file
        return True

    def begin(self, baseline: int, *, inherits: bool = False) -> None:
        """Let files that are there already, with a ctime before `baseline` (ns), need no decision.

        This holds until a whole scan has written them into the ledger. `inherits` is for a new
        ledger, see `adopt`. Durable on return; raises OSError.
        """
        self._baseline, self.inherits = baseline, self.inherits or inherits
        self._merge()

    def adopt(self, others: Iterable[Ledger]) -> None:
        """Take over what other ledgers know, where this one knows nothing or something older.

        All decisions must be durable in the journal. Durable on return; raises OSError.
        """
        for other in others:
            other.flush()
            self.flush()
            assert other._file is not None
            self._absorb(other._file)
        if self.inherits:
            self.inherits = False
            self._merge()

    def _absorb(self, other: LedgerFile) -> None:
        """Merge a file into this ledger's, where this one lacks an entry or has an older one."""
        with self._writing:
            mine = self._file
            assert mine is not None
            draft = self._draft(_newer(part, mine) for part in other.entries())
            with self._lock:
                self._file = draft.commit()

    def get(self, subpath: str, state: FileState) -> Decision | None:
        """Return the last decision about a file of that name and inode."""
        return self._get(self.key(subpath, state), subpath, state)

    def has_decision_of(self, subpath: str, state: FileState) -> bool:
        """Whether there is a decision here about a file in this state that is elsewhere now."""
        tag = self.filesystems.known_tag(state.device)
        if tag is None:
            return False
        decision = self._get(key(subpath, state.inode, tag), subpath, state)
        return decision is not None and decision.is_of(state)

    def key(self, subpath: str, state: FileState) -> bytes:
        """Return the key of a file by its name, inode and filesystem."""
        return key(subpath, state.inode, self.filesystems.tag(subpath, state.device))

    def _get(self, wanted: bytes, subpath: str, state: FileState) -> Decision | None:
        with self._lock:
            decision = self._delta.get(wanted)
            if decision is None and self._file is not None:
                entry = self._file.get(wanted)
                decision = None if entry is None else unpack(*entry[1])
            if decision is FORGOTTEN:
                decision = None
            if decision is None and self._was_there(subpath, state):
                tag = self.filesystems.tag(subpath, state.device)
                decision = Decision(state.size, state.ctime, existing=True, filesystem=tag)
        return decision

    def _was_there(self, subpath: str, state: FileState) -> bool:
        """Whether a file without a decision was there before the watch."""
        if not self._baseline or state.ctime < self._baseline:
            return bool(self._baseline)
        return not self.filesystems.is_local(subpath, state.device)

    def put(
        self, subpath: str, state: FileState, *, sample: int = 0, waiting: bool = False
    ) -> Decision | None:
        """Note a decision in memory. It is `waiting` until `settle` if it made an upload.

        Return the decision in memory that it replaces, for `restore`.
        """
        tag = self.filesystems.tag(subpath, state.device)
        wanted = key(subpath, state.inode, tag)
        decision = Decision(state.size, state.ctime, waiting=waiting, sample=sample, filesystem=tag)
        # Note it now, in case another root takes its place before the first scan.
        root = self._root or _inode(self.watch_path)
        with self._lock:
            before = self._delta.get(wanted)
            self._delta[wanted] = decision
            self._root = root
        return before

    def settle(self, subpath: str, state: FileState) -> None:
        """Note that the upload of a file in this state is settled."""
        wanted = self.key(subpath, state)
        with self._lock:
            decision = self._get(wanted, subpath, state)
            if decision is not None and decision.waiting and decision.is_of(state):
                self._delta[wanted] = decision._replace(waiting=False)

    def doubt(self, recorded: Callable[[bytes], bool]) -> int:
        """Forget the waiting decisions whose uploads have no record any more; return how many.

        `recorded` says whether the journal has a record for a key. A scan finds the files again.
        """
        with self._lock:
            waiting = {wanted for wanted, decision in self._delta.items() if decision.waiting}
            if self._file is not None:
                waiting |= {
                    wanted
                    for wanted, (size, *_) in self._file.all()
                    if size & WAITING and not size & EXISTING and wanted not in self._delta
                }
            lost = [wanted for wanted in waiting if not recorded(wanted)]
            self._delta |= dict.fromkeys(lost, FORGOTTEN)
        return len(lost)

    def restore(self, subpath: str, state: FileState, decision: Decision | None) -> None:
        """Undo a `put` that returned `decision`."""
        wanted = self.key(subpath, state)
        with self._lock:
            if decision is not None:
                self._delta[wanted] = decision
            else:
                # The file does not have it: nothing is merged before it is durable in the journal.
                self._delta.pop(wanted, None)

    def forget(self, subpath: str, state: FileState) -> None:
        """Drop the decision about a file that left: ext4 gives its inode to the next new file."""
        wanted = self.key(subpath, state)
        with self._lock:
            self._delta.pop(wanted, None)
            if self._file is not None and self._file.get(wanted) is not None:
                self._delta[wanted] = FORGOTTEN

    def retract(self, subpath: str, state: FileState) -> bool:
        """Forget the decision about a file in this state; return whether there was one."""
        with self._lock:
            decision = self.get(subpath, state)
            if decision is None or not decision.is_of(state):
                return False
            self.forget(subpath, state)
            return True

    def decided_since(self, subpath: str, state: FileState) -> bool:
        """Whether there is a decision about a later write of a file than the one in `state`.

        Size and mtime of the file need not show that: it may have its old ones again.
        """
        decision = self.get(subpath, state)
        return decision is not None and not decision.existing and decision.ctime > state.ctime

    def was_decided(self, subpath: str, state: FileState) -> bool:
        """Whether a file was decided about under that name, and has not been written since."""
        decision = self.get(subpath, state)
        return decision is not None and not state.rewritten_since(decision.size, decision.ctime)

    def known(self, subpath: str, state: FileState) -> bool:
        """Whether a scan may pass over a file: it was decided about, and not written since.

        False if only its ctime differs and there is a sample of its content: then see `doubts`. The
        ctime is also set by chmod(1), and when a hard link is made.
        """
        return self._known(self.key(subpath, state), subpath, state) is not None

    def _known(self, wanted: bytes, subpath: str, state: FileState) -> Decision | None:
        decision = self._get(wanted, subpath, state)
        if decision is None or state.rewritten_since(decision.size, decision.ctime):
            return None
        return None if decision.sample and decision.ctime != state.ctime else decision

    def doubts(self, subpath: str, state: FileState) -> bool:
        """Whether only a file's content can tell if it was written since it was decided about."""
        decision = self.get(subpath, state)
        if decision is None or state.rewritten_since(decision.size, decision.ctime):
            return False
        return bool(decision.sample) and decision.ctime != state.ctime

    def holds(self, subpath: str, state: FileState, sample: int) -> bool:
        """Whether a file with this sample has the content of the last decision. Ask after `doubts`.

        The decision keeps its ctime, because an upload that waits is compared by that.
        """
        decision = self.get(subpath, state)
        return decision is not None and sample == decision.sample

    def disturb(self) -> None:
        """Note that a directory was renamed. The scan that is running may have missed its files."""
        with self._lock:
            self._disturbances += 1

    def sweep(self) -> Sweep:
        """Begin a scan of the whole watch. Raises OSError."""
        self.filesystems.forget()
        root = _inode(self.watch_path)
        if root not in (0, self._root):
            self._take_back()
        with self._lock:
            return Sweep(self, self._file, self._disturbances, root)

    def full(self) -> bool:
        """Whether there are so many decisions in memory that a `flush` is due."""
        return len(self._delta) >= self._limit

    def flush(self) -> None:
        """Merge the decisions in memory into the file. Durable on return; raises OSError."""
        if self._delta or self._file is None:
            self._limit = len(self._delta) + DELTA
            self._merge()
            self._limit = DELTA

    def _merge(self) -> None:
        # The dispatcher's thread calls this, so no decision is added meanwhile.
        with self._writing:
            merged: list[dict[bytes, bytes]] = [{} for _ in range(256)]
            for wanted, decision in self._delta.items():
                entry = b"" if decision is FORGOTTEN else pack(wanted, decision)
                merged[wanted[0]][wanted] = entry
            draft = self._draft(merged)
            with self._lock:
                self._file = draft.commit()
                self._delta.clear()

    def _draft(self, changes: Changes, kept: bytearray | None = None, **header: Any) -> Draft:
        entries = self._file.changed(changes, kept) if self._file else map(_joined, changes)
        before = {"watch": self.watch_path, "baseline": self._baseline}
        before |= {"root": self._root, "since": self._since, "inherits": self.inherits}
        return Draft(self._path, before | header, entries)

    def _finish(self, sweep: Sweep) -> None:
        """Drop from the file what a whole scan did not see; add what was there before the watch.

        Decisions that were made during the scan stay. Raises OSError.
        """
        with self._writing:
            root = sweep.root if sweep.saw_files else self._root
            # Keep the whole file if there was a flush during the scan: the scan knows nothing of
            # the new entries. Keep it also if this is another root than before: that may be an
            # empty mount point.
            kept = None
            if sweep.file is self._file and sweep.root == self._root:
                kept = sweep.seen
            if self._is_disturbed(sweep) or (
                (kept is None or kept.count(0) == 0)
                and not any(sweep.existing)
                and (self._baseline, self._root) == (0, root)
            ):
                return
            if kept is not None and self._since:
                self._put_away(kept)
            since = self._since
            if root != self._root and self._root:
                since = self._clock()
            draft = self._draft(self._missing_of(sweep), kept, baseline=0, root=root, since=since)
            with self._lock:
                if self._is_disturbed(sweep):
                    draft.discard()
                    return
                self._file = draft.commit()
                self._baseline, self._root, self._since = 0, root, since

    def _missing_of(self, sweep: Sweep) -> Iterator[dict[bytes, bytes]]:
        """Yield a sweep's entries of files that were there before the watch.

        Those for which the file has an entry by now are left out, because that is newer.
        """
        for entries in sweep.existing:
            part = _by_key(bytes(entries))
            if self._file is not None and self._file.count:
                part = {key: part[key] for key in part if self._file.get(key) is None}
            yield part

    def _put_away(self, kept: bytearray) -> None:
        """Put away the entries that are to be dropped: the root before this one may come back.

        After KEEP seconds with this root, what was put away is deleted instead.
        """
        if self._clock() - self._since >= KEEP:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._away)
        elif self._file is not None and kept.count(0):
            dropped = self._file.entries(kept)
            try:
                entries = LedgerFile.open(self._away).changed(dropped)
            except (FileNotFoundError, ValueError):
                entries = map(_joined, dropped)
            Draft(self._away, {}, entries).commit()

    def _take_back(self) -> None:
        """Take back what was put away, because it may be about this root. Raises OSError."""
        try:
            away = LedgerFile.open(self._away)
        except FileNotFoundError:
            return
        except ValueError as e:
            logger.warning("What was decided about another root's files is lost: %s.", e)
            return
        self._absorb(away)
        os.unlink(self._away)

    def _is_disturbed(self, sweep: Sweep) -> bool:
        """Whether a directory was renamed during a scan, or the watch has another root since."""
        return sweep.disturbances != self._disturbances or sweep.root != _inode(self.watch_path)

    def close(self) -> None:
        """Flush, and let go of the file. Raises OSError."""
        self.flush()
        self._file = None

    def remove(self) -> None:
        """Delete the ledger's file, after its watch has left the INI file."""
        os.unlink(self._path)


class Sweep:
    """One scan of a whole watch: marks the entries of files that it sees, and drops the others."""

    def __init__(
        self, ledger: Ledger, file: LedgerFile | None, disturbances: int, root: int
    ) -> None:
        self._ledger = ledger
        #: The ledger's file when the scan began, and for each of its entries whether it was seen.
        self.file = file
        self.seen = bytearray(file.count if file is not None else 0)
        #: Entries of files that were there before the watch, by the first byte of their keys.
        self.existing = [bytearray() for _ in range(256)]
        self.disturbances = disturbances
        self.root = root
        self.saw_files = False
        #: Tags of the filesystems that the scan has come to. Files on others cannot be seen now.
        self._met = {OWN}
        #: The device of the latest file, and the tag of its filesystem.
        self._device, self._tag = -1, OWN

    def is_of(self, root: int) -> bool:
        """Whether the watch's root had this inode when the scan began.

        A disk may have been mounted just after that.
        """
        return root == self.root

    def unchanged(self, name: str, status: os.stat_result) -> bool:
        """Whether a file is exactly as the ledger's file has it. If not, ask `known`.

        Most files are unchanged, so this is quick for them.
        """
        file, ledger = self.file, self._ledger
        if file is None or file is not ledger._file or status.st_dev != self._device:
            return False
        wanted = name_key(name, status.st_ino, self._tag)
        entry = file.get(wanted)
        if entry is None or wanted in ledger._delta:
            return False
        index, (size, ctime, _, _) = entry
        if status.st_ctime_ns != ctime or status.st_size != size & SIZE:
            return False
        self.seen[index] = self.saw_files = True
        return True

    def known(self, subpath: str, state: FileState) -> bool:
        """Ask `Ledger.known`, and mark the file's entry as seen.

        It is marked even if the file was written since, until another decision follows.
        """
        if state.device != self._device:
            self._device = state.device
            self._tag = self._ledger.filesystems.tag(subpath, state.device)
            self._met.add(self._tag)
        wanted = key(subpath, state.inode, self._tag)
        entry = self.file.get(wanted) if self.file is not None else None
        if entry is not None:
            self.seen[entry[0]] = self.saw_files = True
        decision = self._ledger._known(wanted, subpath, state)
        if decision is None:
            return False
        self.saw_files = True
        if entry is None and decision.existing:
            self.existing[wanted[0]] += pack(wanted, decision)
        return True

    def finish(self, *, complete: bool) -> None:
        """Drop the decisions about files that a complete scan did not see. Logs errors."""
        if complete:
            self._ledger.scanned = True
            self._keep_unseen()
            try:
                self._ledger._finish(self)
            except OSError as e:
                logger.warning("Ledger kept as it was, it cannot be written: %s.", e.strerror)

    def _keep_unseen(self) -> None:
        """Mark entries as seen although the scan did not see their files.

        They are those on filesystems that are not mounted now, and those of uploads that are not
        settled: if their directory was renamed into another watch, that asks for these decisions.
        """
        index = self.seen.find(0)
        while index >= 0:
            assert self.file is not None
            size, _, _, tag = self.file.values(index)
            self.seen[index] = bool(size & WAITING) or tag not in self._met
            index = self.seen.find(0, index + 1)


def _newer(entries: Mapping[bytes, bytes], file: LedgerFile) -> dict[bytes, bytes]:
    """Return those entries that a file lacks, or has in an older version."""
    found = {}
    for wanted, entry in entries.items():
        mine = file.get(wanted)
        if mine is None or mine[1][1] < VALUES.unpack_from(entry, KEY)[1]:
            found[wanted] = entry
    return found


def _joined(changes: Mapping[bytes, bytes]) -> bytes:
    return b"".join(changes[wanted] for wanted in sorted(changes))


def _by_key(entries: bytes) -> dict[bytes, bytes]:
    """Return entries by key. Two hard links with one name in two directories share a key."""
    starts = range(0, len(entries), ENTRY.size)
    return {entries[at : at + 8]: entries[at : at + ENTRY.size] for at in starts}


def _inode(path: str) -> int:
    """Return the inode of a directory, 0 if it is not there."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0
