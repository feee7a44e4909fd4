"""Who is at the other end of the socket, and who may do what."""

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

#: Of asm-generic/socket.h; the socket module does not name it. The peer's supplementary groups.
SO_PEERGROUPS = 59

#: Bytes for them: NGROUPS_MAX is 65,536, but getsockopt() takes 1,024 bytes at most from Python.
GROUPS_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel knows it."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    #: The FTP session that runs the peer as its hook, "" where it is not known.
    session: str = ""

    @classmethod
    def of(cls, connected: socket.socket) -> Self:
        answer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        try:
            groups = connected.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_SIZE)
        except OSError:
            groups = b""  # more than 256 of them: rights by these are not seen
        pid, uid, gid = UCRED.unpack(answer)
        # At once: a hook that gives up leaves no parent to be found.
        session = session_of(pid)
        return cls(pid, uid, gid, frozenset(memoryview(groups).cast("I")), session)


class Admins:
    """Who may do more than announce files: root, the daemon's own user and `admins`."""

    def __init__(self, names: Collection[str]) -> None:
        """`names` are user names or numbers; one that does not exist is warned about."""
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
