"""The scanner: walks the watches for finished files that no event told of."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from watchman.config.settings import WatchSettings
from watchman.sources.scan.roots import identify, inner_roots
from watchman.sources.scan.schedule import Request, Schedule
from watchman.sources.scan.walk import (
    BARRED,
    GONE,
    Directory,
    below,
    join,
    open_below,
    too_long,
    walk,
)
from watchman.uploads.ownership import owner_of
from watchman.uploads.sample import sample_of
from watchman.uploads.upload import FileState, Kind, Notification, Source

logger = logging.getLogger(__name__)

#: Seconds between two words on a long scan.
PROGRESS = 10.0

#: Seconds after which what could not be read is scanned again.
RETRY = 60.0

#: Seconds until it is asked again whether finds are taken.
FULL = 1.0

#: Seconds of work, and then of rest, in a scan that nobody waits for.
WORK = REST = 0.05

#: Subtrees that are served before a whole scan goes on: it, too, gets somewhere while directories
#: are made without end.
SUBTREES = 20

#: Seconds for which word of a file that was found may be on its way, as that it was renamed.
FRESH = 1.0

#: Files between two looks at the clock and at requests.
STEP = 500

#: Finds of one owner that are submitted as they come; the next ones wait until all others' were
#: seen, up to as many as are worth keeping.
FIRST, MOST = 500, 50_000


class Sweep(Protocol):
    """A scan of a whole watch, as the ledger sees it."""

    def is_of(self, root: int) -> bool: ...

    def known(self, subpath: str, state: FileState) -> bool: ...

    def doubts(self, subpath: str, state: FileState) -> bool: ...

    def holds(self, subpath: str, state: FileState, sample: int) -> bool: ...

    def finish(self, *, complete: bool) -> None: ...


class Ledger(Protocol):
    """What has been decided about a watch's files, as far as a scan asks."""

    def known(self, subpath: str, state: FileState) -> bool: ...

    def doubts(self, subpath: str, state: FileState) -> bool: ...

    def holds(self, subpath: str, state: FileState, sample: int) -> bool: ...

    def sweep(self) -> Sweep: ...


class _Stopped(Exception):
    """The scanner was told to stop in the middle of a scan."""


@dataclass
class _Progress:
    """How a watch's scans of the whole go."""

    scanning: bool = False
    files: int = 0
    last_scan: float | None = None
    error: str | None = None
    #: The root's device and inode when files were last found below it.
    identity: tuple[int, int] | None = None


@dataclass
class _Scan:
    """A scan under way."""

    watch: WatchSettings
    whole: bool
    gentle: bool
    ledger: Ledger | Sweep
    #: Device and inode of other watches' roots: what lies below is theirs.
    foreign: frozenset[tuple[int, int]]
    files: int = 0
    found: int = 0
    #: How many were found of each owner, and those that wait for the end of the walk.
    found_of: Counter[int] = field(default_factory=Counter)
    waiting: list[Notification] = field(default_factory=list)
    #: Owners of files that were not taken.
    crowded: set[int] = field(default_factory=set)
    errors: int = 0
    error: str | None = None
    began: float = 0.0
    said: float = 0.0
    rested: float = 0.0


