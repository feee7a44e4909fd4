"""A decision about a file, as a ledger keeps it."""

from __future__ import annotations

import functools
import sys
from hashlib import blake2b
from typing import NamedTuple

from watchman.store.ledgerfile import ENTRY
from watchman.uploads.filesystems import OWN
from watchman.uploads.upload import FileState

#: Set in the size of a file that was there before its watch: nobody decided on a write of it.
EXISTING = 1 << 63

_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


class Decision(NamedTuple):
    """The size in bytes and ctime in nanoseconds of a file when it was decided about.

    `waiting` if its upload was not settled when that was last written down. `sample` is that of its
    content, 0 if none was taken. `filesystem` is what it was on, see `Filesystems`.
    """

    size: int
    ctime: int
    existing: bool = False
    waiting: bool = False
    sample: int = 0
    filesystem: bytes = OWN

    def is_of(self, state: FileState) -> bool:
        """Whether it was made about a file as it is now."""
        return not self.existing and (self.size, self.ctime) == (state.size, state.ctime)


#: Set in the size of a file whose upload was not settled yet: the journal has a record of it.
WAITING = 1 << 62

SIZE = WAITING - 1

#: In memory for a file in the ledger's file about which nothing is decided any more.
FORGOTTEN = Decision(0, 0)


# One decision asks for that of its file some five times.
@functools.lru_cache(maxsize=1024)
def key(subpath: str, inode: int, filesystem: bytes = OWN) -> bytes:
    """Return the 64-bit key of a file.

    Of its name only, not of its directory: to rename a directory changes nothing of the files in
    it, not even their ctime.
    """
    return name_key(subpath.rpartition("/")[2], inode, filesystem)


def name_key(name: str, inode: int, filesystem: bytes) -> bytes:
    """As `key`, given the name alone."""
    known_by = filesystem + inode.to_bytes(8, "big") + name.encode(_ENCODING, _ERRORS)
    return blake2b(known_by, digest_size=8).digest()


def pack(wanted: bytes, decision: Decision) -> bytes:
    """Return the entry of a decision."""
    size = decision.size | decision.existing << 63 | decision.waiting << 62
    return ENTRY.pack(wanted, size, decision.ctime, decision.sample, decision.filesystem)


def unpack(size: int, ctime: int, sample: int, filesystem: bytes) -> Decision:
    """Return the decision of an entry's values."""
    flags = bool(size & EXISTING), bool(size & WAITING)
    return Decision(size & SIZE, ctime, *flags, sample, filesystem)
