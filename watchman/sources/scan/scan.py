"""One scan of a watch or a part of it: which files it sees, and which of them are new."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from watchman.config.settings import WatchSettings
from watchman.sources.scan.schedule import Request
from watchman.sources.scan.walk import (
    BARRED,
    GONE,
    Directory,
    Identity,
    join,
    too_long,
    walk,
)
from watchman.uploads.beneath import below
from watchman.uploads.ownership import owner_of
from watchman.uploads.sample import sample_of
from watchman.uploads.upload import FileState, Kind, Notification, Source

logger = logging.getLogger(__name__)

#: Seconds for which a file that was found waits for better word about it. The watcher may be about
#: to report that it was renamed.
FRESH = 1.0

#: Files between two moments at which the scanner looks at the clock and at requests.
STEP = 500

#: New files of one owner that are submitted at once, and how many more of them are kept for the end
#: of the walk. So the files of other owners do not wait behind them.
FIRST, MOST = 500, 50_000


class Sweep(Protocol):
    """The ledger's part in the scan of a whole watch."""

    def is_of(self, root: int) -> bool: ...

    def unchanged(self, name: str, status: os.stat_result) -> bool: ...

    def known(self, subpath: str, state: FileState) -> bool: ...

    def finish(self, *, complete: bool) -> None: ...


class Ledger(Protocol):
    """The decisions about a watch's files, as far as a scan asks for them."""

    def known(self, subpath: str, state: FileState) -> bool: ...

    def doubts(self, subpath: str, state: FileState) -> bool: ...

    def holds(self, subpath: str, state: FileState, sample: int) -> bool: ...

    def sweep(self) -> Sweep: ...


@dataclass(kw_only=True, eq=False)
class Scan:
    """A scan under way. It submits every regular file that the ledger does not know."""

    watch: WatchSettings
    ledger: Ledger
    #: The methods of the ledger's sweep, or of the ledger itself if only a part is scanned.
    unchanged: Callable[[str, os.stat_result], bool]
    known: Callable[[str, FileState], bool]
    #: The roots of other watches, by sub-path, and by device and inode: files below are theirs.
    inner: frozenset[str]
    foreign: frozenset[Identity]
    excluded: Callable[[WatchSettings, str], object]
    submit: Callable[[Notification], bool]
    #: Asks for another scan of a subtree in a while.
    retry: Callable[[str], None]
    #: Asks for another scan of the watch for when more files of that owner are taken.
    rescan_later: Callable[[int], None]
    request: Request
    began: float
    files: int = 0
    directories: int = 0
    found: int = 0
    errors: int = 0
    error: str | None = None
    #: How many files were found of each owner, and those that are kept for the end of the walk.
    found_of: Counter[int] = field(default_factory=Counter)
    waiting: list[Notification] = field(default_factory=list)
    #: Owners of whom some files were not taken.
    crowded: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        #: When its progress was last logged, and when it last rested.
        self.said = self.rested = self.began

    def walk(self, fd: int, subpath: str) -> Iterator[None]:
        """Go through the tree below an open directory, which is closed at the end.

        At each yield the caller may do something else.
        """

        def failed(above: str, name: str, error: OSError) -> None:
            self.failed(join(above, name) if name else above, error)

        for directory in walk(fd, subpath, failed):
            if directory.above is not None:
                if self.foreign and directory.identity in self.foreign:
                    continue
                directory.here = join(directory.above, directory.name)
            self.directories += 1
            try:
                yield from self._look(directory)
            except OSError as e:
                self.failed(directory.here or "", e)
            yield
        for number, find in enumerate(self.waiting):
            self._submit_find(find)
            if not number % STEP:
                yield

    def failed(self, subpath: str, error: OSError, *, passed: Collection[int] = GONE) -> None:
        """Count something that could not be looked at; the scan goes on with the rest.

        `passed` are errors that are ignored. A directory that was deleted needs no scan; one that
        was renamed is scanned at its new place, for the watcher asks for that.
        """
        if error.errno in passed:
            return
        self.errors += 1
        if self.error is None:
            path = below(self.watch.path, subpath)
            self.error = f"{path!r}: {error.strerror}"
            logger.warning(
                "Watch %s: %r cannot be scanned: %s. Further errors of this scan are counted.",
                self.watch.name,
                path,
                error.strerror,
            )
        if error.errno not in GONE | BARRED:
            self.retry(subpath)

    def _look(self, directory: Directory[str]) -> Iterator[None]:
        """Look at each file in a directory, and note its subdirectories."""
        unchanged, prefix = self.unchanged, join(directory.here or "", "")
        with os.scandir(directory.fd) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_file(follow_symlinks=False):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError as e:
                        self.failed(prefix + name, e)
                        continue
                    self.files += 1
                    # The cheap question first: of known files this is the only one. It took a scan
                    # of 200,000 of them from 2.6 times the CPU of a bare walk to 1.9.
                    if not unchanged(name, status):
                        self._look_at(directory.fd, prefix + name, status)
                    if not self.files % STEP:
                        yield
                elif (
                    self.watch.rec
                    and entry.is_dir(follow_symlinks=False)
                    and prefix + name not in self.inner
                    and self._takes(prefix + name)
                ):
                    directory.names.append(name)

    def _look_at(self, directory: int, subpath: str, status: os.stat_result) -> None:
        state = FileState.of(status)
        if not self.known(subpath, state) and not self._is_touched(directory, subpath, state):
            self._find(directory, subpath, status)

    def _is_touched(self, directory: int, subpath: str, state: FileState) -> bool:
        """Whether only chmod(1) or the like has changed a file, and its content is as it was."""
        if not self.ledger.doubts(subpath, state):
            return False
        try:
            sample = sample_of(directory, os.path.basename(subpath), state)
        except OSError:
            return True  # we may not read it, so we cannot see whether it was written
        return sample is not None and self.ledger.holds(subpath, state, sample)

    def _takes(self, subpath: str) -> bool:
        """Whether it is not excluded, nor its path too long; the latter counts as an error."""
        if self.excluded(self.watch, subpath):
            return False
        if too_long(self.watch.path, subpath):
            self.failed(subpath, OSError(errno.ENAMETOOLONG, "the path is too long"))
            return False
        return True

    def _find(self, directory: int, subpath: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode) or not self._takes(subpath):
            return
        path, owner = below(self.watch.path, subpath), owner_of(status, directory)
        # `patience` leaves time for the watcher to report a rename. Without that report a renamed
        # file would count as another one.
        find = Notification(Kind.COMPLETED, path, Source.SCAN, patience=FRESH, owner=owner)
        self.found_of[owner] += 1
        if self.found_of[owner] <= FIRST:
            self._submit_find(find)
        elif self.found_of[owner] <= MOST:
            self.waiting.append(find)
        else:
            self._pass_by(owner)

    def _submit_find(self, find: Notification) -> None:
        assert find.owner is not None
        if self.submit(find):
            self.found += 1
        else:
            self._pass_by(find.owner)

    def _pass_by(self, owner: int) -> None:
        """Leave the files of an owner to a later scan, so that those of others get their turn."""
        if not self.crowded:
            self.error = f"more was found of uid {owner} than is held at once"
            logger.info(
                "Scan of watch %s passes by the files of uid %d: many of them wait. It comes back"
                " when half of those are decided.",
                self.watch.name,
                owner,
            )
        if owner not in self.crowded:
            self.crowded.add(owner)
            self.rescan_later(owner)
