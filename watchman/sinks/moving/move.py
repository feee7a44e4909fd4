"""One file on its way from a watch to its destination, step by step, and back if it must be.

On one filesystem it is claimed: renamed to a hidden name beside its destination, and then to its
final one. To another filesystem it is copied, to a hidden name beside its destination that is
linked to the final one once the copy is whole; then it is claimed: renamed to a hidden name beside
its source. Claim and copy go when that has been written down. So a file keeps its name until its
destination has taken it, and whatever instruction was the last, the names that are there tell how
far it came.
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

#: Seconds after which a write sets other times than the one before it: the kernel counts them by
#: its ticks, of which there are 100 each second at least (CONFIG_HZ).
TICK = 0.01


class Move:
    """One upload's file. `target` is the directory it goes to, open, None where there is none.

    Any step may raise OSError. What has been begun stays so that `find` finds it. A copy of more
    than `largest` bytes raises TakesLong.
    """

    def __init__(self, upload: Upload, settings: MoveSettings, *, largest: float) -> None:
        self.upload = upload
        self.claim = Claim(upload)
        self.target: int | None = None
        #: The directory that the step under way is about, for who must say what went wrong.
        self.place = os.path.dirname(upload.source_path)
        self._settings = settings
        self._largest = largest
        self._name = os.path.basename(upload.source_path)
        self._copy = copy_name(upload.id)
        #: The file that is our copy, and whether all is in it.
        self._copied: FileState | None = None
        self._is_whole = False
        #: The file as it was before it was moved, and what was changed about it on the way.
        self._before = upload.state
        self._state = upload.state
        #: Whether it has been moved: from here on there is no way back.
        self.arrived = upload.source_state is not None

    @property
    def _final(self) -> str:
        return os.path.basename(self.upload.destination)

    def moved(self) -> Upload:
        """Return the upload of a file that has been moved."""
        return self.upload._replace(
            path=self.upload.destination,
            state=self._state,
            moved_from=self.upload.path,
            source_state=self._before,
        )

    def find(self) -> None:
        """Find out how far it came, as the names tell that are there; half a copy is removed.

        Raises Superseded if there is no file of that upload.
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
            # Between link(2) and unlink(2), where the kernel cannot rename without replacing.
            self.claim.forget()
            self._arrive(final, final)
        elif claim and (found := self.claim.at_source()) and claim.is_same_file(found):
            # The same, on the way back.
            self.claim.forget()
        elif claim:
            self.claim.open()
        elif final and not is_at_source and self.claim.is_ours(final) and self._is_one_filesystem():
            self._arrive(final, final)
        elif not is_at_source:
            raise Superseded("it is not where it was")

    def _arrive(self, before: FileState, now: FileState) -> None:
        """Know that the file has been moved, and what it was like before that."""
        self.arrived, self._before, self._state = True, before, now

    def _is_one_filesystem(self) -> bool:
        # Of the directories: those of an overlay's files may differ.
        if self.target is None:
            return False
        here = self.claim.source if self.claim.held is None else self.claim.held
        device = self.upload.state.device if here is None else os.fstat(here).st_dev
        return device == os.fstat(self.target).st_dev

    def is_taken(self) -> bool:
        """Whether somebody else's file has the final name."""
        return status_of(self.target, self._final) is not None

    def another_name(self) -> str:
        """Return a destination that is free."""
        directory = os.path.dirname(self.upload.destination)
        milliseconds = int(time.time() * 1000)
        while status_of(self.target, name := unique_name(self._name, milliseconds)):
            milliseconds += 1
        return os.path.join(directory, name)

    def hand_over(self, keep_on: Callable[[], None]) -> None:
        """Bring the file to its final name.

        Raises BeingWritten or Superseded, and FileExistsError if that name is taken: then it can be
        called again for another one.
        """
        if self._is_one_filesystem():
            try:
                self._rename()
            except OSError as e:
                # Two mounts of one filesystem are two.
                if e.errno != errno.EXDEV:
                    raise
            else:
                return
        self._copy_over(keep_on)

    def _rename(self) -> None:
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
        claim = self.claim
        assert self.target is not None
        claim.open()
        if claim.held is None:
            if self.upload.state.size > self._largest:
                raise TakesLong("others would wait for its copy")
            if not may_change(claim.source):
                # The kernel says why not, before gigabytes are copied for nothing.
                self._claim_at_source()
            # Whatever is written from now on has another time.
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
            # First, for it may not be permitted.
            attributes.set_owner(fd, self._settings, status)
            copying.copy(claim.fd, fd, status.st_size, keep_on=look)
            attributes.copy(claim.fd, fd, self._settings, self.upload.owner, status)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _is_changed(self) -> bool:
        """Whether the file was written; while anyone may, whatever else has changed counts, too."""
        now, before = self.claim.look(), self._before
        if self.claim.held is None and not self.arrived:
            return now != before
        return (now.size, now.mtime) != (before.size, before.mtime)

    def check_moved(self) -> None:
        """See once more, later, that nobody writes the file. Raises BeingWritten or Superseded."""
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
        """Leave nothing at the destination and the file at its name, while it cannot be moved."""
        if not self.arrived:
            self._withdraw()
            self.claim.put_back()

    def _withdraw(self) -> None:
        """Remove our copy: its final name first, for by the other one it is known as ours."""
        for name in (self._final, self._copy):
            found = state_of(self.target, name)
            if found and self._copied and found.is_same_file(self._copied):
                os.unlink(name, dir_fd=self.target)
        self._copied, self._is_whole = None, False

    def turn_back(self) -> None:
        """Forget where the file was to go."""
        self.claim.bring_home()
        self.target = None

    def finish(self) -> None:
        """Remove claim and copy of an upload that has been moved, which is written down."""
        copy = state_of(self.target, self._copy)
        if copy and copy.is_same_file(self.upload.state):
            os.unlink(self._copy, dir_fd=self.target)
        self.claim.finish(self.upload.source_state)


def _look_for_room(directory: int, status: os.stat_result) -> None:
    """Raise OSError with ENOSPC where a copy cannot fit: gigabytes need not tell each time."""
    room = os.statvfs(f"/proc/self/fd/{directory}")
    # Blocks as the file has them, which its holes have not; st_blocks counts 512 bytes each.
    if room.f_blocks and status.st_blocks * 512 > room.f_bfree * room.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
