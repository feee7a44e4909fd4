"""The listener's socket as a file: every FTP user may connect to it.

One that a killed daemon left behind is replaced; one on which a daemon answers is not.
"""

import errno
import logging
import os
import socket
import socketserver
import stat
from pathlib import Path

from watchman.errors import SocketUnavailable

logger = logging.getLogger(__name__)

#: Permission bits of the socket, so that every FTP user may connect.
SOCKET_MODE = 0o666

#: Peers that may wait to be accepted, see listen(2).
BACKLOG = 1024

#: Permission bits of the directories made for it: FTP users may pass through, only we may write.
#: Without x for others no FTP user reaches the socket, whatever its own mode.
DIRECTORY_MODE = 0o755


class SocketFile(socketserver.UnixStreamServer):
    """A socket bound to a path. Peers can connect as soon as it is made.

    Its inode is remembered, so that no other daemon's socket is ever removed. We use socketserver
    to bind, listen and accept, but not its loop: that serves one peer at a time, or with a mix-in
    makes a thread or a process for each. With a thread for each of them 1,500 to 1,900 connections
    a second were answered, without 14,200.
    """

    request_queue_size = BACKLOG

    def __init__(self, path: str) -> None:
        """Raises SocketUnavailable, which says what to do."""
        self.path = path
        self._bound: os.stat_result | None = None
        try:
            super().__init__(path, socketserver.BaseRequestHandler)
        except OSError as error:
            raise SocketUnavailable(
                f"cannot make the socket {path!r}: {error.strerror or error}; the daemon's user"
                " must be able to write its directory, or set another `socket`"
            ) from error
        self.socket.setblocking(False)

    def server_bind(self) -> None:
        _make_directories(Path(self.path).parent)
        self._clear()
        super().server_bind()
        # Before listen(2), so that no peer is refused because of the umask.
        os.chmod(self.path, SOCKET_MODE)
        self._bound = os.lstat(self.path)

    def server_close(self) -> None:
        """Remove the file, then close: while the socket is open its inode cannot be reused."""
        try:
            if self._bound and os.path.samestat(os.lstat(self.path), self._bound):
                os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody removed it already, or its directory
        except OSError as error:
            logger.warning("Could not remove %r: %s.", self.path, error.strerror)
        self._bound = None
        super().server_close()

    def _clear(self) -> None:
        """Remove the socket that a killed daemon has left behind, and nothing else."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise SocketUnavailable(
                f"{self.path!r} is not a socket; move it away, or set another `socket`"
            )
        if _answers(self.path):
            raise SocketUnavailable(
                f"another daemon answers on {self.path!r}; stop it, or set another `socket`"
            )
        os.unlink(self.path)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # EAGAIN says that the backlog is full, see connect(2), so somebody is there. Only
        # ECONNREFUSED says that nobody is.
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def _make_directories(directory: Path) -> None:
    """Make a directory and those above it as needed: /run is empty after each boot."""
    if directory.exists():
        return  # if it is not a directory, bind(2) will fail and say so
    _make_directories(directory.parent)
    directory.mkdir(exist_ok=True)
    directory.chmod(DIRECTORY_MODE)  # independent of the umask
