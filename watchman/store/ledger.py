"""What has been decided about the files that stay in a watch."""

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

#: Seconds for which decisions about files are kept that were not seen since another root took the
#: place of theirs.
KEEP = 30 * 86400.0


class Ledger:
    """The decisions of one watch: a sorted file of 36 bytes each, and the newest in memory.

    Written by the dispatcher, asked by the scanner too. What is not in the file yet stands in the
    journal; `flush` says when it need not any more. Long, for one lock guards all of it.
    """

    def __init__(
        self, path: str, watch_path: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._path = path
        #: Where decisions wait about files that were not seen since another root took the place of
        #: theirs: that may be back, as a disk that was unmounted.
        self._away = path + ".away"
        self.watch_path = watch_path
        self.filesystems = Filesystems(watch_path)
        #: Whether it is yet to be told what the ledgers of other watches know of its files.
        self.inherits = False
        #: Guards what is below but is held for a moment only: the scanner asks while the dispatcher
        #: decides, and while a hook waits for that.
        self._lock = threading.RLock()
        #: Held while the file is being replaced.
        self._writing = threading.Lock()
        self._delta: dict[bytes, Decision] = {}
        #: How many decisions in memory ask for a flush: more after one that failed.
        self._limit = DELTA
        self._file: LedgerFile | None = None
        #: Files without a decision whose ctime is before this (ns) were there before the watch; if
        #: it is set, all on filesystems whose server's clock may be another.
        self._baseline = 0
        #: Counts what makes a scan under way unfit to prune: a directory may have moved past it.
        self._disturbances = 0
        #: Whether a complete scan of the watch is over since we began.
        self.scanned = False
        #: The inode of the watch's root when a whole scan last saw files there, or when something
        #: was first decided. Not its device: those are numbered anew at a boot.
        self._root = 0
        #: Since when (epoch) it has been another one than before; 0 if it has always been this one.
        self._since = 0.0

    def open(self) -> bool:
        """Read the file; return False where there is none yet: the watch's first sight."""
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
        """From now on take a file without a decision and with a ctime before `baseline` (ns) as
        one that needs none. Durable on return; over when a whole scan has written them down.
        """
        self._baseline, self.inherits = baseline, self.inherits or inherits
        self._merge()

    def adopt(self, others: Iterable[Ledger]) -> None:
        """Know what others know, where that is lacking here or older. All that was decided is
        durable, and so is this on return; or OSError.
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
        """Have the file hold what another one has that is lacking here or older; or OSError."""
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
        """Whether a file that is elsewhere now was decided about here, as it is."""
        tag = self.filesystems.known_tag(state.device)
        if tag is None:
            return False
        decision = self._get(key(subpath, state.inode, tag), subpath, state)
        return decision is not None and decision.is_of(state)

    def key(self, subpath: str, state: FileState) -> bytes:
        """Return the key of a file that was on its filesystem when its state was taken."""
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
        if not self._baseline or state.ctime < self._baseline:
            return bool(self._baseline)
        return not self.filesystems.is_local(subpath, state.device)

    def put(
        self, subpath: str, state: FileState, *, sample: int = 0, waiting: bool = False
    ) -> Decision | None:
        """Write a decision down, in memory; `waiting` until `settle` if it made an upload.

        Return what it replaces there, for `restore`.
        """
        tag = self.filesystems.tag(subpath, state.device)
        wanted = key(subpath, state.inode, tag)
        decision = Decision(state.size, state.ctime, waiting=waiting, sample=sample, filesystem=tag)
        # Should another root take its place before it was ever scanned.
        root = self._root or _inode(self.watch_path)
        with self._lock:
            before = self._delta.get(wanted)
            self._delta[wanted] = decision
            self._root = root
        return before

    def settle(self, subpath: str, state: FileState) -> None:
        """Say that the upload is settled that was made of a file as it was then."""
        wanted = self.key(subpath, state)
        with self._lock:
            decision = self._get(wanted, subpath, state)
            if decision is not None and decision.waiting and decision.is_of(state):
                self._delta[wanted] = decision._replace(waiting=False)

    def doubt(self, recorded: Callable[[bytes], bool]) -> int:
        """Forget about files whose uploads waited and have no record any more; return how many.

        A scan finds them again.
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
        """Undo a `put` that returned `decision`: what it replaced is the last one again."""
        wanted = self.key(subpath, state)
        with self._lock:
            if decision is not None:
                self._delta[wanted] = decision
            else:
                # Nothing is merged into the file before the journal has it: `put` undone in time.
                self._delta.pop(wanted, None)

    def forget(self, subpath: str, state: FileState) -> None:
        """Drop the decision about a file that has left: the next one may well have its inode."""
        wanted = self.key(subpath, state)
        with self._lock:
            self._delta.pop(wanted, None)
            if self._file is not None and self._file.get(wanted) is not None:
                self._delta[wanted] = FORGOTTEN

    def retract(self, subpath: str, state: FileState) -> bool:
        """Forget the decision about a file as it was then; whether it was the last one."""
        with self._lock:
            decision = self.get(subpath, state)
            if decision is None or not decision.is_of(state):
                return False
            self.forget(subpath, state)
            return True

    def decided_since(self, subpath: str, state: FileState) -> bool:
        """Whether there is a decision about a later write of a file than that of then.

        The file need not show it: it may have its old size and mtime again.
        """
        decision = self.get(subpath, state)
        return decision is not None and not decision.existing and decision.ctime > state.ctime

    def was_decided(self, subpath: str, state: FileState) -> bool:
        """Whether a file has not been written since it was decided about under that name."""
        decision = self.get(subpath, state)
        return decision is not None and not state.rewritten_since(decision.size, decision.ctime)

    def known(self, subpath: str, state: FileState) -> bool:
        """Whether a scan may pass a file over: it was decided about and not written since.

        Where only its ctime differs, which chmod(1) and hard links set too, see `holds`.
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
        """Whether a file of which it `doubts` has the content of the last decision, by its sample.

        The decision stays as it is: an upload that waits goes by the ctime that stands there.
        """
        decision = self.get(subpath, state)
        return decision is not None and sample == decision.sample

    def disturb(self) -> None:
        """Tell that a directory moved: a scan under way may have missed it and must not prune."""
        with self._lock:
            self._disturbances += 1

    def sweep(self) -> Sweep:
        """Begin a scan of the whole watch."""
        self.filesystems.forget()
        root = _inode(self.watch_path)
        if root not in (0, self._root):
            self._take_back()
        with self._lock:
            return Sweep(self, self._file, self._disturbances, root)

    def full(self) -> bool:
        """Whether enough has come together for a `flush`."""
        return len(self._delta) >= self._limit

    def flush(self) -> None:
        """Merge what is in memory into the file. Durable on return, or OSError."""
        if self._delta or self._file is None:
            self._limit = len(self._delta) + DELTA
            self._merge()
            self._limit = DELTA

    def _merge(self) -> None:
        # In the thread that decides: nothing is added meanwhile.
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
        """Make the file hold what a whole scan has seen, and what came since; or OSError."""
        with self._writing:
            root = sweep.root if sweep.saw_files else self._root
            # Decisions made and flushed during the scan stand in the file only: keep it all. So
            # too when this is another root than before, as an empty mount point.
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
        """Yield the entries of a sweep that the file lacks; not newer ones of what came since."""
        for entries in sweep.existing:
            part = _by_key(bytes(entries))
            if self._file is not None and self._file.count:
                part = {key: part[key] for key in part if self._file.get(key) is None}
            yield part

    def _put_away(self, kept: bytearray) -> None:
        """Keep for the root before this one what is about to be dropped, for a while."""
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
        """Know again what was put away: this may be the root it is about. Or raise OSError."""
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
        return sweep.disturbances != self._disturbances or sweep.root != _inode(self.watch_path)

    def close(self) -> None:
        """Write everything down and let go of the file."""
        self.flush()
        self._file = None

    def remove(self) -> None:
        """Remove the file of a watch that is none any more."""
        os.unlink(self._path)


class Sweep:
    """One scan of a whole watch: what it sees unchanged is what the ledger keeps."""

    def __init__(
        self, ledger: Ledger, file: LedgerFile | None, disturbances: int, root: int
    ) -> None:
        self._ledger = ledger
        #: The ledger's file as the scan began, and for each of its entries whether it was seen.
        self.file = file
        self.seen = bytearray(file.count if file is not None else 0)
        #: Entries of files that were there before the watch, by their first byte.
        self.existing = [bytearray() for _ in range(256)]
        self.disturbances = disturbances
        self.root = root
        self.saw_files = False
        #: The filesystems that it has come to: what is on others is not to be seen now.
        self._met = {OWN}
        self._device, self._tag = -1, OWN

    def is_of(self, root: int) -> bool:
        """Whether it began with this directory, by inode: one may have come back just now."""
        return root == self.root

    def unchanged(self, name: str, status: os.stat_result) -> bool:
        """Whether a file is as the ledger's file has it. What most are, so it is told at once; if
        not, `known` tells.
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
        """As `Ledger.known`; and keep the file's decision, which another one may follow."""
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
        """Drop the decisions about files that a complete scan did not see."""
        if complete:
            self._ledger.scanned = True
            self._keep_unseen()
            try:
                self._ledger._finish(self)
            except OSError as e:
                logger.warning("Ledger kept as it was, it cannot be written: %s.", e.strerror)

    def _keep_unseen(self) -> None:
        """Take for seen what cannot be: what is on a filesystem that is not mounted now; and what
        is not settled, for its directory may have gone to another watch, which asks about it.
        """
        index = self.seen.find(0)
        while index >= 0:
            assert self.file is not None
            size, _, _, tag = self.file.values(index)
            self.seen[index] = bool(size & WAITING) or tag not in self._met
            index = self.seen.find(0, index + 1)


def _newer(entries: Mapping[bytes, bytes], file: LedgerFile) -> dict[bytes, bytes]:
    """Return those of some entries that a file lacks, or has older."""
    found = {}
    for wanted, entry in entries.items():
        mine = file.get(wanted)
        if mine is None or mine[1][1] < VALUES.unpack_from(entry, KEY)[1]:
            found[wanted] = entry
    return found


def _joined(changes: Mapping[bytes, bytes]) -> bytes:
    return b"".join(changes[wanted] for wanted in sorted(changes))


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
