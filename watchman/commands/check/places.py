"""Checks our own directories and files: spool, socket, log, metrics. Makes and changes nothing."""

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
            # A missing one is no error here: ProFTPD makes it, not the daemon.
            if os.path.exists(place) and (text := complaint(place, rights)):
                yield error("transfer_log", text)


def _spool(settings: Settings) -> Iterator[Finding]:
    path = settings.spool
    status = os.stat(path) if os.path.exists(path) else None
    if status and status.st_uid != os.geteuid():
        # The daemon will have other rights than those that are checked now.
        owner = user_name(status.st_uid)
        text = f"the spool belongs to {owner}, but this checks the rights of {me()}"
        yield warn("config", f"{text}; runuser -u {owner} -- watchman -c {settings.file} check")
    elif text := strays(path):
        yield error("spool", text)
    yield writable("spool", path, "0700", WRITE | os.R_OK)
    if status is None:
        return
    if status.st_mode & 0o077:
        yield warn("spool", f"{path!r} is open to users beside its owner; chmod go= {path}")
    volume = os.statvfs(path)
    free = volume.f_bavail * volume.f_frsize
    if free < FREE or (volume.f_files and not volume.f_favail):
        yield warn("spool", f"only {free // 2**20} MiB and {volume.f_favail} inodes are free")
    if (kind := type_of(path)) in VOLATILE:
        yield warn("spool", f"{path!r} is on {kind}: a reboot would delete the journal")
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
        return error("log_file", f"{path!r} is not a file; name one that {me()} may write")
    text = complaint(path, os.W_OK)
    return error("log_file", text) if text else ok("log_file", path)


def _metrics(path: str) -> Finding:
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        text = f"{above!r} is not a directory; name the one that node_exporter reads, see its"
        return error("metrics", f"{text} option --collector.textfile.directory")
    # The rights of the file itself do not matter: it is replaced as a whole.
    if text := complaint(above, WRITE):
        return error("metrics", text)
    if not path.endswith(".prom"):
        return warn("metrics", f"node_exporter ignores {path!r}; its name must end in .prom")
    return ok("metrics", path)


def writable(subject: str, path: str, mode: str, rights: int = WRITE) -> Finding:
    """Return whether the daemon has `rights` to a directory, or can make the directory."""
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
    """Warn if users may make hard links to files of others, see proc_sys_fs(5)."""
    with contextlib.suppress(OSError):
        if Path(switch).read_text().strip() == "0":
            text = "users may make hard links to files of others; watchman refuses those it detects"
            yield warn("links", f"{text}; sysctl fs.protected_hardlinks=1")
