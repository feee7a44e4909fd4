"""The embedded broker: kombu's filesystem transport with writes that are whole and durable.

Stock workers consume from it with `broker_url = filesystem://` and, as transport options,
`data_folder_in` and `data_folder_out` set to the folder and `control_folder` to `control` in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from pathlib import Path
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import filesystem, virtual
from kombu.utils.json import dumps, loads

from watchman.config.files import fsync_directory

#: Seconds after which an unfinished write is taken for one that a crash has left behind, where
#: the filesystem knows no files without a name.
STALE = 3600.0

#: What a kernel or a filesystem answers that does not know O_TMPFILE, see open(2).
NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


class Channel(filesystem.Channel):
    """A channel whose messages appear in the folder at once, whole, and in order.

    The stock `_put` writes under the final name: a consumer that looks in between moves half a
    message away and fails on it.
    """

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._last = 0
        self.folder: str = self.data_folder_out
        os.makedirs(self.control_folder, exist_ok=True)
        fsync_directory(self.folder)
        fsync_directory(os.path.dirname(os.path.abspath(self.folder)))
        self._sweep()

    # kombu disagrees with itself about the second name.
    def _put(self, queue: str, payload: Any, **_options: Any) -> None:  # type: ignore[override]
        """Put a message onto a queue; it is on disk on return."""
        if "/" in queue or "\0" in queue:
            raise ValueError(f"the queue's name becomes part of a file name: {queue!r}")
        # Consumers take the names in sorted order.
        self._last = max(self._last + 1, time.time_ns())
        name = f"{self._last:020d}_{uuid.uuid4()}.{queue}.msg"
        try:
            _create(self.folder, name, dumps(payload).encode())
        except OSError as e:
            raise ChannelError(f"cannot write to {self.folder!r}: {e.strerror}") from e

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Add a binding to the exchange's file, which exists only with something in it.

        The stock method creates it empty and fails on one that another process has just created.
        """
        binding = [routing_key or "", pattern or "", queue or ""]
        file = self._exchange_file(exchange)
        try:
            try:
                _create(str(file.parent), file.name, dumps([binding]).encode())
            except FileExistsError:
                _add(file, binding)
        except OSError as e:
            raise ChannelError(f"cannot write to {self.control_folder}: {e.strerror}") from e

    def get_table(self, exchange: str) -> list[Any]:
        try:
            return list(super().get_table(exchange))
        except ValueError as e:
            raise ChannelError(f"{self._exchange_file(exchange)} is damaged: {e}") from e

    def _sweep(self) -> None:
        """Remove what writers that were killed have left behind."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") and entry.name.endswith(".msg.tmp"):
                    try:
                        if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
                            os.unlink(entry)
                    except FileNotFoundError:
                        continue


class Transport(filesystem.Transport):
    """The stock transport, but what one connection declared is declared again by the next.

    The stock one remembers bindings for the life of the process, also when their files are gone.
    """

    Channel = Channel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.state = virtual.BrokerState()


def _add(file: Path, binding: list[str]) -> None:
    """Insert a binding under the lock that stock channels take, in place as they do."""
    with file.open("rb+", buffering=0) as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        try:
            bindings = loads(opened.read().decode())
        except ValueError:
            bindings = []  # Cut by a crash. Whoever needs a binding declares it again.
        if binding not in bindings:
            opened.seek(0)
            opened.write(dumps([binding, *bindings]).encode())
            opened.truncate()
            os.fsync(opened)


def _create(folder: str, name: str, content: bytes) -> None:
    """Make a file that is there at once and whole, and durable on return. Or FileExistsError."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = ""
    try:
        try:
            # Without a name nothing is left of it by a crash.
            fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=directory)
            source = f"/proc/self/fd/{fd}"
        except OSError as e:
            if e.errno not in NO_UNNAMED:
                raise
            # Consumers look for QUEUE.msg after the first dot, which no name that ends in .tmp
            # can match.
            source = temporary = f".{name}.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o666, dir_fd=directory)
        with open(fd, "wb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]
            os.fsync(file)
            os.link(source, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    finally:
        if temporary:
            os.unlink(temporary, dir_fd=directory)
        os.close(directory)
