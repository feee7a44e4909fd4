"""Taking a file away from its name, so that whoever writes under that name writes another file."""

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
    """The file of one upload. `source` is the open directory it was found in, None if that is gone.

    While it is claimed it has a hidden name, in the directory `held`. Any step may raise OSError.
    """

    def __init__(self, upload: Upload) -> None:
        self.source: int | None = None
        self.held: int | None = None
        self.fd = -1
        self._accepted = upload.state
        self._owner = upload.owner
        self._name = os.path.basename(upload.source_path)
        self._hidden = claim_name(upload.id)
        #: What it had that goes with it when it is put back.
        self._kept: attributes.Kept | None = None

    def find(self, target: int | None) -> FileState | None:
        """Look whether a claim was made that is not over, beside the source or in `target`."""
        for directory in (target, self.source):
            if state := state_of(directory, self._hidden):
                self.held = directory
                return state
        return None

    def at_source(self) -> FileState | None:
        """Return the state of whatever file has its name."""
        return state_of(self.source, self._name)

    def is_ours(self, found: FileState | None) -> bool:
        """Whether a file is the one that was accepted, and was not written since."""
        old = self._accepted
        return (
            found is not None
            and found.inode == old.inode
            and not found.rewritten_since(old.size, old.ctime)
        )

    def open(self) -> None:
        """Open the file under the name that it has.

        Raises Superseded if it is not there, Refused if it is somebody else's by now.
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
                # To rename it needs no right to read.
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
        """See that nobody writes the file. Raises BeingWritten or Superseded, and it is put back.

        Some may have looked its name up before it was claimed, and open it only now.
        """
        if lease.is_written(self.fd):
            self.give_back(BeingWritten("it is being written"))
        now = self.look()
        if self.is_ours(now):
            return
        if self.put_back():
            raise Superseded("overwritten before its turn")
        # A newer file has the name. This one goes on with what was written to it.
        self._accepted = now

    def take(
        self, into: int, *, change: MoveSettings | None = None, unchanged: FileState | None = None
    ) -> None:
        """Give the file its hidden name in `into`, once it has what the settings `change`.

        Raises BeingWritten or Superseded, also if it is not `unchanged`; then it stays.
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
        try:
            os.rename(self._name, self._hidden, src_dir_fd=self.source, dst_dir_fd=into)
        except FileNotFoundError as e:
            if self.at_source() is not None:
                raise  # it is the directory that has gone
            raise Superseded("taken away before its turn") from e
        self.held = into
        claimed = state_of(into, self._hidden)
        if claimed is None or claimed.inode != self._accepted.inode:
            # Another file had been renamed over it.
            self.give_back(Superseded("replaced before its turn"))

    def _ask_again(self, unchanged: FileState) -> None:
        """See that a file that a server holds is as it was: what we know of it may be old.

        open(2) asks the server, see the close-to-open consistency in nfs(5).
        """
        self.close()
        self.open()
        now = self.look()
        if (now.size, now.mtime) != (unchanged.size, unchanged.mtime):
            self.give_back(Superseded("overwritten before its turn"))

    def give_back(self, why: BeingWritten | Superseded) -> NoReturn:
        if not self.put_back():
            why = BeingWritten("another file has taken its name")
        raise why

    def put_back(self) -> bool:
        """Give the file its name again; return False if it stays claimed, for that is taken."""
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
        """Have a claimed file wait beside its source: it is to go elsewhere."""
        if self.held is not None and self.source is not None and self.held != self.source:
            renaming.rename(self.held, self._hidden, self.source, self._hidden)
            self.held = self.source

    def forget(self) -> None:
        """Remove the hidden name, where the file has another one that counts."""
        assert self.held is not None
        os.unlink(self._hidden, dir_fd=self.held)
        self.held = None

    def retake(self, directory: int, name: str) -> None:
        """Claim the file again that has the name it was moved to."""
        renaming.rename(directory, name, directory, self._hidden)
        self.held = directory

    def hand_over(self, target: int, name: str) -> None:
        """Give the file its final name. Raises FileExistsError if that is taken."""
        assert self.held is not None
        renaming.rename(self.held, self._hidden, target, name)
        self.held = None

    def finish(self, before: FileState | None) -> None:
        """Remove a file that was copied; `before` is what it was like then."""
        found = self.find(None)
        if before is None or found is None or found.inode != before.inode:
            return
        self.open()
        now, writing = self.look(), lease.is_written(self.fd)
        if writing or now.rewritten_since(before.size, before.ctime):
            # A writer who was late: what he writes is another upload.
            if self.put_back():
                return
            if writing:
                raise BeingWritten("it is being written")
        self.forget()


def may_change(directory: int | None) -> bool:
    """Whether names in a directory may be made and removed, as far as access(2) says."""
    return directory is not None and os.access(
        ".", os.W_OK | os.X_OK, dir_fd=directory, effective_ids=True
    )


def state_of(directory: int | None, name: str) -> FileState | None:
    """Return the state of a regular file, None where there is none."""
    status = status_of(directory, name)
    return FileState.of(status) if status and stat.S_ISREG(status.st_mode) else None


def status_of(directory: int | None, name: str) -> os.stat_result | None:
    """Return the status of whatever has a name, None where nothing has."""
    if directory is None:
        return None
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
