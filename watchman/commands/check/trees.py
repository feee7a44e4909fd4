"""What `watchman check` says of watches and moves, by a look at what lies below them now."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from watchman.commands.check.findings import Finding, error, ok, warn
from watchman.commands.check.rights import ENTER, WRITE, complaint, me, sticky_complaint
from watchman.commands.shared.filesystems import (
    CAP_CHOWN,
    CAP_FOWNER,
    grants_leases,
    group_name,
    has_capability,
    may,
    may_lease_any_file,
    type_of,
    user_name,
    watch_limit,
)
from watchman.commands.shared.table import count
from watchman.config.rules import Rules
from watchman.config.settings import MoveSettings, Settings, WatchSettings
from watchman.uploads import mounts

#: Files at whose rights is looked, of one directory and of a watch.
FILES_OF_ONE = 20
FILES = 10_000

#: Places that are named of all that have a problem.
NAMED = 10

#: Part of the kernel's limit on watched directories from which to raise it.
NEARLY = 0.8

#: A file and what lstat(2) says of it.
File = tuple[str, os.stat_result]


def check(settings: Settings) -> Iterator[Finding]:
    rules = Rules(settings)
    moves = {name: _Move(move) for name, move in settings.moves.items()}
    directories = 0
    for watch in settings.watches.values():
        tree = _Tree(watch, rules, moves)
        yield from tree.check()
        directories += tree.directories
    yield _limit(directories)
    for move in moves.values():
        yield from move.check()


class _Problems:
    """What is wrong in many places, of which the first are named."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}
        self._more = 0

    def add(self, text: str) -> None:
        if text and text not in self._texts:
            if len(self._texts) < NAMED:
                self._texts[text] = None
            else:
                self._more += 1

    def told(self, what: str) -> Iterator[str]:
        yield from (f"{what}: {text}" for text in self._texts)
        if self._more:
            yield f"{what}: {count(self._more, 'more place')} like these"


class _Tree:
    """A watch, walked as the daemon will: no symlink is followed."""

    def __init__(self, watch: WatchSettings, rules: Rules, moves: dict[str, _Move]) -> None:
        self.directories = 0
        self._watch = watch
        self._rules = rules
        self._moves = moves
        self._subject = f"watch:{watch.name}"
        self._barred = _Problems()
        self._unread = _Problems()
        self._files = 0
        self._devices: set[int] = set()

    def check(self) -> Iterator[Finding]:
        path = self._watch.path
        if not os.path.isdir(path) or not may(path, ENTER):
            yield self._nothing(path)
            return
        self._walk(path)
        kind = type_of(path)
        where = f"on {kind}"
        if len(self._devices) > 1:
            where = f"on {len(self._devices)} filesystems, the first of them {kind}"
        yield ok(
            self._subject,
            f"{path} has {count(self.directories, 'directory', 'directories')} {where}",
        )
        for text in self._barred.told("files there are missed"):
            yield warn(self._subject, text)
        for text in self._unread.told("may not be read"):
            yield warn(self._subject, text)
        yield self._wholeness(kind)

    def _nothing(self, path: str) -> Finding:
        """Say why there is nothing to walk."""
        if text := complaint(path, 0) or (os.path.isdir(path) and complaint(path, ENTER)):
            return error(self._subject, text)
        if os.path.lexists(path):
            return error(self._subject, f"{path!r} is not a directory")
        return warn(self._subject, f"{path!r} is not there yet; the daemon waits for it")

    def _walk(self, path: str) -> None:
        for top, names, files in os.walk(path, onerror=self._bar):
            self.directories += 1
            with contextlib.suppress(OSError):  # gone meanwhile
                self._look(top, files)
            if not self._watch.rec:
                names.clear()

    def _bar(self, reason: OSError) -> None:
        if not isinstance(reason, FileNotFoundError):
            why = f"{reason.filename!r}: {reason.strerror}"
            self._barred.add(complaint(reason.filename, ENTER) or why)
            if move := self._rules.move_for(os.path.join(reason.filename, "upload")):
                self._moves[move.name].miss(reason.filename)

    def _look(self, top: str, names: Sequence[str]) -> None:
        status = os.stat(top)
        self._devices.add(status.st_dev)
        located = self._rules.locate(os.path.join(top, "upload"))
        if located is None or located[0] is not self._watch or self._is_excluded(top):
            return
        if not may(top, ENTER):
            self._barred.add(complaint(top, ENTER))
        files = list(self._some(top, names))
        for path, _ in files:
            if not may(path, os.R_OK):
                self._unread.add(complaint(path, os.R_OK))
        if move := self._rules.move_for(os.path.join(top, "upload")):
            self._moves[move.name].look(top, status, files)

    def _some(self, top: str, names: Sequence[str]) -> Iterator[File]:
        """Yield some of the files that would be uploads."""
        for name in names[: min(FILES_OF_ONE, FILES - self._files)]:
            path = os.path.join(top, name)
            self._files += 1
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) and not self._is_excluded(path):
                    yield path, status

    def _is_excluded(self, path: str) -> bool:
        subpath = os.path.relpath(path, self._watch.path)
        return subpath != "." and self._rules.excluded(self._watch, subpath) is not None

    def _wholeness(self, kind: str) -> Finding:
        """How the daemon will know that nobody is still writing a file."""
        quiet = "counts as whole once it was quiet for a while"
        if not grants_leases(self._watch.path):
            return warn(
                self._subject,
                f"{kind} is not known to be local, so leases count for nothing and a file {quiet};"
                " and what other hosts write is found by `rescan` alone",
            )
        if may_lease_any_file():
            return ok(self._subject, "leases tell who still writes, for every file (CAP_LEASE)")
        return warn(
            self._subject,
            f"leases tell who still writes {me()}'s own files; without CAP_LEASE any other file"
            f" {quiet}",
        )


