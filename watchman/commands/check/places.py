"""What `watchman check` says of our own directories and files. Looks only, makes nothing."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from watchman.commands.check.findings import Finding, error, ok, warn
from watchman.commands.check.rights import ENTER, WRITE, complaint, me
from watchman.commands.shared.filesystems import NETWORK, VOLATILE, may, type_of, user_name
from watchman.config.settings import Settings

#: Bytes that should be free for the journal.
FREE = 100 * 2**20


def check(settings: Settings) -> Iterator[Finding]:
    yield from _user(settings)
    yield from _spool(settings.spool)
    yield from _socket(settings.socket)
    yield from _log_file(settings.log_file)
    yield from hard_links()
    for path in settings.proftpd.transfer_log:
        directory = os.path.dirname(path)
        for place, rights in ((directory, ENTER), (path, os.R_OK)):
            # What is not there is not ours to make.
            if os.path.exists(place) and (text := complaint(place, rights)):
                yield error("transfer_log", text)


def _user(settings: Settings) -> Iterator[Finding]:
    """Say so if these are not the rights that the daemon will have."""
    try:
        owner = os.stat(settings.spool).st_uid
    except OSError:
        return
    if owner != os.geteuid():
        text = f"the spool is {user_name(owner)}'s, and it is {me()}'s rights that are looked at"
        command = f"runuser -u {user_name(owner)} -- watchman -c {settings.file} check"
        yield warn("config", f"{text}; {command}")


def _spool(path: str) -> Iterator[Finding]:
    yield from writable_directory("spool", path, "0700", read=True)
    try:
        status = os.stat(path)
    except OSError:
        return
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
    elif not os.path.isfile(path):
        yield error("log_file", f"{path!r} is no file that {me()} may write")
    elif text := complaint(path, os.W_OK):
        yield error("log_file", text)
    else:
        yield ok("log_file", path)


def writable_directory(
    subject: str, path: str, mode: str, *, read: bool = False
) -> Iterator[Finding]:
    """Whether the daemon can write to a directory, and read it if it must, or make it."""
    above = next(one for one in Path(path).parents if os.path.lexists(one))
    if text := complaint(path, 0):
        yield error(subject, text)
    elif os.path.isdir(path):
        text = complaint(path, WRITE | (os.R_OK if read else 0))
        yield error(subject, text) if text else ok(subject, path)
    elif os.path.lexists(path):
        yield error(subject, f"{path!r} is not a directory")
    elif not above.is_dir():
        yield error(subject, f"{path!r} cannot be made: {str(above)!r} is not a directory")
    elif not may(str(above), WRITE):
        command = f"install -d -m {mode} -o {user_name(os.geteuid())} {path}"
        text = f"{path!r} is not there, and {me()} may not write to {str(above)!r}; {command}"
        yield error(subject, text)
    else:
        yield ok(subject, f"{path} (will be made)")


def hard_links(switch: str = "/proc/sys/fs/protected_hardlinks") -> Iterator[Finding]:
    """Whether users may give files of others a name of their own."""
    with contextlib.suppress(OSError):
        if Path(switch).read_text().strip() == "0":
            text = "users may link to files of others, which are refused where that is seen"
            yield warn("links", f"{text}; sysctl fs.protected_hardlinks=1")
