"""Processes of other users that speak on a daemon's socket, as FTP users may."""

from __future__ import annotations

import subprocess
from pathlib import Path

#: Users, each with a group of the same number.
ALICE, BOB = 12345, 12346

PROGRAM = """
import os, socket
own = os.getpid()
if {orphan} and os.fork():
    os._exit(0)
while {orphan} and os.getppid() == own:
    pass
peer = socket.socket(socket.AF_UNIX)
peer.connect({path!r})
peer.sendall({requests!r})
peer.shutdown(socket.SHUT_WR)
print(peer.makefile().read(), end="")
"""


def speak(uid: int, path: Path, requests: bytes, *, orphan: bool = False) -> list[str]:
    """What a user is answered on the socket at `path`; an orphan's parent has ended before."""
    program = PROGRAM.format(path=str(path), requests=requests, orphan=orphan)
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", program],
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd="/",
    )
    return done.stdout.splitlines()
