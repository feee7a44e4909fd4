"""The directories that a batch of moves needs: opened once, made if missing, synced together."""

from __future__ import annotations

import contextlib
import os
import stat

from watchman.config.files import fsync_directory
from watchman.config.settings import MoveSettings
from watchman.errors import NotBelowWatch, Obstructed
from watchman.sinks.moving.attributes import SET_ID, owner_of, permit, set_owner
from watchman.uploads import beneath, mounts

#: Permissions of a directory whose counterpart at the source is gone.
DEFAULT_MODE = 0o755


class Directories(contextlib.ExitStack):
    """Directories that are open with O_PATH; the end of the `with` closes them.

    They must not stay open longer: while one is, nobody can unmount its filesystem.
    """

    def __init__(self, move: MoveSettings) -> None:
        super().__init__()
        self._move = move
        self._open: dict[tuple[str, str], int] = {}
        #: Directories in which others were made that are not durable yet.
        self._changed: set[int] = set()

    def away(self) -> str:
        """Return why the destination is not available, "" if it is."""
        where = f"destination {self._move.destination}"
        try:
            root = self.find(self._move.destination, "")
        except FileNotFoundError:
            return f"{where} is not there"
        except NotADirectoryError:
            return f"{where} is not a directory"
        except OSError as e:
            return f"{where}: {e.strerror}"
        is_away = self._move.mounted and not mounts.is_mount(root)
        return f"{where} is not mounted" if is_away else ""

    def find(self, root: str, subpath: str) -> int:
        """Return the descriptor of a directory below `root`; raises as `beneath.open_directory`."""
        key = (root, subpath)
        if key not in self._open:
            self._open[key] = beneath.open_directory(root, subpath)
            self.callback(os.close, self._open[key])
        return self._open[key]

    def make(self, subpath: str) -> int:
        """Return a directory below the destination; make it and those above it if missing."""
        root = self._move.destination
        try:
            return self.find(root, subpath)
        except FileNotFoundError:
            if not subpath:
                raise
            parent = self.make(os.path.dirname(subpath))
            self._make_one(parent, os.path.join(root, subpath), like=subpath)
            return self.find(root, subpath)

    def make_folders(self, subpath: str) -> None:
        """Make the INI file's `folders` in a directory below the destination."""
        parent = self.find(self._move.destination, subpath)
        for name in self._move.folders:
            path = os.path.join(self._move.destination, subpath, name)
            self._make_one(parent, path, like=subpath)

    def sync(self, changed: set[int]) -> None:
        """Sync directories, so that the names made or removed in them are durable.

        Those in which `make` has made directories are synced, too.
        """
        self._changed |= changed
        while self._changed:
            fd = self._changed.pop()
            # A descriptor with O_PATH cannot be synced, so the directory is opened again to read.
            # Without the right to read it there is no way to sync it.
            with contextlib.suppress(PermissionError):
                fsync_directory(".", dir_fd=fd)

    def _make_one(self, parent: int, path: str, like: str) -> None:
        """Make one directory. What the INI file does not say it gets from its counterpart.

        That is the directory `like` below the source. Does nothing if the directory exists; raises
        Obstructed if something else has its name.
        """
        name, status = os.path.basename(path), self._status_at_source(like)
        mode = self._move.directory_mode
        if mode is None:
            mode = stat.S_IMODE(status.st_mode) if status else DEFAULT_MODE
        try:
            # Without write permission for others until it has its final owner.
            os.mkdir(name, mode & 0o755, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                return
            raise Obstructed(f"{path} is in the way, which is not a directory") from None
        self._changed.add(parent)
        fd = os.open(name, beneath.STEP & ~os.O_PATH | os.O_RDONLY, dir_fd=parent)
        try:
            set_owner(fd, self._move, status)
            is_set = self._move.directory_mode is not None
            if not is_set and (status is None or owner_of(os.fstat(fd)) != owner_of(status)):
                mode &= ~SET_ID  # set-gid would give all files in it a group of somebody else
            permit(lambda: os.fchmod(fd, mode), required=is_set)
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)
            raise
        finally:
            os.close(fd)

    def _status_at_source(self, subpath: str) -> os.stat_result | None:
        """Return the status of a directory below the source, None if it is gone."""
        try:
            fd = beneath.open_directory(self._move.source, subpath)
        except (OSError, NotBelowWatch):
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)
