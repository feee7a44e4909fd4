"""What `watchman check` says of directories and files. Looks only, makes and opens nothing."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from watchman import mounts
from watchman.commands.filesystems import (
    NETWORK,
    VOLATILE,
    may,
    may_lease_any_file,
    type_of,
    user_name,
    watch_limit,
)
from watchman.commands.findings import Finding, error, ok, warn
from watchman.commands.table import count
from watchman.settings import MoveSettings, Settings, WatchSettings

#: Bytes that should be free for the journal.
FREE = 100 * 2**20

#: Part of the kernel's limit on watched directories from which to raise it.
NEARLY = 0.8


def check(settings: Settings) -> Iterator[Finding]:
    yield from _spool(settings.spool)
    yield from _socket(settings.socket)
    yield from _log_file(settings.log_file)
    directories = 0
    for watch in settings.watches.values():
        found = _Tree(watch)
        yield from found.check()
        directories += found.directories
    yield _limit(directories)
    yield from hard_links()
    for move in settings.moves.values():
        yield from _move(move)


def _spool(path: str) -> Iterator[Finding]:
    yield from writable_directory("spool", path, "0700")
    try:
        status = os.stat(path)
    except OSError:
        return
    if status.st_uid != os.geteuid():
        owner = user_name(status.st_uid)
        yield warn("spool", f"{path!r} belongs to {owner}; check as the user who runs the daemon")
    if status.st_mode & 0o077:
        yield warn("spool", f"{path!r} is not its owner's alone; chmod go= {path}")
    volume = os.statvfs(path)
    free = volume.f_bavail * volume.f_frsize
    if free < FREE or (volume.f_files and not volume.f_favail):
        yield warn("spool", f"{free // 2**20} MiB and {volume.f_favail} inodes are free")
    if (kind := type_of(path)) in VOLATILE:
        yield warn("spool", f"{path!r} is on {kind}: the journal would not outlive a boot")
    elif NETWORK.fullmatch(kind):
        yield warn("spool", f"{path!r} is on {kind}; the journal belongs on a local disk")


def _socket(path: str) -> Iterator[Finding]:
    directory = os.path.dirname(path)
    yield from writable_directory("socket", directory, "0755")
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        yield error("socket", f"{path!r} is not a socket; move it away")
    for above in (Path(directory), *Path(directory).parents):
        if above.is_dir() and not above.stat().st_mode & stat.S_IXOTH:
            yield warn("socket", f"FTP users cannot reach it through {str(above)!r}; chmod o+x it")


def _log_file(path: str) -> Iterator[Finding]:
    if not path:
        yield ok("log_file", "stderr")
    elif not os.path.exists(path):
        yield from writable_directory("log_file", os.path.dirname(path), "0750")
    elif not os.path.isfile(path) or not may(path, os.W_OK):
        yield error("log_file", f"{path!r} is no file that {_me()} may write")
    else:
        yield ok("log_file", path)


def writable_directory(
    subject: str, path: str, mode: str, *, read: bool = False
) -> Iterator[Finding]:
    """Whether the daemon can write to a directory, and read it if it must, or make it."""
    command = f"install -d -m {mode} -o {user_name(os.geteuid())} {path}"
    if os.path.isdir(path):
        if may(path, os.W_OK | os.X_OK | (os.R_OK if read else 0)):
            yield ok(subject, path)
        else:
            yield error(subject, f"{_me()} may not {'read and ' * read}write to {path!r}")
        return
    above = next(one for one in Path(path).parents if os.path.lexists(one))
    if os.path.lexists(path):
        yield error(subject, f"{path!r} is not a directory")
    elif not above.is_dir():
        yield error(subject, f"{path!r} cannot be made: {str(above)!r} is not a directory")
    elif not may(str(above), os.W_OK | os.X_OK):
        yield error(
            subject,
            f"{path!r} is not there, and {_me()} may not write to {str(above)!r}; {command}",
        )
    else:
        yield ok(subject, f"{path} (will be made)")


def _move(move: MoveSettings) -> Iterator[Finding]:
    subject, there = f"move:{move.name}", move.destination
    if not os.path.lexists(there):
        yield warn(subject, f"{there!r} is not there yet; the daemon waits for it, never makes it")
        return
    if not os.path.isdir(there):
        yield error(subject, f"{there!r} is not a directory")
        return
    if move.mounted and not mounts.is_mounted(there):
        yield warn(subject, f"{there!r} is not mounted; the daemon waits until it is")
        return
    for path in (there, move.source):
        if os.path.isdir(path) and not may(path, os.W_OK | os.X_OK):
            yield error(subject, f"{_me()} may not write to {path!r}")
    how = "copied, for it is on another filesystem"
    if os.path.isdir(move.source) and os.stat(there).st_dev == os.stat(move.source).st_dev:
        how = "renamed, for it is on the same filesystem"
    yield ok(subject, f"files go from {move.source} to {there}, {how}")
    if NETWORK.fullmatch(type_of(move.source)) or not may_lease_any_file():
        text = "who opens a file for writing at the moment it is moved may not be seen"
        yield warn(subject, f"{text}: {_lease_reason(move.source)}")


def _lease_reason(path: str) -> str:
    kind = type_of(path)
    if NETWORK.fullmatch(kind):
        return f"{kind} grants no leases"
    return "without CAP_LEASE the kernel tells only of one's own files"


class _Tree:
    """A watch, walked as the daemon will: no symlink is followed."""

    def __init__(self, watch: WatchSettings) -> None:
        self.directories = 0
        self._watch = watch
        self._subject = f"watch:{watch.name}"
        self._barred: list[str] = []
        self._devices: set[int] = set()

    def check(self) -> Iterator[Finding]:
        path = self._watch.path
        if not os.path.lexists(path):
            yield warn(self._subject, f"{path!r} is not there yet; the daemon waits for it")
            return
        if not os.path.isdir(path):
            yield error(self._subject, f"{path!r} is not a directory")
            return
        if not may(path, os.R_OK | os.X_OK):
            yield error(self._subject, f"{_me()} may not read {path!r}")
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
        if self._barred:
            number = count(len(self._barred), "directory", "directories")
            first = self._barred[0]
            yield warn(
                self._subject,
                f"{_me()} may not read {number}, as {first!r}: files there are missed",
            )
        yield self._wholeness(kind)

    def _walk(self, path: str) -> None:
        for top, names, _ in os.walk(path, onerror=self._bar):
            self.directories += 1
            with contextlib.suppress(OSError):  # gone meanwhile
                self._devices.add(os.stat(top).st_dev)
            if not self._watch.rec:
                names.clear()

    def _bar(self, reason: OSError) -> None:
        if not isinstance(reason, FileNotFoundError):
            self._barred.append(reason.filename)

    def _wholeness(self, kind: str) -> Finding:
        """How the daemon will know that nobody is still writing a file."""
        quiet = "counts as whole once it was quiet for a while"
        if NETWORK.fullmatch(kind):
            return warn(
                self._subject,
                f"{kind} grants no leases, so a file {quiet}; and what other hosts write is found"
                " by `rescan` alone",
            )
        if may_lease_any_file():
            return ok(self._subject, "leases tell who still writes, for every file (CAP_LEASE)")
        return warn(
            self._subject,
            f"leases tell who still writes {_me()}'s own files; without CAP_LEASE any other file"
            f" {quiet}",
        )


def _limit(directories: int) -> Finding:
    limit = watch_limit()
    if limit is None:
        return error("inotify", "this kernel has none; only `rescan` would find files")
    text = f"{count(directories, 'directory', 'directories')} to watch, {limit} allowed per user"
    if directories > limit * NEARLY:
        level = error if directories > limit else warn
        return level("inotify", f"{text}; sysctl fs.inotify.max_user_watches={2 * directories}")
    return ok("inotify", text)


def hard_links(switch: str = "/proc/sys/fs/protected_hardlinks") -> Iterator[Finding]:
    """Whether users may give files of others a name of their own."""
    with contextlib.suppress(OSError):
        if Path(switch).read_text().strip() == "0":
            text = "users may link to files of others, which are refused where that is seen"
            yield warn("links", f"{text}; sysctl fs.protected_hardlinks=1")


def _me() -> str:
    return user_name(os.geteuid())
