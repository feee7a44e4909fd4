"""Who is at the other end of the socket, and who may do what."""

import logging
import os
import pwd
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

logger = logging.getLogger(__name__)

#: struct ucred of unix(7): pid, uid, gid.
UCRED = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel knows it."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connected: socket.socket) -> Self:
        answer = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        return cls(*UCRED.unpack(answer))


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
