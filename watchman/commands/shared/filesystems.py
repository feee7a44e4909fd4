"""What the kernel says of filesystems and limits. Reads /proc and nothing else."""

import os
import re
from pathlib import Path

from watchman.uploads.mounts import is_local
from watchman.uploads.rights import CAP_LEASE, has_capability

#: Where other hosts write unseen: inotify tells only of our own, and leases are refused.
NETWORK = re.compile(r"nfs\d*|cifs|smb3|smbfs|9p|ceph|afs|lustre|fuse\..*|fuse")

#: Gone after a boot.
VOLATILE = frozenset({"tmpfs", "ramfs"})


def type_of(path: str) -> str:
    """The filesystem type that `path` lies on, as /proc/self/mounts names it."""
    real = os.path.realpath(path)
    found, longest = "unknown", -1
    for line in Path("/proc/self/mounts").read_bytes().splitlines():
        _, place, kind, *_ = line.split(b" ")
        # Blanks and backslashes are octal escapes there, see getmntent(3).
        mount = os.fsdecode(re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), place))
        below = real == mount or real.startswith(mount.rstrip("/") + "/")
        if below and len(mount) >= longest:  # of two mounts on one place the later one shows
            found, longest = os.fsdecode(kind), len(mount)
    return found


def grants_leases(path: str) -> bool:
    """Whether the kernel sees every writer of the files on a path's filesystem, as far as known."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_local(fd)
    finally:
        os.close(fd)


def may_lease_any_file() -> bool:
    """Whether fcntl(2) grants leases on files of others too."""
    return has_capability(CAP_LEASE)


def watch_limit() -> int | None:
    """How many directories one user may watch; None where the kernel has no inotify."""
    try:
        return int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    except FileNotFoundError:
        return None
