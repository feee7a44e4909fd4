"""What happened to the files of uploads that wait: overwritten, renamed, away, or gone."""

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

#: Seconds until we look again at a file that a broken disk or a missing right keeps from us.
RETRY = 5.0

#: Seconds for which a file must be missing before it counts as gone. The watcher may be about to
#: report that it was renamed.
MISSING = 1.0


@dataclass(frozen=True, slots=True)
class Rename:
    """A rename. `file` is the file's state then, None if a directory was renamed.

    `position` is where the journal has its record.
    """

    old: str
    new: str
    file: FileState | None
    position: int

    def leads(self, path: str, inode: int) -> str | None:
        """Return where a file that was at `path` may be now; None if something else was renamed."""
        if self.file is not None:
            return self.new if self.file.inode == inode else None
        if path == self.old or path.startswith(self.old + "/"):
            return self.new + path[len(self.old) :]
        return None


class FileTracker:
    """Looks at an upload's file before it is moved or sent, and remembers renames.

    Movers and publishers call `look`; the dispatcher's thread calls everything else.
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
        #: Renames in their order. Uploads may wait for files that still had the old name.
        self._renames: list[Rename] = []
        #: By upload id, since when (monotonic) its file is missing.
        self._missing: dict[str, float] = {}

    def look(self, upload: Upload) -> Report | None:
        """Look at an upload's file. Return None if it may be moved or sent, else what to report."""
        if _is_as_accepted(upload):
            return None
        located = self._rules.locate(upload.path)
        if located is None:
            return None  # since it was accepted, its watch left the INI file or has another path
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
        """Return why an upload must not be tried again with the file as it is, "" if it may."""
        located = self._rules.locate(upload.path)
        if located is None or upload.source_state is not None:
            return ""
        try:
            with beneath.look(located[0].path, located[1]) as look:
                return look.ownership.refusal(upload.owner[0] if upload.owner else None)
        except FileNotFoundError:
            return "" if self._is_away(upload, located[0]) else "its file is not there any more"
        except (OSError, NotBelowWatch):
            return ""  # `look` will report that in its turn

    def _is_outdated(self, watch: WatchSettings, subpath: str, known: FileState) -> bool:
        """Whether the ledger has a decision about a later write than the state `known`."""
        # None if a reload has just taken the watch away, after we located the path.
        ledger = self._ledgers.get(watch.name)
        return ledger is not None and ledger.decided_since(subpath, known)

    def _last_known(self, upload: Upload, path: str) -> FileState:
        """Return the state of a file when it was accepted, or later when it was renamed to `path`.

        A rename sets a file's ctime, and the ledger then has the decision with that ctime. Only the
        last component of `path` is compared, since its directory may have been renamed, too.
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
        """Whether the filesystem that a file was on is not mounted, at the watch or below it."""
        if watch.mounted and not mounts.is_mounted(watch.path):
            return True
        directory = os.path.relpath(upload.path, watch.path)
        while directory:
            directory = os.path.dirname(directory)
            try:
                fd = beneath.open_directory(watch.path, directory)
            except (FileNotFoundError, NotBelowWatch):
                continue  # the directory is deleted, too: ask the one above
            except OSError:
                return True
            try:
                device = os.fstat(fd).st_dev
            finally:
                os.close(fd)
            return not _is_there(upload, watch, device)
        return True

    def _look_for(self, upload: Upload, watch: WatchSettings) -> Report:
        """Find out why a file is not where it was, and report that."""
        if self._is_away(upload, watch):
            reason = f"{watch.path} is away"
            return Report(upload, State.DEFERRED, reason, lane=f"watch:{watch.name}", delay=RETRY)
        return self._find(
            upload, Report(upload, State.GONE, "deleted or moved away before its turn")
        )

    def _find(self, upload: Upload, lost: Report) -> Report:
        """Look for a file under the names that renames may have given it.

        Report it as RENAMED if it is there; else DEFERRED, and `lost` once it was missing for
        MISSING seconds.
        """
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
        """Return the paths to which renames may have brought a file, the latest first.

        Notifications of renames may be missing, late or doubled. So each path is only a candidate.
        """
        paths = {upload.path: None}
        for rename in list(self._renames):
            for path in [rename.leads(path, upload.state.inode) for path in paths]:
                if path is not None:
                    paths.pop(path, None)
                    paths[path] = None
        return [path for path in reversed(paths) if path != upload.path]

    def follow(self, old: str, new: str, file: FileState | None = None) -> None:
        """Remember a rename, for as long as uploads wait whose files may have had the old name.

        `file` is the state of a file that was renamed and decided about, None for a directory.
        """

        def durable(position: int) -> None:
            self._keep(Rename(old, new, file, position))

        record: dict[str, Any] = {"event": State.RENAMED, "at": time.time()}
        record |= {"from": old, "path": new}
        if file is not None:
            record["file"] = file.encode()
        self._commit.stage(record, durable, lasting=True)

    def forget_renames(self) -> None:
        """Forget all renames, because no upload waits any more."""
        for rename in self._renames:
            self._journal.release(rename.position)
        self._renames.clear()

    def is_replaced(self, upload: Upload) -> bool:
        """Whether the name of an upload's file is now another file's, or nobody's."""
        located = self._rules.locate(upload.path)
        try:
            state = beneath.state(located[0].path, located[1]) if located else None
        except (OSError, NotBelowWatch):
            return True
        return state is None or state.inode != upload.state.inode

    def forget_file(self, upload: Upload) -> list[tuple[str, FileState]]:
        """Forget the renames of a file that is gone.

        Return the names that they gave it, with its state then: decisions stand under those names.
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
        """Forget an upload that does not wait any more."""
        self._missing.pop(upload.id, None)

    def replay(self, position: int, record: Mapping[str, Any]) -> None:
        """Remember a rename from its record in the journal."""
        file = FileState.decode(record["file"]) if "file" in record else None
        self._keep(Rename(record["from"], record["path"], file, position))

    def _keep(self, rename: Rename) -> None:
        self._journal.hold(rename.position)
        self._renames.append(rename)


def _is_as_accepted(upload: Upload) -> bool:
    """Whether a file is where it was and has not changed at all, not even its ctime.

    A symlink on the way does no harm here: inode and ctime show that it is the same file.
    """
    try:
        return FileState.of(os.lstat(upload.path)) == upload.state
    except OSError:
        return False


def _give_name_back(root: str, subpath: str, upload: Upload) -> None:
    """Give a file its name back that was claimed when watchman was killed. Raises OSError."""
    directory, _, name = subpath.rpartition("/")
    hidden = claim_name(upload.id)
    fd = beneath.open_directory(root, directory)
    try:
        if os.stat(hidden, dir_fd=fd, follow_symlinks=False).st_ino == upload.state.inode:
            renaming.rename(fd, hidden, fd, name)
    finally:
        os.close(fd)


def _is_rewritten(upload: Upload, watch: WatchSettings, subpath: str, state: FileState) -> bool:
    """Whether a file's content is not what was accepted, though size and mtime may be the same."""
    old = upload.state
    if state.rewritten_since(old.size, old.ctime) or not upload.sample or state.ctime == old.ctime:
        return state.rewritten_since(old.size, old.ctime)
    sample = beneath.sample(watch.path, subpath, state)
    return sample is not None and sample != upload.sample


def _is_there(upload: Upload, watch: WatchSettings, device: int) -> bool:
    """Whether a directory with this device number is on the filesystem that a file was on."""
    then, now = upload.root, beneath.identity(watch.path)
    if then is None or now is None:
        return device == upload.state.device
    # Filesystems may have other device numbers by now, for instance after a boot, even each other's
    # numbers. So we ask two questions. Is the watch's root the same directory as then? And were and
    # are file and directory both on the root's filesystem, or both not?
    is_same = watch.mounted or then[0] == now[0] or then[1] == now[1]
    return is_same and (device == now[0]) == (upload.state.device == then[0])
