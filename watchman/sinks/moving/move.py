"""Moves one file from a watch to its destination, step by step, and back if that fails.

On one filesystem the file is renamed twice. First it is claimed: it gets a hidden name beside its
destination. Then it gets its final name.

To another filesystem the file is copied to a hidden name beside its destination. When the copy is
whole, the final name is linked to it. Then the source is claimed: it gets a hidden name beside its
old one. When all that is written down, both hidden names are removed.

So a file keeps its name until its destination has taken it. And if watchman is killed, whichever
instruction was the last, the names on disk tell how far the move came: `find` goes by them.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from watchman.config.moves import copy_name, unique_name
from watchman.config.settings import MoveSettings
from watchman.errors import BeingWritten, Superseded, TakesLong
from watchman.sinks.moving import attributes, copying
from watchman.sinks.moving.claim import Claim, may_change, state_of, status_of
from watchman.uploads import lease, renaming
from watchman.uploads.upload import FileState, Upload

#: Seconds after which a write certainly sets another mtime than the write before it. The kernel
#: takes times of files from its tick, of which there are at least 100 a second (CONFIG_HZ).
TICK = 0.01


class Move:
    """The move of one upload's file.

    `target` is the open directory to which it goes, None if that does not exist yet. Any method may
    raise OSError. It leaves the names as they are then, and `find` can go on from there. A file of
    more than `largest` bytes is not copied; that raises TakesLong.
    """

    def __init__(self, upload: Upload, settings: MoveSettings, *, largest: float) -> None:
        self.upload = upload
        self.claim = Claim(upload)
        self.target: int | None = None
        #: The directory that the current step works in, for messages about what went wrong.
        self.place, self._name = os.path.split(upload.source_path)
        self._settings = settings
        self._largest = largest
        self._copy = copy_name(upload.id)
        #: Our copy of the file, if it is being copied, and whether the copy is whole.
        self._copied: FileState | None = None
        self._is_whole = False
        #: The state of the file before it was moved, and at its destination.
        self._before = upload.state
        self._state = upload.state
        #: Whether the file was moved. From then on it is not put back.
        self.arrived = upload.source_state is not None

    @property
    def _final(self) -> str:
        return self.upload.destination.rpartition("/")[2]

    def moved(self) -> Upload:
        """Return the upload as it is after its file was moved."""
        return self.upload._replace(
            path=self.upload.destination,
            state=self._state,
            moved_from=self.upload.path,
            source_state=self._before,
        )

    def find(self) -> None:
        """Find out from the names on disk how far the move has come. An unfinished copy is removed.

        Raises Superseded if the upload has no file any more.
        """
        claim = self.claim.find(self.target)
        copy, final = state_of(self.target, self._copy), state_of(self.target, self._final)
        is_at_source = self.claim.is_ours(self.claim.at_source())
        is_linked = final is not None and copy is not None and final.is_same_file(copy)
        if final and is_linked and (claim or not is_at_source):
            self._arrive(claim or self.upload.state, final)
            return
        self._copied = copy
        self._withdraw()
        if claim and final and claim.is_same_file(final):
            # Killed between link(2) and unlink(2), by which a file is renamed where the filesystem
            # does not know RENAME_NOREPLACE.
            self.claim.forget()
            self._arrive(final, final)
        elif claim and (found := self.claim.at_source()) and claim.is_same_file(found):
            # The same, while the file was being put back.
            self.claim.forget()
        elif claim:
            self.claim.open()
        elif final and not is_at_source and self.claim.is_ours(final) and self._is_one_filesystem():
            self._arrive(final, final)
        elif not is_at_source:
            raise Superseded("it is not where it was")

    def _arrive(self, before: FileState, now: FileState) -> None:
        """Note that the file was moved, with its states before and after that."""
        self.arrived, self._before, self._state = True, before, now

    def _is_one_filesystem(self) -> bool:
        # The devices of the directories are compared. On an overlayfs a file's own may differ.
        if self.target is None:
            return False
        here = self.claim.source if self.claim.held is None else self.claim.held
        device = self.upload.state.device if here is None else os.fstat(here).st_dev
        return device == os.fstat(self.target).st_dev

    def is_taken(self) -> bool:
        """Whether another file has the final name."""
        return status_of(self.target, self._final) is not None

    def another_name(self) -> str:
        """Return a destination whose name is free."""
        directory = os.path.dirname(self.upload.destination)
        milliseconds = int(time.time() * 1000)
        while status_of(self.target, name := unique_name(self._name, milliseconds)):
            milliseconds += 1
        return os.path.join(directory, name)

    def hand_over(self, keep_on: Callable[[], None]) -> None:
        """Move the file to its destination.

        Raises BeingWritten or Superseded. Raises FileExistsError if the final name is taken; then
        it can be called again, with another destination.
        """
        if self._is_one_filesystem():
            try:
                self._rename()
            except OSError as e:
                # rename(2) fails with EXDEV also between two mounts of one filesystem.
                if e.errno != errno.EXDEV:
                    raise
            else:
                return
        self._copy_over(keep_on)

    def _rename(self) -> None:
        """Move the file on one filesystem, by two renames."""
        assert self.target is not None
        if self.claim.held is None:
            try:
                self.claim.take(self.target, change=self._settings)
            except PermissionError:
                if may_change(self.target):
                    self.place = os.path.dirname(self.upload.path)
                raise
        else:
            attributes.change(self.claim.fd, self._settings, self.upload.owner)
        self.claim.check()
        self.claim.hand_over(self.target, self._final)
        now = self.claim.look()
        self._arrive(now, now)

    def _copy_over(self, keep_on: Callable[[], None]) -> None:
        """Move the file to another filesystem: copy it, link the final name, claim the source."""
        assert self.target is not None
        claim = self.claim
        if not self._is_whole:
            self._make_copy(keep_on)
            self._is_whole = True
        claim.check()
        if self._is_changed():
            claim.give_back(Superseded("changed while it was copied"))
        if not renaming.link(self.target, self._copy, self.target, self._final):
            renaming.rename(self.target, self._copy, self.target, self._final)
        final = state_of(self.target, self._final)
        if final is None:
            raise FileNotFoundError(errno.ENOENT, "the file was taken away from its destination")
        self._state = final
        if claim.held is None:
            self._claim_at_source(unchanged=self._before)
        self.arrived = True

    def _claim_at_source(self, unchanged: FileState | None = None) -> None:
        assert self.claim.source is not None
        self.place, place = os.path.dirname(self.upload.path), self.place
        self.claim.take(self.claim.source, unchanged=unchanged)
        self.place = place

    def _make_copy(self, keep_on: Callable[[], None]) -> None:
        """Copy the file to its hidden name at the destination; the copy is synced on return."""
        claim = self.claim
        assert self.target is not None
        claim.open()
        if claim.held is None:
            if self.upload.state.size > self._largest:
                raise TakesLong("others would wait for its copy")
            if not may_change(claim.source):
                # We may not remove it later. Trying to claim it gives the kernel's error now, and
                # not after gigabytes were copied for nothing.
                self._claim_at_source()
            # Wait until a write certainly shows by its mtime.
            time.sleep(max(0.0, min(TICK, self.upload.accepted + TICK - time.time())))
        claim.check()
        status = os.fstat(claim.fd)
        self._before = FileState.of(status)
        _look_for_room(self.target, status)

        def look() -> None:
            keep_on()
            if self._is_changed():
                claim.give_back(Superseded("changed while it was copied"))

        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(self._copy, flags, 0o600, dir_fd=self.target)
        try:
            self._copied = FileState.of(os.fstat(fd))
            # Before anything is copied, because it may not be permitted.
            attributes.set_owner(fd, self._settings, status)
            copying.copy(claim.fd, fd, status.st_size, keep_on=look)
            attributes.copy(claim.fd, fd, self._settings, self.upload.owner, status)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _is_changed(self) -> bool:
        """Whether the file was written since we took its state `_before`.

        While it still has its name, a change of anything else counts too, such as its permissions.
        """
        now, before = self.claim.look(), self._before
        if self.claim.held is None and not self.arrived:
            return now != before
        return (now.size, now.mtime) != (before.size, before.mtime)

    def check_moved(self) -> None:
        """Check once more after the move that nobody has written the file; else put it back.

        Raises BeingWritten or Superseded.
        """
        if self.claim.fd < 0:
            return
        writing = lease.is_written(self.claim.fd)
        if not writing and not self._is_changed():
            return
        assert self.target is not None
        if self._copied is None:
            self.claim.retake(self.target, self._final)
        self._withdraw()
        if writing:
            self.claim.give_back(BeingWritten("it is being written"))
        self.claim.give_back(Superseded("overwritten before its turn"))

    def put_back(self) -> None:
        """Undo a move that was not finished: remove the copy, and give the file its old name."""
        if not self.arrived:
            self._withdraw()
            self.claim.put_back()

    def _withdraw(self) -> None:
        """Remove our copy: first its final name, since by its hidden name we know it as ours."""
        if self._copied is not None:
            for name in (self._final, self._copy):
                found = state_of(self.target, name)
                if found and found.is_same_file(self._copied):
                    os.unlink(name, dir_fd=self.target)
        self._copied, self._is_whole = None, False

    def turn_back(self) -> None:
        """Forget the destination, because the file will have another one."""
        self.claim.bring_home()
        self.target = None

    def finish(self) -> None:
        """Remove the hidden names of an upload that was moved, after that was written down."""
        copy = state_of(self.target, self._copy)
        if copy and copy.is_same_file(self.upload.state):
            os.unlink(self._copy, dir_fd=self.target)
        self.claim.finish(self.upload.source_state)


def _look_for_room(directory: int, status: os.stat_result) -> None:
    """Raise OSError with ENOSPC if there is no room for a copy, before gigabytes are written."""
    room = os.statvfs(f"/proc/self/fd/{directory}")
    # st_blocks counts units of 512 bytes, see inode(7). Holes have no blocks, and the copy will
    # have the same holes.
    if room.f_blocks and status.st_blocks * 512 > room.f_bfree * room.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
