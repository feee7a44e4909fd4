"""The scanner: walks through the watches for finished files that no event told of."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from watchman.config.settings import WatchSettings
from watchman.sources.scan.roots import found, identify, inner_roots
from watchman.sources.scan.scan import Ledger, Scan, Sweep
from watchman.sources.scan.schedule import Request, Schedule
from watchman.sources.scan.walk import Identity, identity, open_below
from watchman.uploads.upload import Notification

logger = logging.getLogger(__name__)

#: Seconds between two log lines about the progress of a long scan.
PROGRESS = 10.0

#: Seconds after which a directory that could not be read is scanned again.
RETRY = 60.0

#: Seconds until the scanner asks again whether more files of an owner are taken.
FULL = 1.0

#: Seconds of work, and then of rest, in a periodic scan, which nobody waits for.
WORK = REST = 0.05

#: Subtrees that are scanned before a scan of a whole watch goes on. With a limit it comes to its
#: end even while users make directories all the time.
SUBTREES = 20


class _Stopped(Exception):
    """The scanner was told to stop in the middle of a scan."""


@dataclass
class _Progress:
    """The progress of the scans of one whole watch, see `Scanner.status`."""

    scanning: bool = False
    files: int = 0
    walked: int = 0
    last_scan: float | None = None
    error: str | None = None


class Scanner:
    """A thread that scans what is requested, and each watch every `rescan` seconds.

    It submits every regular file that the ledger of its watch does not know. It follows no symlink,
    and opens nothing but directories and files whose content it compares with the ledger's sample.

    `submit` answers whether the file was taken. It is not if too many files of its owner wait for a
    decision. Then the watch is scanned again once `takes(owner)` is true.
    """

    def __init__(
        self,
        watches: Iterable[WatchSettings],
        *,
        submit: Callable[[Notification], bool],
        takes: Callable[[int], bool],
        excluded: Callable[[WatchSettings, str], object],
        ledgers: Mapping[str, Ledger],
        ended: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ended` is called with the watch of which each scan of a whole watch was."""
        self._watches = {watch.name: watch for watch in watches}
        self._scan = partial(Scan, submit=submit, excluded=excluded)
        self._takes = takes
        self._ended = ended
        self._ledgers = ledgers
        self._progress = {name: _Progress() for name in self._watches}
        #: By watch, device and inode of its root when a scan last saw files below it.
        self._roots: dict[str, Identity] = {}
        periods = {name: watch.rescan for name, watch in self._watches.items()}
        self._clock = clock
        self._schedule = Schedule(periods, clock=clock)
        #: By watch, the owners whose files were not taken, for as long as its next scan waits for
        #: one of them.
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

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def request(self, watch: str, subpath: str = "") -> None:
        """Ask for a scan of a subtree as soon as possible, "" for the whole watch.

        Never blocks; any thread may call it.
        """
        if not subpath:
            self._crowded.pop(watch, None)
        self._schedule.request(watch, subpath)

    def request_later(self, watch: str, owners: Collection[int]) -> None:
        """Ask for a scan of a whole watch for when more files of one of `owners` are taken.

        Never blocks; any thread may call it.
        """
        self._crowded[watch] = self._crowded.get(watch, frozenset()).union(owners)
        self._schedule.postpone(watch, "", FULL)

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the progress of each watch's scans; any thread may call it.

        `scanning` says whether the whole watch is being scanned. `files` and `walked` are how many
        files and directories this scan or the last one has seen. `last_scan` is when the last
        complete one ended (epoch), and `error` is why the last one was not complete.
        """
        return {name: asdict(progress) for name, progress in self._progress.items()}

    def _run(self) -> None:
        while request := self._schedule.take():
            self._serve(request)

    def _serve(self, request: Request) -> None:
        """Do what is requested. Errors are logged, and the scan is tried again later."""
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
        scan = self._begin(request)
        try:
            identify(watch)
            fd = open_below(watch.path, request.subpath)
        except OSError as e:
            scan.failed(request.subpath, e)
            return
        self._walk(scan, fd, request.subpath)

    def _scan_watch(self, request: Request) -> None:
        """Scan a whole watch. If it was complete, the ledger forgets the files that are gone."""
        progress = self._progress[request.watch]
        progress.scanning, progress.files, progress.walked = True, 0, 0
        sweep = self._ledgers[request.watch].sweep()
        scan = self._begin(request, sweep)
        complete = False
        try:
            complete = self._walk_watch(scan, sweep)
        finally:
            progress.scanning, progress.error = False, scan.error
            progress.files, progress.walked = scan.files, scan.directories
            sweep.finish(complete=complete)
        if complete:
            progress.last_scan = time.time()
        self._ended(request.watch)
        logger.info(
            "Scanned watch %s: %d files in %.1f seconds, %d of them new%s.",
            request.watch,
            scan.files,
            self._clock() - scan.began,
            scan.found,
            f", {scan.errors} errors" if scan.errors else "",
        )

    def _walk_watch(self, scan: Scan, sweep: Sweep) -> bool:
        """Walk a whole watch. Return True if every file that was not seen is certainly gone."""
        watch, path = scan.watch, scan.watch.path
        try:
            identify(watch)
            fd = open_below(path, "")
        except OSError as e:
            scan.failed("", e, passed=())
            return False
        root = identity(fd)
        if not sweep.is_of(root[1]):
            # This sweep has the decisions about another directory. The next one will have those
            # about this one.
            os.close(fd)
            scan.error = f"{path!r}: another directory has taken its place"
            self._schedule.request(watch.name)
            return False
        self._walk(scan, fd, "")
        if found(watch) != root:
            scan.error = f"{path!r}: another directory has taken its place"
            return False
        # An empty directory where there was a full one is most likely a mount point whose
        # filesystem is not mounted; the ledger must not forget that one's files. If the new
        # directory has files, it counts from the next scan on.
        is_same = self._roots.get(watch.name, root) == root
        if scan.files:
            self._roots[watch.name] = root
        if not is_same:
            scan.error = f"{path!r}: not the directory of the scan before"
        return is_same and not scan.errors and not scan.crowded

    def _begin(self, request: Request, sweep: Sweep | None = None) -> Scan:
        """Return the scan for a request; only a scan of a whole watch has a `sweep`."""
        watch, watches = self._watches[request.watch], self._watches.values()
        ledger = self._ledgers[watch.name]
        return self._scan(
            watch=watch,
            ledger=ledger,
            unchanged=sweep.unchanged if sweep is not None else lambda _name, _status: False,
            known=sweep.known if sweep is not None else ledger.known,
            inner=inner_roots(watch, watches),
            foreign=frozenset(filter(None, (found(other) for other in watches if other != watch))),
            retry=lambda subpath: self._schedule.postpone(watch.name, subpath, RETRY),
            rescan_later=lambda owner: self.request_later(watch.name, {owner}),
            request=request,
            began=self._clock(),
        )

    def _walk(self, scan: Scan, fd: int, subpath: str) -> None:
        for _ in scan.walk(fd, subpath):
            self._between_steps(scan)

    def _between_steps(self, scan: Scan) -> None:
        """Do what cannot wait for the end of a scan: stop, log progress, scan subtrees, rest."""
        if self._stopping.is_set():
            raise _Stopped
        if scan.request.subpath:
            return
        name = scan.watch.name
        progress = self._progress[name]
        progress.files, progress.walked = scan.files, scan.directories
        now = self._clock()
        if now - scan.said >= PROGRESS:
            scan.said = now
            logger.info(
                "Scanning watch %s: %d files seen, %d per second.",
                name,
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
        has_worked = scan.request.periodic and now - scan.rested >= WORK
        if has_worked and not self._schedule.is_waiting(name):
            self._stopping.wait(REST)
            scan.rested = self._clock()
