"""A socket in the daemon's place, that keeps what hooks tell it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Heard:
    """A request as it arrived, and who sent it."""

    raw: bytes
    pid: int
    uid: int
    parent: int

    @property
    def fields(self) -> dict[str, str]:
        """Its fields; those of a request that is ill-formed fail."""
        assert self.raw.endswith(b"\0\0"), self.raw
        pairs = [field.partition(b"=") for field in self.raw[:-2].split(b"\0")]
        fields = {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}
        assert len(fields) == len(pairs), self.raw
        return fields

    @property
    def event(self) -> str:
        return self.fields["event"]


class Recorder:
    """In the daemon's place: a socket that keeps what hooks tell, and answers `answer`."""

    def __init__(self, path: Path, *, answer: bytes = b"OK\n") -> None:
        self.path = path
        self.answer = answer
        self.heard: list[Heard] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Recorder:
        self._socket.bind(str(self.path))
        self.path.chmod(0o666)
        self._socket.listen(100)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self.path.unlink()

    @property
    def events(self) -> list[str]:
        return [heard.event for heard in self.heard]

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:  # shut down
                return
            with peer:
                self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        peer.settimeout(5)
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        parent = _parent(pid)
        raw = b""
        while not raw.endswith(b"\0\0") and (received := peer.recv(100_000)):
            raw += received
        # A hook that had no time left has said what began for the second time, with its session.
        request, end, _ = raw.partition(b"\0\0")
        raw = request + end
        self.heard.append(Heard(raw, pid, uid, parent))
        with contextlib.suppress(OSError):  # a hook that had no time left has gone
            peer.sendall(self.answer)


def _parent(pid: int) -> int:
    """The parent of a process, 0 if that has gone meanwhile."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])
