"""The spool directory: its lock, which one daemon holds, and the ledgers in it."""

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
    """Make the spool, for its owner only, and lock it. Return a descriptor.

    The lock is held until the descriptor is closed. Raises SpoolLocked or OSError.
    """
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
    # Our pid is for the message above. If the disk is full we start without writing it.
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def ledger_directory(settings: Settings) -> str:
    """Return the directory with the files of all ledgers."""
    return os.path.join(settings.spool, "ledger")


def open_ledger(settings: Settings, watch: WatchSettings) -> Ledger:
    """Open the ledger of a watch. Raises OSError.

    For a new watch, the option `existing` says whether files that are there already become uploads.
    For a known one, `catch_up` says it of files that came while the watch was not looked at.
    """
    name = hashlib.blake2b(os.fsencode(watch.path), digest_size=8).hexdigest()
    ledger = Ledger(os.path.join(ledger_directory(settings), name), watch.path)
    now = _now(settings.spool)
    if not ledger.open():
        ledger.begin(0 if watch.existing else now, inherits=True)
    elif not watch.catch_up:
        ledger.begin(now)
    return ledger


def _now(spool: str) -> int:
    """Return the time (ns) that the kernel gives as ctime to a file that changes now.

    It is compared with such ctimes, and our own clock may differ from the one that sets them.
    """
    try:
        with tempfile.TemporaryFile(dir=spool) as file:
            return os.fstat(file.fileno()).st_ctime_ns
    except OSError:
        # A full disk may have no inode left. The lock was changed last when we took it.
        return os.stat(os.path.join(spool, "lock")).st_ctime_ns
