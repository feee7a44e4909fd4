"""What `watchman check` says of watches and moves, by a look at what lies below them now."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Generator, Iterator, Mapping, Sequence

from watchman.commands.check.findings import Finding, Level, error, ok, warn
from watchman.commands.check.rights import ENTER, WRITE, account, complaint, directory, me
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
from watchman.commands.shared.phrases import count
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
        directories += yield from _watch(watch, rules, moves)
    yield _limit(directories)
    for move in moves.values():
        yield from move.check()


class _Problems:
    """What is wrong in many places, of which the first are named."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}
        self._more = 0

    def need(self, path: str, rights: int) -> None:
        """Add what we may not do with a path."""
        if not may(path, rights):
            self.add(complaint(path, rights))

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


def _watch(
    watch: WatchSettings, rules: Rules, moves: Mapping[str, _Move]
) -> Generator[Finding, None, int]:
    """Walk a watch as the daemon will, no symlink is followed; return its directories' number."""
    subject, path = f"watch:{watch.name}", watch.path
    missing = warn(subject, f"{path!r} is not there yet; the daemon waits for it")
    finding = directory(subject, path, ENTER) or missing
    if finding.level is not Level.OK:
        yield finding
        return 0
    barred, unread = _Problems(), _Problems()
    devices: set[int] = set()
    directories, left = 0, FILES

    def bar(reason: OSError) -> None:
        if not isinstance(reason, FileNotFoundError):
            why = f"{reason.filename!r}: {reason.strerror}"
            barred.add(complaint(reason.filename, ENTER) or why)
            if move := rules.move_for(os.path.join(reason.filename, "upload")):
                moves[move.name].miss(reason.filename)

    for top, below, names in os.walk(path, onerror=bar):
        directories += 1
        if not watch.rec:
            below.clear()
        with contextlib.suppress(OSError):  # gone meanwhile
            status = os.stat(top)
            devices.add(status.st_dev)
            located = rules.locate(os.path.join(top, "upload"))
            if located is None or located[0] is not watch:
                continue
            subpath = os.path.dirname(located[1])
            if subpath and rules.excluded(watch, subpath) is not None:
                continue
            barred.need(top, ENTER)
            some = names[: min(FILES_OF_ONE, left)]
            left -= len(some)
            files = [
                file
                for name in some
                if rules.excluded(watch, os.path.join(subpath, name)) is None
                for file in _regular(os.path.join(top, name))
            ]
            for file, _ in files:
                unread.need(file, os.R_OK)
            if move := rules.move_for(os.path.join(top, "upload")):
                moves[move.name].look(top, status, files)
    where = f"on {type_of(path)}"
    if len(devices) > 1:
        where = f"on {len(devices)} filesystems, the first of them {type_of(path)}"
    yield ok(subject, f"{path} has {count(directories, 'directory', 'directories')} {where}")
    for text in (*barred.told("files there are missed"), *unread.told("may not be read")):
        yield warn(subject, text)
    yield _wholeness(subject, path)
    return directories


