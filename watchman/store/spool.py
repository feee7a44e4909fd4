"""The spool directory: held by one daemon, and the ledgers in it."""

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile

from watchman.config.files import make_directory
from watchman.config.settings import Settings, WatchSettings
from watchman.errors import SpoolLocked
from watchman.store.ledger import Ledger


def lock(spool: str) -> int:
    """Make the spool, owner-only, and hold it until the descriptor is closed."""
    for name in ("", "ledger", "journal", "history"):
        directory = os.path.join(spool, name)
        make_directory(directory.rstrip("/"), 0o700)
        if stat.S_IMODE(os.stat(directory).st_mode) != 0o700:
            os.chmod(directory, 0o700)
    fd = os.open(os.path.join(spool, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise SpoolLocked(
            f"the daemon with pid {holder or '?'} holds the spool {spool}: it runs already, and"
            " `watchman status` tells how it does"
        ) from e
    # A word for whom it keeps out; a disk that is full shall not keep us from starting.
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def ledger_directory(settings: Settings) -> str:
    """Return where the files of all ledgers are."""
    return os.path.join(settings.spool, "ledger")


def open_ledger(settings: Settings, watch: WatchSettings) -> Ledger:
    """Open a watch's ledger, and at first sight settle what is to become of what is there."""
    name = hashlib.blake2b(os.fsencode(watch.path), digest_size=8).hexdigest()
    ledger = Ledger(os.path.join(ledger_directory(settings), name), watch.path)
    now = _now(settings.spool)
    if not ledger.open():
        ledger.begin(0 if watch.existing else now, inherits=True)
    elif not watch.catch_up:
        ledger.begin(now)
    return ledger


def _now(spool: str) -> int:
    """Return the time (ns) that the kernel stamps a file with now: our clock may be another."""
    try:
        with tempfile.TemporaryFile(dir=spool) as file:
            return os.fstat(file.fileno()).st_ctime_ns
    except OSError:
        # A full disk has no inode left, maybe; the directory was stamped when we locked the spool.
        return os.stat(os.path.join(spool, "lock")).st_ctime_ns
