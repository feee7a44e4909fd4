"""Which filesystem a file below a watch is on, told apart by tags that outlive a reboot."""

from __future__ import annotations

import hashlib
import os

from watchman.uploads.mounts import is_local

#: Bytes of a tag, which tells one filesystem from others.
TAG = 4

#: The tag of the filesystem that the watch's root is on.
OWN = bytes(TAG)

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Filesystems:
    """The filesystems at and below the directory `root`. Any thread may ask.

    An inode number does not identify a file, because two disks below one watch use the same
    numbers. A device number does not identify a filesystem: it may change at a boot, and at each
    mount of a tmpfs, a btrfs subvolume or FUSE. So a filesystem is identified by the place below
    the watch where it is mounted, and by its `f_fsid` if it has one, see statfs(2).
    """

    def __init__(self, root: str) -> None:
        self._root = root
        #: By device number, the tag, and whether the filesystem is local. Replaced as a whole by
        #: `forget`, since other threads may be reading it.
        self._known: dict[int, tuple[bytes, bool]] = {}

    def forget(self) -> None:
        """Look at each filesystem anew, after a mount: device numbers may mean others now."""
        self._known = {}

    def tag(self, subpath: str, device: int) -> bytes:
        """Return the tag of the filesystem of a file, which had this device number."""
        return (self._known.get(device) or self._look(subpath, device))[0]

    def known_tag(self, device: int) -> bytes | None:
        """Return the tag of a filesystem by its device number alone; None for one on which nothing
        was looked at below the root.
        """
        if not self._known:
            self._look("", device)
        known = self._known.get(device)
        return known[0] if known is not None else None

    def is_local(self, subpath: str, device: int) -> bool:
        """Whether a file is on a local filesystem, so that our kernel's clock sets its times."""
        return (self._known.get(device) or self._look(subpath, device))[1]

    def _look(self, subpath: str, device: int) -> tuple[bytes, bool]:
        """Look up tag and locality of the filesystem that a file is on, and remember them."""
        known = self._known
        try:
            place, here = self._place(os.path.dirname(subpath))
            found = self._identify(place, here)
            known[here] = found
            if here != device and os.lstat(os.path.join(self._root, subpath)).st_dev == device:
                # On an overlayfs a file has the device number of its layer, not of the directory.
                known[device] = found
        except OSError:
            return OWN, True  # the directory is gone
        return found

    def _place(self, directory: str) -> tuple[str, int]:
        """Return where below the root the filesystem of a directory is mounted, and its device."""
        device = os.lstat(os.path.join(self._root, directory)).st_dev
        if os.stat(self._root).st_dev == device:
            return "", device
        while directory:
            above = os.path.dirname(directory)
            if os.stat(os.path.join(self._root, above)).st_dev != device:
                break
            directory = above
        return directory, device

    def _identify(self, place: str, device: int) -> tuple[bytes, bool]:
        flags = _DIRECTORY if place else os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(os.path.join(self._root, place), flags)
        try:
            # Some filesystems, such as xfs and vfat, derive it from the device number. Then it is
            # no more permanent than that.
            fsid = os.fstatvfs(fd).f_fsid
            fsid = 0 if fsid == device else fsid
            local = is_local(fd)
        finally:
            os.close(fd)
        if not place:
            return OWN, local
        what = fsid.to_bytes(8, "big") + os.fsencode(place)
        return hashlib.blake2b(what, digest_size=TAG).digest(), local