def _regular(path: str) -> Iterator[File]:
    """Yield a path with what lstat(2) says of it, if it is a file that could be an upload."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            yield path, status


def _wholeness(subject: str, path: str) -> Finding:
    """How the daemon will know that nobody is still writing a file."""
    quiet = "counts as whole once it was quiet for a while"
    if not grants_leases(path):
        text = f"{_unleased(path)} and a file {quiet}"
        return warn(subject, f"{text}; and what other hosts write is found by `rescan` alone")
    if may_lease_any_file():
        return ok(subject, "leases tell who still writes, for every file (CAP_LEASE)")
    text = f"leases tell who still writes {me()}'s own files"
    return warn(subject, f"{text}; without CAP_LEASE any other file {quiet}")


def _unleased(path: str) -> str:
    """Why leases do not tell of every file that is being written, or nothing."""
    if not grants_leases(path):
        return f"{type_of(path)} is not known to be local, so leases count for nothing"
    if not may_lease_any_file():
        return "without CAP_LEASE the kernel tells only of one's own files"
    return ""


class _Move:
    """A move, and what was seen in the directories that it takes files from."""

    def __init__(self, settings: MoveSettings) -> None:
        self._settings = settings
        self._problems = _Problems()
        #: Whether files of others are renamed: these stay theirs, where a copy is ours.
        self._renames_foreign = False
        #: Of the destination, -1 where that cannot be looked at.
        self._device = -1
        with contextlib.suppress(OSError):
            self._device = os.stat(settings.destination).st_dev

    def look(self, top: str, status: os.stat_result, files: Sequence[File]) -> None:
        """Look at a directory, unless nothing can be uploaded there: as the FTP root is root's."""
        if not files and not _others_may_write(status):
            return
        owners = {file.st_uid for _, file in files} or {status.st_uid}
        is_foreign = owners != {os.geteuid()}
        self._problems.need(top, WRITE)
        # In a sticky directory only the owner of one of both renames a file, see unlink(2).
        is_sticky = status.st_mode & stat.S_ISVTX and status.st_uid != os.geteuid()
        if is_foreign and is_sticky and may(top, WRITE) and not has_capability(CAP_FOWNER):
            text = f"{top!r} is sticky, so that {me()} may not move what others own"
            self._problems.add(f"{text}; chown {account()} {shlex.quote(top)}")
        if status.st_dev == self._device:
            self._renames_foreign |= is_foreign
        else:
            for path, _ in files:
                self._problems.need(path, os.R_OK)
        there = self._settings.destination
        target = os.path.normpath(os.path.join(there, os.path.relpath(top, self._settings.source)))
        while target != there and not os.path.lexists(target):
            target = os.path.dirname(target)
        if target != there:
            self._problems.need(target, WRITE)

    def miss(self, top: str) -> None:
        """Take a directory that cannot be looked into for one in which there are files."""
        with contextlib.suppress(OSError):
            if _others_may_write(os.stat(top)):
                self._problems.add(complaint(top, ENTER | WRITE))

    def check(self) -> Iterator[Finding]:
        subject, there = f"move:{self._settings.name}", self._settings.destination
        text = f"{there!r} is not there yet; the daemon waits for it, never makes it"
        # Only who may enter it sees whether something is mounted there.
        rights = os.X_OK if self._settings.mounted else 0
        finding = directory(subject, there, rights) or warn(subject, text)
        if finding.level is not Level.OK:
            yield finding
            return
        if self._settings.mounted and not mounts.is_mounted(there):
            yield warn(subject, f"{there!r} is not mounted; the daemon waits until it is")
            return
        self._problems.need(there, WRITE)
        for text in (*self._problems.told("files cannot be moved"), *self._beyond_us()):
            yield error(subject, text)
        source = self._settings.source
        how = "copied, for it is on another filesystem"
        if os.path.isdir(source) and self._device == os.stat(source).st_dev:
            how = "renamed, for it is on the same filesystem"
        yield ok(subject, f"files go from {source} to {there}, {how}")
        if reason := _unleased(source):
            text = "who opens a file for writing at the moment it is moved may not be seen"
            yield warn(subject, f"{text}: {reason}")

    def _beyond_us(self) -> Iterator[str]:
        """Say what of `owner`, `group` and `mode` only root may set, see chown(2), chmod(2)."""
        owner, group, mode = self._settings.owner, self._settings.group, self._settings.mode
        is_ours = not self._renames_foreign
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


def _limit(directories: int) -> Finding:
    limit = watch_limit()
    if limit is None:
        return error("inotify", "this kernel has none; only `rescan` would find files")
    text = f"{count(directories, 'directory', 'directories')} to watch, {limit} allowed per user"
    if directories <= limit * NEARLY:
        return ok("inotify", text)
    level = error if directories > limit else warn
    return level("inotify", f"{text}; sysctl fs.inotify.max_user_watches={2 * directories}")
