"""Which filesystem a file below a watch is on, by what stays when devices are numbered anew."""

from __future__ import annotations

import hashlib
import os

from watchman.uploads.local import is_local

#: Bytes that tell one from another.
TAG = 4

#: The filesystem of the watch's root itself.
OWN = bytes(TAG)

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Filesystems:
    """Those below the directory `root`; any thread may ask.

    Inode numbers are a filesystem's own: two disks below one watch use the same. Device numbers
    change at a boot, and at each mount of a tmpfs, a btrfs subvolume or FUSE. So one is known by
    where it is mounted below the watch and its `f_fsid`, see statfs(2), where it has one.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        #: By device number: its tag, and whether it is known to be local. Replaced as a whole.
        self._known: dict[int, tuple[bytes, bool]] = {}

    def forget(self) -> None:
        """Look at each anew: something was mounted, and numbers may mean another one now."""
        self._known = {}

    def tag(self, subpath: str, device: int) -> bytes:
        """Return what tells the filesystem of a file from others, given its device number when it
        was looked at.
        """
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
        """Whether the kernel's own clock sets the times of a file."""
        return (self._known.get(device) or self._look(subpath, device))[1]

    def _look(self, subpath: str, device: int) -> tuple[bytes, bool]:
        known = self._known
        try:
            place, here = self._place(os.path.dirname(subpath))
            found = self._identify(place, here)
            known[here] = found
            if here != device and os.lstat(os.path.join(self._root, subpath)).st_dev == device:
                known[device] = found  # an overlayfs gives files the device of their layer
        except OSError:
            return OWN, True  # the directory is gone
        return found

    def _place(self, directory: str) -> tuple[str, int]:
        """Return the topmost directory, below the root, of the filesystem that one is on."""
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
            # Some, as xfs and vfat, make it of the device number, which says nothing more.
            fsid = os.fstatvfs(fd).f_fsid
            fsid = 0 if fsid == device else fsid
            local = is_local(fd)
        finally:
            os.close(fd)
        if not place:
            return OWN, local
        what = fsid.to_bytes(8, "big") + os.fsencode(place)
        return hashlib.blake2b(what, digest_size=TAG).digest(), local
