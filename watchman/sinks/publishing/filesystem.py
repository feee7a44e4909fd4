"""The embedded broker: kombu's filesystem transport, with writes that are whole and durable.

With the stock transport, 2 producers and 2 consumers destroyed 325 of 2,000 messages.

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

#: Seconds after which an unfinished file counts as left behind by a crash. Such files exist only on
#: filesystems without O_TMPFILE.
STALE = 3600.0

#: Errors of a kernel or a filesystem that does not support O_TMPFILE, see open(2).
NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


class Channel(filesystem.Channel):
    """A channel whose messages appear in the folder as a whole, and in order.

    The stock `_put` writes to a file that has its final name already. A consumer that looks at that
    moment takes half a message, and fails.
    """

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._last = 0
        self.folder: str = self.data_folder_out
        os.makedirs(self.control_folder, exist_ok=True)
        fsync_directory(self.folder)
        fsync_directory(os.path.dirname(os.path.abspath(self.folder)))
        self._sweep()

    # kombu's own classes name the second parameter differently.
    def _put(self, queue: str, payload: Any, **_options: Any) -> None:  # type: ignore[override]
        """Put a message onto a queue; it is durable on return."""
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
        """Add a binding to the exchange's file, which never exists without content.

        The stock method creates an empty file first, and fails on one that another process has just
        created so.
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
        """Remove files that killed writers have left behind."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") and entry.name.endswith(".msg.tmp"):
                    try:
                        if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
                            os.unlink(entry)
                    except FileNotFoundError:
                        continue


class Transport(filesystem.Transport):
    """The stock transport, except that each connection declares its bindings anew.

    The stock transport remembers bindings as long as the process lives, even if their files are
    gone.
    """

    Channel = Channel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.state = virtual.BrokerState()


def _add(file: Path, binding: list[str]) -> None:
    """Insert a binding into a file, under the same lock and in place, as stock channels do."""
    with file.open("rb+", buffering=0) as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        try:
            bindings = loads(opened.read().decode())
        except ValueError:
            bindings = []  # A crash has cut the file. Whoever needs a binding declares it again.
        if binding not in bindings:
            opened.seek(0)
            opened.write(dumps([binding, *bindings]).encode())
            opened.truncate()
            os.fsync(opened)


def _create(folder: str, name: str, content: bytes) -> None:
    """Make a file that appears as a whole, and is durable on return. Raises FileExistsError."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = ""
    try:
        try:
            # A file without a name leaves nothing behind after a crash.
            fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=directory)
            source = f"/proc/self/fd/{fd}"
        except OSError as e:
            if e.errno not in NO_UNNAMED:
                raise
            # Consumers compare what follows the first dot with QUEUE.msg. A name that ends in .tmp
            # never matches.
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
