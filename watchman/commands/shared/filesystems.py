"""What the kernel says of filesystems, leases and limits. Only looks, and changes nothing."""

import os
import re
from pathlib import Path

from watchman.uploads.mounts import is_local
from watchman.uploads.rights import CAP_LEASE, has_capability

#: Filesystem types on which other hosts write unseen: inotify reports only what this host does, and
#: the kernel refuses leases.
NETWORK = re.compile(r"nfs\d*|cifs|smb3|smbfs|9p|ceph|afs|lustre|fuse\..*|fuse")

#: Filesystem types that are empty after a boot.
VOLATILE = frozenset({"tmpfs", "ramfs"})


def type_of(path: str) -> str:
    """Return the type of the filesystem that `path` is on, as /proc/self/mounts names it."""
    real = os.path.realpath(path)
    found, longest = "unknown", -1
    for line in Path("/proc/self/mounts").read_bytes().splitlines():
        _, place, kind, *_ = line.split(b" ")
        # Blanks and backslashes are octal escapes there, see getmntent(3).
        mount = os.fsdecode(re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), place))
        below = real == mount or real.startswith(mount.rstrip("/") + "/")
        if below and len(mount) >= longest:  # a later mount on the same place hides it
            found, longest = os.fsdecode(kind), len(mount)
    return found


def grants_leases(path: str) -> bool:
    """Return whether the kernel sees every writer of a path's filesystem, as far as we know."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_local(fd)
    finally:
        os.close(fd)


def may_lease_any_file() -> bool:
    """Return whether fcntl(2) grants us leases on files of other users too."""
    return has_capability(CAP_LEASE)


def watch_limit() -> int | None:
    """Return how many directories one user may watch; None if the kernel has no inotify."""
    try:
        return int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    except FileNotFoundError:
        return None
