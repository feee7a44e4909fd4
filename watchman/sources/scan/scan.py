"""One scan: which files it sees, and which of them it finds."""

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

    def unchanged(self, name: str, status: os.stat_result) -> bool: ...

    def known(self, subpath: str, state: FileState) -> bool: ...

    def finish(self, *, complete: bool) -> None: ...


class Ledger(Protocol):
    """What has been decided about a watch's files, as far as a scan asks."""

    def known(self, subpath: str, state: FileState) -> bool: ...

    def doubts(self, subpath: str, state: FileState) -> bool: ...

    def holds(self, subpath: str, state: FileState, sample: int) -> bool: ...

    def sweep(self) -> Sweep: ...


@dataclass(kw_only=True, eq=False)
class Scan:
    """A scan under way. It submits every regular file that the ledger does not know."""

    watch: WatchSettings
    ledger: Ledger
    #: As those of the ledger's sweep; of the ledger where only a part is scanned.
    unchanged: Callable[[str, os.stat_result], bool]
    known: Callable[[str, FileState], bool]
    #: The sub-paths of other watches' roots, and what these are: what lies below is theirs.
    inner: frozenset[str]
    foreign: frozenset[Identity]
    excluded: Callable[[WatchSettings, str], object]
    submit: Callable[[Notification], bool]
    #: Has a subtree scanned again in a while.
    retry: Callable[[str], None]
    #: Has the watch scanned again once more of an owner's files are taken.
    come_back: Callable[[int], None]
    request: Request
    began: float
    files: int = 0
    found: int = 0
    errors: int = 0
    error: str | None = None
    #: How many were found of each owner, and those that wait for the end of the walk.
    found_of: Counter[int] = field(default_factory=Counter)
    waiting: list[Notification] = field(default_factory=list)
    #: Owners of files that were not taken.
    crowded: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        #: When it last said how far it is, and when it last rested.
        self.said = self.rested = self.began

    def walk(self, fd: int, subpath: str) -> Iterator[None]:
        """Go through the tree below an open directory, which is closed at the end. Each yield is a
        moment to do something else.
        """

        def failed(above: str, name: str, error: OSError) -> None:
            self.failed(join(above, name) if name else above, error)

        for directory in walk(fd, subpath, failed):
            if directory.above is not None:
                if self.foreign and directory.identity in self.foreign:
                    continue
                directory.here = join(directory.above, directory.name)
            try:
                yield from self._look(directory)
            except OSError as e:
                self.failed(directory.here or "", e)
            yield
        for number, find in enumerate(self.waiting):
            self._bring(find)
            if not number % STEP:
                yield

    def failed(self, subpath: str, error: OSError, *, passed: Collection[int] = GONE) -> None:
        """Something could not be looked at; go on with the rest. `passed` are errors that say
        nothing: a directory that has gone elsewhere is requested there.
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
                    # First what is cheap for most files.
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
        """Whether a file's content is as it was, and only chmod(1) or the like has changed it."""
        if not self.ledger.doubts(subpath, state):
            return False
        try:
            sample = sample_of(directory, os.path.basename(subpath), state)
        except OSError:
            return True  # it may not be read, so nothing can be seen of a write
        return sample is not None and self.ledger.holds(subpath, state, sample)

    def _takes(self, subpath: str) -> bool:
        """Whether it is not excluded, and has a path that can be named, or else that is said."""
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
        # Without the watcher's word of a rename it would count as another file.
        find = Notification(Kind.COMPLETED, path, Source.SCAN, patience=FRESH, owner=owner)
        self.found_of[owner] += 1
        if self.found_of[owner] <= FIRST:
            self._bring(find)
        elif self.found_of[owner] <= MOST:
            self.waiting.append(find)
        else:
            self._pass_by(owner)

    def _bring(self, find: Notification) -> None:
        assert find.owner is not None
        if self.submit(find):
            self.found += 1
        else:
            self._pass_by(find.owner)

    def _pass_by(self, owner: int) -> None:
        """Leave a file for later: others' come behind it."""
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
            self.come_back(owner)
