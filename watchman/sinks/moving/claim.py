"""Claims a file: renames it to a hidden name.

After that, whoever opens its old name for writing writes another file.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NoReturn

from watchman.config.moves import claim_name
from watchman.config.settings import MoveSettings
from watchman.errors import BeingWritten, Refused, Superseded
from watchman.sinks.moving import attributes
from watchman.uploads import beneath, lease, renaming
from watchman.uploads.ownership import Ownership
from watchman.uploads.upload import FileState, Upload


class Claim:
    """The file of one upload, which is claimed while it is moved.

    `source` is the open directory that it was found in, None if that is gone. `held` is the open
    directory in which it has its hidden name, None while it is not claimed. Any method may raise
    OSError.
    """

    def __init__(self, upload: Upload) -> None:
        self.source: int | None = None
        self.held: int | None = None
        self.fd = -1
        self._accepted = upload.state
        self._owner = upload.owner
        self._name = os.path.basename(upload.source_path)
        self._hidden = claim_name(upload.id)
        #: Its attributes, which it gets again when it is put back.
        self._kept: attributes.Kept | None = None

    def find(self, target: int | None) -> FileState | None:
        """Find the file under its hidden name, beside its source or in the directory `target`.

        It is there if an earlier run claimed it and did not finish. Return its state, else None.
        """
        for directory in (target, self.source):
            if state := state_of(directory, self._hidden):
                self.held = directory
                return state
        return None

    def at_source(self) -> FileState | None:
        """Return the state of whichever file has its name at the source, None if none."""
        return state_of(self.source, self._name)

    def is_ours(self, found: FileState | None) -> bool:
        """Whether a file is the one that was accepted, and was not written since then."""
        old = self._accepted
        return (
            found is not None
            and found.inode == old.inode
            and not found.rewritten_since(old.size, old.ctime)
        )

    def open(self) -> None:
        """Open the file, under its hidden name if it is claimed.

        Raises Superseded if it is not there, and Refused if it is a hard link to somebody's file.
        """
        if self.fd >= 0:
            return
        name, directory = self._name, self.source
        if self.held is not None:
            name, directory = self._hidden, self.held
        try:
            try:
                self.fd = os.open(name, beneath.READ, dir_fd=directory)
            except PermissionError:
                # O_PATH needs no right to read the file, and neither does rename(2).
                flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
                self.fd = os.open(name, flags, dir_fd=directory)
            self._kept = attributes.Kept.of(self.fd)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ELOOP):
                raise Superseded("taken away before its turn") from e
            raise
        if self.source is not None:
            ownership = Ownership.of(self._kept.status, os.fstat(self.source))
            if reason := ownership.refusal(self._owner[0] if self._owner else None):
                raise Refused(reason)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def look(self) -> FileState:
        return FileState.of(os.fstat(self.fd))

    def check(self) -> None:
        """Check that nobody writes the claimed file; else put it back, and raise.

        Raises BeingWritten or Superseded. A server such as ProFTPD may have looked the name up
        before the file was claimed, and open it only now.
        """
        if lease.is_written(self.fd):
            self.give_back(BeingWritten("it is being written"))
        now = self.look()
        if self.is_ours(now):
            return
        if self.put_back():
            raise Superseded("overwritten before its turn")
        # It cannot be put back, because a newer file has its name. So it is moved as it is now,
        # with what was written to it.
        self._accepted = now

    def take(
        self, into: int, *, change: MoveSettings | None = None, unchanged: FileState | None = None
    ) -> None:
        """Claim the file: rename it to its hidden name in the directory `into`.

        Before that, set on it what the settings `change` say. Raises BeingWritten or Superseded,
        also if its state is not `unchanged`; then the file keeps its name.

        A lease is held over the rename, see fcntl(2). If somebody opens the file for writing
        meanwhile, the kernel says so, and the file is put back.
        """
        self.open()
        held = lease.take(self.fd)
        if held is False:
            raise BeingWritten("it is being written")
        try:
            now = self.look()
            if not self.is_ours(now):
                raise Superseded("overwritten before its turn")
            if unchanged not in (None, now):
                raise Superseded("changed while it was copied")
            try:
                if change is not None:
                    attributes.change(self.fd, change, self._owner)
                self._rename_into(into)
            except OSError:
                self._restore()
                raise
            if held and lease.is_being_broken(self.fd):
                self.give_back(BeingWritten("it is being written"))
            if unchanged is not None and held is None:
                self._ask_again(unchanged)
        finally:
            if held:
                lease.release(self.fd)

    def _rename_into(self, into: int) -> None:
        """Rename the file to its hidden name. Raises Superseded if that was another file."""
        try:
            os.rename(self._name, self._hidden, src_dir_fd=self.source, dst_dir_fd=into)
        except FileNotFoundError as e:
            if self.at_source() is not None:
                raise  # the file is there, so it is the directory `into` that is gone
            raise Superseded("taken away before its turn") from e
        self.held = into
        claimed = state_of(into, self._hidden)
        if claimed is None or claimed.inode != self._accepted.inode:
            # Before our rename somebody had renamed another file over it.
            self.give_back(Superseded("replaced before its turn"))

    def _ask_again(self, unchanged: FileState) -> None:
        """Check on a network filesystem that the file was not changed.

        fstat(2) may answer from a cache. To open the file again asks the server, see "close-to-open
        cache consistency" in nfs(5).
        """
        self.close()
        self.open()
        now = self.look()
        if (now.size, now.mtime) != (unchanged.size, unchanged.mtime):
            self.give_back(Superseded("overwritten before its turn"))

    def give_back(self, why: BeingWritten | Superseded) -> NoReturn:
        """Put the file back and raise `why`; BeingWritten if another file has its name."""
        if not self.put_back():
            why = BeingWritten("another file has taken its name")
        raise why

    def put_back(self) -> bool:
        """Give the file its old name again; return False if that is taken, and it stays claimed."""
        if self.held is None:
            return True
        if self.source is None:
            return False
        try:
            self.hand_over(self.source, self._name)
        except FileExistsError:
            return False
        self._restore()
        return True

    def _restore(self) -> None:
        if self._kept is not None:
            attributes.restore(self.fd, self._kept)

    def bring_home(self) -> None:
        """Move a claimed file back beside its source, because it has another destination now."""
        if self.held is not None and self.source is not None and self.held != self.source:
            renaming.rename(self.held, self._hidden, self.source, self._hidden)
            self.held = self.source

    def forget(self) -> None:
        """Remove the hidden name, because the file has another name that counts."""
        assert self.held is not None
        os.unlink(self._hidden, dir_fd=self.held)
        self.held = None

    def retake(self, directory: int, name: str) -> None:
        """Claim the file again after it was moved: it has this name in this directory."""
        renaming.rename(directory, name, directory, self._hidden)
        self.held = directory

    def hand_over(self, target: int, name: str) -> None:
        """Rename the claimed file to a final name. Raises FileExistsError if that is taken."""
        assert self.held is not None
        renaming.rename(self.held, self._hidden, target, name)
        self.held = None

    def finish(self, before: FileState | None) -> None:
        """Remove the source of a copied file; `before` is its state when it was copied.

        Raises BeingWritten if somebody writes it, and it cannot be put back.
        """
        found = self.find(None)
        if before is None or found is None or found.inode != before.inode:
            return
        self.open()
        now, writing = self.look(), lease.is_written(self.fd)
        if writing or now.rewritten_since(before.size, before.ctime):
            # Somebody has written it after all. It is put back, and what was written becomes
            # another upload.
            if self.put_back():
                return
            if writing:
                raise BeingWritten("it is being written")
        self.forget()


def may_change(directory: int | None) -> bool:
    """Whether access(2) says that we may make and remove names in a directory."""
    return directory is not None and os.access(
        ".", os.W_OK | os.X_OK, dir_fd=directory, effective_ids=True
    )


def state_of(directory: int | None, name: str) -> FileState | None:
    """Return the state of the regular file with a name, None if there is none."""
    status = status_of(directory, name)
    return FileState.of(status) if status and stat.S_ISREG(status.st_mode) else None


def status_of(directory: int | None, name: str) -> os.stat_result | None:
    """Return the status of whatever has a name, None if nothing has it."""
    if directory is None:
        return None
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