class Scanner:
    """A thread that walks what is requested, and each watch every `rescan` seconds.

    It submits every regular file that its watch's ledger does not know. No symlink is followed, nor
    is anything opened but directories. `submit` tells whether a file is taken: else it waits until
    another scan, once so many of its owner's files are decided that he `takes` more.
    """

    def __init__(
        self,
        watches: Iterable[WatchSettings],
        *,
        submit: Callable[[Notification], bool],
        takes: Callable[[int], bool],
        excluded: Callable[[WatchSettings, str], object],
        ledgers: Mapping[str, Ledger],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watches = {watch.name: watch for watch in watches}
        self._inner = {
            name: inner_roots(watch, self._watches.values())
            for name, watch in self._watches.items()
        }
        self._submit = submit
        self._takes = takes
        self._excluded = excluded
        self._ledgers = ledgers
        self._progress = {name: _Progress() for name in self._watches}
        periods = {name: watch.rescan for name, watch in self._watches.items()}
        self._clock = clock
        self._schedule = Schedule(periods, clock=clock)
        #: By watch that waits for them, the owners of files that were not taken.
        self._crowded: dict[str, frozenset[int]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scanner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._schedule.close()

    def join(self) -> None:
        """Wait for the end, after stop()."""
        if self._thread.ident is not None:
            self._thread.join()

    def request(self, watch: str, subpath: str = "") -> None:
        """Have a subtree scanned as soon as possible, "" for all; never blocks, from any thread."""
        if not subpath:
            self._crowded.pop(watch, None)
        self._schedule.request(watch, subpath)

    def request_later(self, watch: str, owners: Collection[int]) -> None:
        """Have a whole watch scanned once more is taken of one of `owners`; never blocks, from any
        thread.
        """
        self._crowded[watch] = self._crowded.get(watch, frozenset()).union(owners)
        self._schedule.postpone(watch, "", FULL)

    def status(self) -> dict[str, dict[str, Any]]:
        """Per watch: scanning; files seen by this or the last whole scan; last_scan, the end of the
        last complete one (epoch); error, why the last one was not complete. From any thread.
        """
        return {
            name: {
                "scanning": progress.scanning,
                "files": progress.files,
                "last_scan": progress.last_scan,
                "error": progress.error,
            }
            for name, progress in self._progress.items()
        }

    def _run(self) -> None:
        while request := self._schedule.take():
            self._serve(request)

    def _serve(self, request: Request) -> None:
        owners = () if request.subpath else self._crowded.pop(request.watch, ())
        if owners and not any(map(self._takes, owners)):
            self.request_later(request.watch, owners)
            return
        try:
            if request.subpath:
                self._scan_subtree(request)
            else:
                self._scan_watch(request)
        except _Stopped:
            logger.debug("Scan of watch %s interrupted.", request.watch)
        except Exception:
            logger.exception(
                "Scan of %r in watch %s failed. Trying again in %d seconds.",
                request.subpath,
                request.watch,
                RETRY,
            )
            self._schedule.postpone(request.watch, request.subpath, RETRY)

    def _scan_subtree(self, request: Request) -> None:
        watch = self._watches[request.watch]
        if not watch.rec:
            return
        scan = self._begin(request, self._ledgers[watch.name])
        try:
            identify(watch)
            fd = open_below(watch.path, request.subpath)
        except OSError as e:
            # A directory that has gone elsewhere is requested there.
            self._failed(scan, request.subpath, e)
            return
        self._walk(scan, fd, request.subpath)

    def _scan_watch(self, request: Request) -> None:
        progress = self._progress[request.watch]
        progress.scanning, progress.files = True, 0
        sweep = self._ledgers[request.watch].sweep()
        scan = self._begin(request, sweep)
        complete = False
        try:
            complete = self._walk_watch(scan, progress, sweep)
        finally:
            progress.scanning, progress.files, progress.error = False, scan.files, scan.error
            sweep.finish(complete=complete)
        if complete:
            progress.last_scan = time.time()
        logger.info(
            "Scanned watch %s: %d files in %.1f seconds, %d of them new%s.",
            request.watch,
            scan.files,
            self._clock() - scan.began,
            scan.found,
            f", {scan.errors} errors" if scan.errors else "",
        )

    def _walk_watch(self, scan: _Scan, progress: _Progress, sweep: Sweep) -> bool:
        """Walk a whole watch; whether what it did not see is not there."""
        path = scan.watch.path
        try:
            identify(scan.watch)
            fd = open_below(path, "")
        except OSError as e:
            self._fail(scan, path, e)
            if e.errno not in GONE | BARRED:
                self._schedule.postpone(scan.watch.name, "", RETRY)
            return False
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        if not sweep.is_of(status.st_ino):
            # What is known of this one is known to the next sweep.
            os.close(fd)
            scan.error = f"{path!r}: another directory has taken its place"
            self._schedule.request(scan.watch.name)
            return False
        self._walk(scan, fd, "")
        if _identity(scan.watch) != identity:
            scan.error = f"{path!r}: another directory has taken its place"
            return False
        # An empty directory in the place of a full one is a mount point without its filesystem,
        # more likely than not. One with files in it counts from the next scan on.
        is_same = progress.identity in (None, identity)
        if scan.files:
            progress.identity = identity
        if not is_same:
            scan.error = f"{path!r}: not the directory of the scan before"
        return is_same and not scan.errors and not scan.crowded

    def _begin(self, request: Request, ledger: Ledger | Sweep) -> _Scan:
        others = (w for w in self._watches.values() if w.name != request.watch)
        foreign = frozenset(found for other in others if (found := _identity(other)))
        watch = self._watches[request.watch]
        whole, now = not request.subpath, self._clock()
        return _Scan(
            watch,
            whole,
            request.periodic,
            ledger,
            foreign,
            began=now,
            said=now,
            rested=now,
        )

    def _walk(self, scan: _Scan, fd: int, subpath: str) -> None:
        def failed(above: str, name: str, error: OSError) -> None:
            self._failed(scan, join(above, name) if name else above, error)

        for directory in walk(fd, subpath, failed):
            if directory.above is not None:
                if directory.identity in scan.foreign:
                    continue
                directory.here = join(directory.above, directory.name)
            try:
                self._look(scan, directory)
            except OSError as e:
                self._failed(scan, directory.here or "", e)
            self._breathe(scan)
        for number, find in enumerate(scan.waiting):
            self._bring(scan, find)
            if not number % STEP:
                self._breathe(scan)

    def _look(self, scan: _Scan, directory: Directory[str]) -> None:
        """Look at each file in a directory, and note its subdirectories."""
        watch, known = scan.watch, scan.ledger.known
        prefix = f"{directory.here}/" if directory.here else ""
        with os.scandir(directory.fd) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError as e:
                        self._failed(scan, prefix + entry.name, e)
                        continue
                    scan.files += 1
                    # First what is cheap for most files: they are known.
                    state = FileState.of(status)
                    if not known(prefix + entry.name, state) and not self._is_touched(
                        scan, directory.fd, prefix + entry.name, state
                    ):
                        self._find(scan, directory.fd, prefix + entry.name, status)
                    if not scan.files % STEP:
                        self._breathe(scan)
                elif watch.rec and entry.is_dir(follow_symlinks=False):
                    self._note(scan, directory, prefix + entry.name, entry.name)

    def _is_touched(self, scan: _Scan, directory: int, subpath: str, state: FileState) -> bool:
        """Whether a file's content is as it was, and only chmod(1) or the like has changed it."""
        if not scan.ledger.doubts(subpath, state):
            return False
        try:
            sample = sample_of(directory, os.path.basename(subpath), state)
        except OSError:
            return True  # it may not be read, so nothing can be seen of a write
        return sample is not None and scan.ledger.holds(subpath, state, sample)

    def _note(self, scan: _Scan, directory: Directory[str], subpath: str, name: str) -> None:
        watch = scan.watch
        if subpath in self._inner[watch.name] or self._excluded(watch, subpath):
            return
        if too_long(below(watch.path, subpath)):
            self._failed(scan, subpath, OSError(errno.ENAMETOOLONG, "the path is too long"))
        else:
            directory.names.append(name)

    def _find(self, scan: _Scan, directory: int, subpath: str, status: os.stat_result) -> None:
        path = below(scan.watch.path, subpath)
        if not stat.S_ISREG(status.st_mode) or self._excluded(scan.watch, subpath):
            return
        if too_long(path):
            self._failed(scan, subpath, OSError(errno.ENAMETOOLONG, "the path is too long"))
            return
        owner = owner_of(status, directory)
        # Without the watcher's word of a rename it would count as another file.
        find = Notification(Kind.COMPLETED, path, Source.SCAN, patience=FRESH, owner=owner)
        scan.found_of[owner] += 1
        if scan.found_of[owner] <= FIRST:
            self._bring(scan, find)
        elif scan.found_of[owner] <= MOST:
            scan.waiting.append(find)
        else:
            self._pass_by(scan, owner)

    def _bring(self, scan: _Scan, find: Notification) -> None:
        assert find.owner is not None
        if self._submit(find):
            scan.found += 1
        else:
            self._pass_by(scan, find.owner)

    def _pass_by(self, scan: _Scan, owner: int) -> None:
        """Leave a file for later: others' come behind it."""
        if not scan.crowded:
            scan.error = f"more was found of uid {owner} than is held at once"
            logger.info(
                "Scan of watch %s passes by the files of uid %d: many of them wait. It comes back"
                " when half of those are decided.",
                scan.watch.name,
                owner,
            )
        if owner not in scan.crowded:
            scan.crowded.add(owner)
            self.request_later(scan.watch.name, {owner})

    def _failed(self, scan: _Scan, subpath: str, error: OSError) -> None:
        """Something could not be looked at; go on with the rest."""
        if error.errno in GONE:
            return
        self._fail(scan, below(scan.watch.path, subpath), error)
        if error.errno not in BARRED:
            self._schedule.postpone(scan.watch.name, subpath, RETRY)

    def _fail(self, scan: _Scan, path: str, error: OSError) -> None:
        scan.errors += 1
        if scan.error is None:
            scan.error = f"{path!r}: {error.strerror}"
            logger.warning(
                "Watch %s: %r cannot be scanned: %s. Further errors of this scan are counted.",
                scan.watch.name,
                path,
                error.strerror,
            )

    def _breathe(self, scan: _Scan) -> None:
        """In the middle of a scan: stop, rest, say how far it is, serve what is in a hurry."""
        if self._stopping.is_set():
            raise _Stopped
        if not scan.whole:
            return
        self._progress[scan.watch.name].files = scan.files
        now = self._clock()
        if now - scan.said >= PROGRESS:
            scan.said = now
            logger.info(
                "Scanning watch %s: %d files seen, %d per second.",
                scan.watch.name,
                scan.files,
                scan.files / (now - scan.began),
            )
        for _ in range(SUBTREES):
            request = self._schedule.take_subtree()
            if request is None:
                break
            self._serve(request)
            if self._stopping.is_set():
                raise _Stopped
        if scan.gentle and now - scan.rested >= WORK:
            scan.gentle = not self._schedule.is_waiting(scan.watch.name)
            self._stopping.wait(REST)
            scan.rested = self._clock()


def _identity(watch: WatchSettings) -> tuple[int, int] | None:
    try:
        return identify(watch)
    except OSError:
        return None
