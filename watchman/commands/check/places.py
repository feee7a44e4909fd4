"""What `watchman check` says of our own directories and files. Looks only, makes nothing."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from watchman.commands.check.findings import Finding, error, ok, warn
from watchman.commands.check.rights import closed, directory
from watchman.commands.check.spool import strays
from watchman.commands.shared.filesystems import NETWORK, VOLATILE, type_of
from watchman.config.settings import Settings
from watchman.uploads.rights import ENTER, WRITE, complaint, may, me, user_name

#: Bytes that should be free for the journal.
FREE = 100 * 2**20


def check(settings: Settings) -> Iterator[Finding]:
    yield from _spool(settings)
    yield from _socket(settings.socket)
    yield _log_file(settings.log_file)
    if settings.metrics:
        yield _metrics(settings.metrics)
    yield from hard_links()
    for path in settings.proftpd.transfer_log:
        for place, rights in ((os.path.dirname(path), ENTER), (path, os.R_OK)):
            # What is not there is not ours to make.
            if os.path.exists(place) and (text := complaint(place, rights)):
                yield error("transfer_log", text)


def _spool(settings: Settings) -> Iterator[Finding]:
    path = settings.spool
    status = os.stat(path) if os.path.exists(path) else None
    if status and status.st_uid != os.geteuid():
        # These are not the rights that the daemon will have.
        owner = user_name(status.st_uid)
        text = f"the spool is {owner}'s, and it is {me()}'s rights that are looked at"
        yield warn("config", f"{text}; runuser -u {owner} -- watchman -c {settings.file} check")
    elif text := strays(path):
        yield error("spool", text)
    yield writable("spool", path, "0700", WRITE | os.R_OK)
    if status is None:
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
    yield writable("socket", os.path.dirname(path), "0755")
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        yield error("socket", f"{path!r} is not a socket; move it away")
    for above in closed(os.path.dirname(path)):
        yield warn("socket", f"FTP users cannot reach it through {above!r}; chmod o+x it")


def _log_file(path: str) -> Finding:
    if not path:
        return ok("log_file", "stderr")
    if not os.path.exists(path):
        return writable("log_file", os.path.dirname(path), "0750")
    if not os.path.isfile(path):
        return error("log_file", f"{path!r} is no file that {me()} may write")
    text = complaint(path, os.W_OK)
    return error("log_file", text) if text else ok("log_file", path)


def _metrics(path: str) -> Finding:
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        text = f"{above!r} is not a directory; it is where node_exporter looks for textfiles, see"
        return error("metrics", f"{text} its option --collector.textfile.directory")
    # Not the file itself: it is replaced as a whole.
    if text := complaint(above, WRITE):
        return error("metrics", text)
    if not path.endswith(".prom"):
        return warn("metrics", f"node_exporter reads no {path!r}; its name must end in .prom")
    return ok("metrics", path)


def writable(subject: str, path: str, mode: str, rights: int = WRITE) -> Finding:
    """Whether the daemon can write to a directory, with other `rights` if it must, or make it."""
    if finding := directory(subject, path, rights):
        return finding
    above = next(str(one) for one in Path(path).parents if os.path.lexists(one))
    if not os.path.isdir(above):
        return error(subject, f"{path!r} cannot be made: {above!r} is not a directory")
    if not may(above, WRITE):
        command = f"install -d -m {mode} -o {me()} {path}"
        text = f"{path!r} is not there, and {me()} may not write to {above!r}"
        return error(subject, f"{text}; {command}")
    return ok(subject, f"{path} (will be made)")


def hard_links(switch: str = "/proc/sys/fs/protected_hardlinks") -> Iterator[Finding]:
    """Whether users may give files of others a name of their own."""
    with contextlib.suppress(OSError):
        if Path(switch).read_text().strip() == "0":
            text = "users may link to files of others, which are refused where that is seen"
            yield warn("links", f"{text}; sysctl fs.protected_hardlinks=1")
