"""Where the files of uploads that wait are now: overwritten, renamed, away, or gone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from watchman.config.moves import claim_name
from watchman.config.rules import Rules
from watchman.config.settings import WatchSettings
from watchman.errors import NotBelowWatch
from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.uploads import beneath, mounts, renaming
from watchman.uploads.upload import FileState, Report, State, Upload

#: Seconds until an upload is looked at again that a disk or a right held up.
RETRY = 5.0

#: Seconds for which a file must be missing until it counts as gone: word of its new name may be
#: on its way.
MISSING = 1.0


@dataclass(frozen=True, slots=True)
class Rename:
    """What was renamed: a file as it was then, or None for a directory; and where its record is."""

    old: str
    new: str
    file: FileState | None
    position: int

    def leads(self, path: str, inode: int) -> str | None:
        """Return where a file that was at `path` may be, None if this rename is of another."""
        if self.file is not None:
            return self.new if self.file.inode == inode else None
        if path == self.old or path.startswith(self.old + "/"):
            return self.new + path[len(self.old) :]
        return None


class FileTracker:
    """Looks at an upload's file before its turn, and knows what was renamed meanwhile.

    `look` is called by movers and publishers; all else in the dispatcher's thread.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        ledgers: Mapping[str, Ledger],
        journal: Journal,
        commit: GroupCommit,
        monotonic: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._ledgers = ledgers
        self._journal = journal
        self._commit = commit
        self._monotonic = monotonic
        #: In order, for uploads that wait under the old name.
        self._renames: list[Rename] = []
        #: By id, since when (monotonic) the files of uploads that wait are missing.
        self._missing: dict[str, float] = {}

    def look(self, upload: Upload) -> Report | None:
        """Return a report about an upload that must not be moved or sent as it stands."""
        if _is_as_accepted(upload):
            return None
        located = self._rules.locate(upload.path)
        if located is None:
            return None  # its section left the INI file after it was accepted, or changed its path
        watch, subpath = located
        try:
            state = beneath.state(watch.path, subpath)
        except FileNotFoundError:
            return self._look_for(upload, watch)
        except NotBelowWatch as e:
            return Report(upload, State.GONE, str(e))
        except OSError as e:
            reason = e.strerror or str(e)
            return Report(upload, State.DEFERRED, reason, lane=f"file: {reason}", delay=RETRY)
        old = upload.state
        superseded = Report(upload, State.SUPERSEDED, "overwritten before its turn")
        if state.inode != old.inode:
            return self._find(upload, superseded)
        self._missing.pop(upload.id, None)
        if _is_rewritten(upload, watch, subpath, state):
            return superseded
        known = self._last_known(upload, upload.path)
        return superseded if self._is_outdated(watch, subpath, known) else None

    def refusal(self, upload: Upload) -> str:
        """Return why an upload must not be moved or sent as its file stands, "" if it may be."""
        located = self._rules.locate(upload.path)
        if located is None or upload.source_state is not None:
            return ""
        try:
            with beneath.look(located[0].path, located[1]) as look:
                return look.ownership.refusal(upload.owner[0] if upload.owner else None)
        except FileNotFoundError:
            return "" if self._is_away(upload, located[0]) else "its file is not there any more"
        except (OSError, NotBelowWatch):
            return ""  # it is looked at in its turn

    def _is_outdated(self, watch: WatchSettings, subpath: str, known: FileState) -> bool:
        """Whether a later write was decided about than that of a file as it was `known`."""
        # None while a reload takes the watch away, which may be since we looked which it is.
        ledger = self._ledgers.get(watch.name)
        return ledger is not None and ledger.decided_since(subpath, known)

    def _last_known(self, upload: Upload, path: str) -> FileState:
        """Return what a file was like when it was accepted, or when it last got the name of `path`.

        A rename sets its ctime, and the decision that has followed it has that. It is known by its
        name without its directory, which may have been renamed since.
        """
        states = [upload.state]
        for rename in list(self._renames):
            if rename.file is not None and os.path.basename(rename.new) == os.path.basename(path):
                states.append(rename.file)
        return max(
            (state for state in states if state.inode == upload.state.inode),
            key=attrgetter("ctime"),
        )

    def _is_away(self, upload: Upload, watch: WatchSettings) -> bool:
        """Whether the filesystem that a file was on is not there: the watch's, or one below it."""
        if watch.mounted and not mounts.is_mounted(watch.path):
            return True
        directory = os.path.relpath(upload.path, watch.path)
        while directory:
            directory = os.path.dirname(directory)
            try:
                fd = beneath.open_directory(watch.path, directory)
            except (FileNotFoundError, NotBelowWatch):
                continue  # deleted with it: what it was in may tell
            except OSError:
                return True
            try:
                device = os.fstat(fd).st_dev
            finally:
                os.close(fd)
            return not _is_there(upload, watch, device)
        return True

    def _look_for(self, upload: Upload, watch: WatchSettings) -> Report:
        """Find out why a file is not where it was."""
        if self._is_away(upload, watch):
            reason = f"{watch.path} is away"
            return Report(upload, State.DEFERRED, reason, lane=f"watch:{watch.name}", delay=RETRY)
        return self._find(
            upload, Report(upload, State.GONE, "deleted or moved away before its turn")
        )

    def _find(self, upload: Upload, lost: Report) -> Report:
        """Find a file under the name that it has now; say `lost` once it has been away a while."""
        old = upload.state
        for path in self._ways(upload):
            located = self._rules.locate(path)
            if located is None:
                continue
            found, subpath = located
            with contextlib.suppress(OSError, NotBelowWatch):
                _give_name_back(found.path, subpath, upload)
            with contextlib.suppress(OSError, NotBelowWatch):
                state = beneath.state(found.path, subpath)
                if state.inode == old.inode:
                    known = self._last_known(upload, path)
                    newer = self._is_outdated(found, subpath, known)
                    upload = upload._replace(watch=found.name, path=path)
                    if newer or _is_rewritten(upload, found, subpath, state):
                        return Report(upload, State.SUPERSEDED, "overwritten before its turn")
                    root = beneath.identity(found.path)
                    return Report(upload._replace(state=state, root=root), State.RENAMED)
        now = self._monotonic()
        if now - self._missing.setdefault(upload.id, now) < MISSING:
            lane = f"upload {upload.id}"
            return Report(upload, State.DEFERRED, "it is missing", lane=lane, delay=MISSING)
        return lost

    def _ways(self, upload: Upload) -> list[str]:
        """Return where renames may have brought a file, the latest first.

        Words of them may be missing, late or said twice, so none is taken for the only way.
        """
        paths = {upload.path: None}
        for rename in list(self._renames):
            for path in [rename.leads(path, upload.state.inode) for path in paths]:
                if path is not None:
                    paths.pop(path, None)
                    paths[path] = None
        return [path for path in reversed(paths) if path != upload.path]

    def follow(self, old: str, new: str, file: FileState | None = None) -> None:
        """Remember a rename for as long as uploads wait that may lie under the old name.

        `file` is what was renamed, unless it is a directory; it was decided about.
        """

        def durable(position: int) -> None:
            self._keep(Rename(old, new, file, position))

        record: dict[str, Any] = {"event": State.RENAMED.value, "at": time.time()}
        record |= {"from": old, "path": new}
        if file is not None:
            record["file"] = file.encode()
        self._commit.stage(record, durable, lasting=True)

    def forget_renames(self) -> None:
        """Forget all renames: no upload waits any more."""
        for rename in self._renames:
            self._journal.release(rename.position)
        self._renames.clear()

    def is_replaced(self, upload: Upload) -> bool:
        """Whether another file has the name of an upload's, or none."""
        located = self._rules.locate(upload.path)
        try:
            state = beneath.state(located[0].path, located[1]) if located else None
        except (OSError, NotBelowWatch):
            return True
        return state is None or state.inode != upload.state.inode

    def forget_file(self, upload: Upload) -> list[tuple[str, FileState]]:
        """Forget where the file of an upload went that is gone; return the names that the decision
        about it has followed it to, and what it was like then.
        """
        old, names, others = upload.state, [], []
        for rename in self._renames:
            file = rename.file
            if file and file.is_same_file(old) and not file.rewritten_since(old.size, old.ctime):
                names.append((rename.new, file))
                self._journal.release(rename.position)
            else:
                others.append(rename)
        self._renames = others
        return names

    def settle(self, upload: Upload) -> None:
        """Forget an upload that waits no longer."""
        self._missing.pop(upload.id, None)

    def replay(self, position: int, record: Mapping[str, Any]) -> None:
        """Take up a rename from the journal."""
        file = FileState.decode(record["file"]) if "file" in record else None
        self._keep(Rename(record["from"], record["path"], file, position))

    def _keep(self, rename: Rename) -> None:
        self._journal.hold(rename.position)
        self._renames.append(rename)


