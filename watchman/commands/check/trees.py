"""Checks the watches and moves, by the directories and files that lie below them now."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Generator, Iterator, Mapping

from watchman.commands.check.findings import Finding, Level, error, ok, warn
from watchman.commands.check.rights import directory
from watchman.commands.shared.filesystems import (
    grants_leases,
    may_lease_any_file,
    type_of,
    watch_limit,
)
from watchman.commands.shared.phrases import count
from watchman.config.rules import Rules
from watchman.config.settings import MoveSettings, Settings, WatchSettings
from watchman.sinks.moving.rights import MoveRights, regular
from watchman.uploads.rights import (
    ENTER,
    Problems,
    complaint,
    group_name,
    me,
)

#: Most files whose rights are checked: in one directory, and in a watch.
FILES_OF_ONE = 20
FILES = 10_000

#: Part of the kernel's limit on watched directories. Above it, `check` advises to raise the limit.
NEARLY = 0.8


def check(settings: Settings) -> Iterator[Finding]:
    rules = Rules(settings)
    moves = {name: MoveRights(move) for name, move in settings.moves.items()}
    directories = 0
    for watch in settings.watches.values():
        directories += yield from _watch(watch, rules, moves)
    yield _limit(directories)
    for name, rights in moves.items():
        yield from _move(settings.moves[name], rights)


def _watch(
    watch: WatchSettings, rules: Rules, moves: Mapping[str, MoveRights]
) -> Generator[Finding, None, int]:
    """Walk a watch as the daemon does: follow no symlink. Return how many directories it has."""
    subject, path = f"watch:{watch.name}", watch.path
    missing = warn(subject, f"{path!r} is not there yet; the daemon waits for it")
    finding = directory(subject, path, ENTER) or missing
    if finding.level is not Level.OK:
        yield finding
        return 0
    barred, unread = Problems(), Problems()
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
                for file in regular(os.path.join(top, name))
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


def _wholeness(subject: str, path: str) -> Finding:
    """Return the finding that says how the daemon knows that a file is whole."""
    quiet = "counts as whole once it was quiet for a while"
    if not grants_leases(path):
        text = f"{_unleased(path)} and a file {quiet}"
        return warn(subject, f"{text}; only `rescan` finds what other hosts write")
    if may_lease_any_file():
        return ok(subject, "leases tell who still writes, for every file (CAP_LEASE)")
    text = f"leases tell who still writes {me()}'s own files"
    return warn(subject, f"{text}; without CAP_LEASE any other file {quiet}")


def _unleased(path: str) -> str:
    """Return why leases do not tell of every file that is being written, "" if they do."""
    if not grants_leases(path):
        return f"{type_of(path)} is not known to be local, so leases prove nothing"
    if not may_lease_any_file():
        return f"without CAP_LEASE the kernel tells {me()} only of its own files"
    return ""


def _move(move: MoveSettings, rights: MoveRights) -> Iterator[Finding]:
    subject, there = f"move:{move.name}", move.destination
    # To see whether something is mounted on a directory takes the right to enter it.
    finding = directory(subject, there, os.X_OK if move.mounted else 0)
    if finding and finding.level is not Level.OK:
        yield finding
        return
    if text := rights.absent():
        yield warn(subject, text)
        return
    for text in rights.problems():
        yield error(subject, text)
    source = move.source
    how = "copied, for it is on another filesystem"
    if os.path.isdir(source) and rights.device == os.stat(source).st_dev:
        how = "renamed, for it is on the same filesystem"
    yield ok(subject, f"files go from {source} to {there}, {how}")
    if not rights.looked and os.geteuid() != 0:
        text = f"no user can upload below {source} yet; {me()} needs rwx on each directory there"
        make = f"install -d -o NAME -g {group_name(os.getegid())} -m 2770"
        yield warn(subject, f"{text}, as by {make} {shlex.quote(source)}/NAME")
    if reason := _unleased(source):
        text = "a program that opens a file for writing while it is moved may go unnoticed"
        yield warn(subject, f"{text}: {reason}")


def _limit(directories: int) -> Finding:
    limit = watch_limit()
    if limit is None:
        return error("inotify", "this kernel has no inotify; only `rescan` would find files")
    text = f"{count(directories, 'directory', 'directories')} to watch, {limit} allowed per user"
    if directories <= limit * NEARLY:
        return ok("inotify", text)
    level = error if directories > limit else warn
    return level("inotify", f"{text}; sysctl fs.inotify.max_user_watches={2 * directories}")
