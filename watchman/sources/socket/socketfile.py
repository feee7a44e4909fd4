"""The listener's socket as a file: made for every FTP user, taken over only from the dead."""

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

#: Peers that may wait to be let in.
BACKLOG = 1024

#: Permission bits of the directories made for it: FTP users pass through, only we write.
DIRECTORY_MODE = 0o755


class SocketFile(socketserver.UnixStreamServer):
    """A socket bound to a path, remembered by inode so that only our own is ever removed.

    Peers can connect once it is made. Of socketserver's class it binds, listens and accepts; its
    loop and its mix-ins would make a thread or a process for each connection.
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
        # Before listen(2), so that the umask never refuses anyone.
        os.chmod(self.path, SOCKET_MODE)
        self._bound = os.lstat(self.path)

    def server_close(self) -> None:
        """Remove the file, and close: until then nobody else can have its inode."""
        try:
            if self._bound and os.path.samestat(os.lstat(self.path), self._bound):
                os.unlink(self.path)
        except FileNotFoundError:
            pass  # gone already, with its directory perhaps
        except OSError as error:
            logger.warning("Could not remove %r: %s.", self.path, error.strerror)
        self._bound = None
        super().server_close()

    def _clear(self) -> None:
        """Remove what a daemon that was killed left behind, and nothing else."""
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
        # EAGAIN is a full backlog, see connect(2); only a refusal says that nobody is there.
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def _make_directories(directory: Path) -> None:
    if directory.exists():
        return  # bind says it if this is no directory
    _make_directories(directory.parent)
    directory.mkdir(exist_ok=True)
    directory.chmod(DIRECTORY_MODE)  # whatever the umask; /run is empty after a boot