class _Move:
    """A move, and what was seen in the directories that it takes files from."""

    def __init__(self, settings: MoveSettings) -> None:
        self._settings = settings
        self._problems = _Problems()
        #: Whether files are renamed, and whether some are not our own.
        self._renames = False
        self._foreign = False
        #: Of the destination, -1 where that cannot be looked at.
        self._device = -1
        with contextlib.suppress(OSError):
            self._device = os.stat(settings.destination).st_dev

    def look(self, top: str, status: os.stat_result, files: Sequence[File]) -> None:
        """Look at a directory, unless nothing can be uploaded there: as the FTP root is root's."""
        if not files and not _others_may_write(status):
            return
        owners = {file.st_uid for _, file in files}
        self._foreign |= bool((owners or {status.st_uid}) - {os.geteuid()})
        if may(top, WRITE):
            owns_all = has_capability(CAP_FOWNER)
            self._problems.add(sticky_complaint(top, owners, owns_all=owns_all))
        else:
            self._problems.add(complaint(top, WRITE))
        if status.st_dev == self._device:
            self._renames = True
        else:
            for path, _ in files:
                if not may(path, os.R_OK):
                    self._problems.add(complaint(path, os.R_OK))
        there = self._settings.destination
        target = os.path.normpath(os.path.join(there, os.path.relpath(top, self._settings.source)))
        while target != there and not os.path.lexists(target):
            target = os.path.dirname(target)
        if target != there and not may(target, WRITE):
            self._problems.add(complaint(target, WRITE))

    def miss(self, top: str) -> None:
        """Take a directory that cannot be looked into for one in which there are files."""
        with contextlib.suppress(OSError):
            if _others_may_write(os.stat(top)):
                self._problems.add(complaint(top, ENTER | WRITE))

    def check(self) -> Iterator[Finding]:
        subject, there = f"move:{self._settings.name}", self._settings.destination
        if text := complaint(there, 0):
            yield error(subject, text)
            return
        if not os.path.lexists(there):
            text = f"{there!r} is not there yet; the daemon waits for it, never makes it"
            yield warn(subject, text)
            return
        if not os.path.isdir(there):
            yield error(subject, f"{there!r} is not a directory")
            return
        if self._settings.mounted and not mounts.is_mounted(there):
            yield warn(subject, f"{there!r} is not mounted; the daemon waits until it is")
            return
        self._problems.add(complaint(there, WRITE))
        for text in self._problems.told("files cannot be moved"):
            yield error(subject, text)
        for text in self._beyond_us():
            yield error(subject, text)
        source = self._settings.source
        how = "copied, for it is on another filesystem"
        if os.path.isdir(source) and self._device == os.stat(source).st_dev:
            how = "renamed, for it is on the same filesystem"
        yield ok(subject, f"files go from {source} to {there}, {how}")
        if not grants_leases(source) or not may_lease_any_file():
            text = "who opens a file for writing at the moment it is moved may not be seen"
            yield warn(subject, f"{text}: {_lease_reason(source)}")

    def _beyond_us(self) -> Iterator[str]:
        """Say what of `owner`, `group` and `mode` only root may set, see chown(2), chmod(2)."""
        owner, group, mode = self._settings.owner, self._settings.group, self._settings.mode
        #: A copy is ours, a renamed file its owner's.
        is_ours = not (self._renames and self._foreign)
        if not has_capability(CAP_CHOWN):
            if owner is not None and not (is_ours and owner == os.geteuid()):
                yield f"owner = {user_name(owner)} takes CAP_CHOWN: leave it out, or run as root"
            if group is not None and group not in {os.getegid(), *os.getgroups()}:
                yield f"{me()} is not in its group; usermod -a -G {group_name(group)} {me()}"
            elif group is not None and not is_ours:
                yield "group of others' files takes CAP_CHOWN: leave it out, or run as root"
        if mode is not None and not is_ours and not has_capability(CAP_FOWNER):
            yield "mode of others' files takes CAP_FOWNER: leave it out, or run as root"


def _others_may_write(status: os.stat_result) -> bool:
    mode = status.st_mode
    return bool(
        (status.st_uid and mode & stat.S_IWUSR)
        or (status.st_gid and mode & stat.S_IWGRP)
        or mode & stat.S_IWOTH
    )


def _lease_reason(path: str) -> str:
    kind = type_of(path)
    if not grants_leases(path):
        return f"{kind} is not known to be local, so leases count for nothing"
    return "without CAP_LEASE the kernel tells only of one's own files"


def _limit(directories: int) -> Finding:
    limit = watch_limit()
    if limit is None:
        return error("inotify", "this kernel has none; only `rescan` would find files")
    text = f"{count(directories, 'directory', 'directories')} to watch, {limit} allowed per user"
    if directories > limit * NEARLY:
        level = error if directories > limit else warn
        return level("inotify", f"{text}; sysctl fs.inotify.max_user_watches={2 * directories}")
    return ok("inotify", text)