def _is_as_accepted(upload: Upload) -> bool:
    """Whether a file is where it was and nothing of it has changed, not even its ctime.

    By its path alone, whatever stands in the way: it is the same inode.
    """
    try:
        return FileState.of(os.lstat(upload.path)) == upload.state
    except OSError:
        return False


def _give_name_back(root: str, subpath: str, upload: Upload) -> None:
    """Name a file as it was that was claimed when watchman was killed; or raise OSError."""
    directory, _, name = subpath.rpartition("/")
    hidden = claim_name(upload.id)
    fd = beneath.open_directory(root, directory)
    try:
        if os.stat(hidden, dir_fd=fd, follow_symlinks=False).st_ino == upload.state.inode:
            renaming.rename(fd, hidden, fd, name)
    finally:
        os.close(fd)


def _is_rewritten(upload: Upload, watch: WatchSettings, subpath: str, state: FileState) -> bool:
    """Whether a file holds something else than was accepted; its size and mtime may be the same."""
    old = upload.state
    if state.rewritten_since(old.size, old.ctime) or not upload.sample or state.ctime == old.ctime:
        return state.rewritten_since(old.size, old.ctime)
    sample = beneath.sample(watch.path, subpath, state)
    return sample is not None and sample != upload.sample


def _is_there(upload: Upload, watch: WatchSettings, device: int) -> bool:
    """Whether a directory on `device` is on the filesystem that a file was on."""
    then, now = upload.root, beneath.identity(watch.path)
    if then is None or now is None:
        return device == upload.state.device
    # Devices may have other numbers by now, as after a boot, and those of each other. So: is the
    # root the one of then, and are both on its filesystem, or neither?
    is_same = watch.mounted or then[0] == now[0] or then[1] == now[1]
    return is_same and (device == now[0]) == (upload.state.device == then[0])
