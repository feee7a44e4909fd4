"""The process at the other end of a connection, and what it may do."""

import logging
import os
import pwd
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from watchman.uploads.session import session_of

logger = logging.getLogger(__name__)

#: struct ucred of unix(7): pid, uid, gid.
UCRED = struct.Struct("iII")

#: The socket option that returns the peer's supplementary groups. The value is from
#: asm-generic/socket.h, because Python's socket module has no name for it.
SO_PEERGROUPS = 59

#: Bytes for these groups. NGROUPS_MAX is 65,536, but Python's getsockopt() allows 1,024 bytes.
GROUPS_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel describes it."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    #: The FTP session whose hook the peer is, "" if not known.
    session: str = ""

    @classmethod
    def of(cls, connected: socket.socket) -> Self:
        answer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        try:
            groups = connected.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_SIZE)
        except OSError:
            groups = b""  # more than 256 groups: then rights by group do not count
        pid, uid, gid = UCRED.unpack(answer)
        # Looked up at once. A hook gives up after 0.2 seconds; when it has ended, /proc no longer
        # tells its parent, which is the session.
        session = session_of(pid)
        return cls(pid, uid, gid, frozenset(memoryview(groups).cast("I")), session)


class Admins:
    """The users who may do more than announce files: root, the daemon's own user and `admins`."""

    def __init__(self, names: Collection[str]) -> None:
        """`names` are user names or uids. A name that does not exist is logged and left out."""
        own = os.geteuid()
        self._uids = {0, own}
        known = {"root", _name(own)}
        for name in names:
            try:
                self._uids.add(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
                known.add(name)
            except KeyError:
                logger.warning("No user %r exists, named in `admins`; going on without.", name)
        self._text = " and ".join(sorted(known, key=lambda name: (name != "root", name)))

    def __contains__(self, peer: object) -> bool:
        return isinstance(peer, Peer) and peer.uid in self._uids

    def __str__(self) -> str:
        return self._text


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
