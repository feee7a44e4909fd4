"""A decision about a file, as a ledger keeps it."""

from __future__ import annotations

import functools
import sys
from hashlib import blake2b
from typing import NamedTuple

from watchman.store.ledgerfile import ENTRY
from watchman.uploads.filesystems import OWN
from watchman.uploads.upload import FileState

#: A bit in an entry's size. The file was there before its watch, and nothing was decided about it.
EXISTING = 1 << 63

_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


class Decision(NamedTuple):
    """What a file was like when it was decided about: size in bytes, and ctime in nanoseconds.

    `existing` says that it was there before its watch. `waiting` says that its upload was not
    settled when the decision was last written. `sample` is that of its content, 0 if none was
    taken. `filesystem` is the tag of the filesystem that it was on, see `Filesystems`.
    """

    size: int
    ctime: int
    existing: bool = False
    waiting: bool = False
    sample: int = 0
    filesystem: bytes = OWN

    def is_of(self, state: FileState) -> bool:
        """Whether this decision was made about the file in this state."""
        return not self.existing and (self.size, self.ctime) == (state.size, state.ctime)


#: A bit in an entry's size. The file's upload was not settled, so the journal has a record of it.
WAITING = 1 << 62

#: The bits of an entry's size that are the size itself.
SIZE = WAITING - 1

#: Stands in memory for a decision that was dropped, while the ledger's file still has it.
FORGOTTEN = Decision(0, 0)


# Remembered, because for one upload it is asked some five times.
@functools.lru_cache(maxsize=1024)
def key(subpath: str, inode: int, filesystem: bytes = OWN) -> bytes:
    """Return the 64-bit key of a file.

    It is made of the file's name without its directory. So a file keeps its decision when its
    directory is renamed, which changes nothing of the file itself, not even its ctime.
    """
    return name_key(subpath.rpartition("/")[2], inode, filesystem)


def name_key(name: str, inode: int, filesystem: bytes) -> bytes:
    """Return the key of a file, given its name without a directory."""
    known_by = filesystem + inode.to_bytes(8, "big") + name.encode(_ENCODING, _ERRORS)
    return blake2b(known_by, digest_size=8).digest()


def pack(wanted: bytes, decision: Decision) -> bytes:
    """Return the entry for a decision about the file with the key `wanted`."""
    size = decision.size | decision.existing << 63 | decision.waiting << 62
    return ENTRY.pack(wanted, size, decision.ctime, decision.sample, decision.filesystem)


def unpack(size: int, ctime: int, sample: int, filesystem: bytes) -> Decision:
    """Return the decision in an entry, given the values after its key."""
    flags = bool(size & EXISTING), bool(size & WAITING)
    return Decision(size & SIZE, ctime, *flags, sample, filesystem)
