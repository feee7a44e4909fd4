"""One file on its way from a watch to its destination, step by step, and back if it must be.

The file is claimed first: renamed to a hidden name beside its source. It is then renamed to its
final name, or, on another filesystem, copied to a hidden name beside that, which is linked to the
final name once the copy is whole; claim and copy go when that has been written down. So whatever
instruction was the last, the names that are there tell how far it came.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto
from typing import NoReturn

from watchman import beneath
from watchman.errors import BeingWritten, Superseded
from watchman.moves import claim_name, copy_name, unique_name
from watchman.settings import MoveSettings
from watchman.sinks import attributes, copying, lease, renaming
from watchman.upload import FileState, Upload


class Stage(Enum):
    """How far a file has come, as the names tell that are there."""

    NOWHERE = auto()
    AT_SOURCE = auto()
    CLAIMED = auto()
    MOVED = auto()


class Move:
    """One upload's file. `source` and `target` are its directories, open, None where there is none.

    Any step may raise OSError. What has been begun stays so that `find` finds it.
    """

    def __init__(self, upload: Upload, settings: MoveSettings) -> None:
        self.upload = upload
        self.source: int | None = None
        self.target: int | None = None
        #: The directory that the step under way is about, for who must say what went wrong.
        self.place = os.path.dirname(upload.source_path)
        self._settings = settings
        self._name = os.path.basename(upload.source_path)
        self._claim = claim_name(upload.id)
        self._copy = copy_name(upload.id)
        self._fd = -1
        #: The file as it was before it was moved, and what was changed about it on the way.
        self._before = upload.state
        self._state = upload.state
        self._status: os.stat_result | None = None
        #: From here on there is no way back.
        self._arrived = upload.source_state is not None

    @property
    def _final(self) -> str:
        return os.path.basename(self.upload.destination)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def moved(self) -> Upload:
        """Return the upload of a file that has been moved."""
        return replace(
            self.upload,
            path=self.upload.destination,
            state=self._state,
            moved_from=self.upload.path,
            source_state=self._before,
        )

    def find(self) -> Stage:
        """Find out how far it came; half a copy is removed."""
        stage = self._find()
        self._arrived = stage is Stage.MOVED
        return stage

    def _find(self) -> Stage:
        claim = _stat(self.source, self._claim)
        copy, final = _stat(self.target, self._copy), _stat(self.target, self._final)
        if final and copy and final.is_same_file(copy):
            self._before, self._state = claim or self.upload.state, final
            return Stage.MOVED
        if copy:
            os.unlink(self._copy, dir_fd=self.target)
        if claim:
            return self._find_claimed(claim, final)
        found = _stat(self.source, self._name)
        if found and self._is_ours(found):
            return Stage.AT_SOURCE
        if final and self._is_ours(final) and self._is_one_filesystem():
            self._before = self._state = final
            return Stage.MOVED
        return Stage.NOWHERE

    def _find_claimed(self, claim: FileState, final: FileState | None) -> Stage:
        if final and claim.is_same_file(final):
            # Between link(2) and unlink(2), where the kernel cannot rename without replacing.
            os.unlink(self._claim, dir_fd=self.source)
            self._before = self._state = final
            return Stage.MOVED
        found = _stat(self.source, self._name)
        if found and claim.is_same_file(found):
            # The same, on the way back.
            os.unlink(self._claim, dir_fd=self.source)
            return Stage.AT_SOURCE
        self._open(self._claim)
        return Stage.CLAIMED

    def _is_ours(self, found: FileState) -> bool:
        old = self.upload.state
        return found.inode == old.inode and not found.rewritten_since(old.size, old.ctime)

    def _is_one_filesystem(self) -> bool:
        # Of the directories: those of an overlay's files may differ.
        if self.target is None:
            return False
        device = self.upload.state.device if self.source is None else os.fstat(self.source).st_dev
        return device == os.fstat(self.target).st_dev

    def is_taken(self) -> bool:
        """Whether somebody else's file has the final name."""
        return _exists(self.target, self._final)

    def another_name(self) -> str:
        """Return a destination that is free."""
        directory = os.path.dirname(self.upload.destination)
        milliseconds = int(time.time() * 1000)
        while _exists(self.target, name := unique_name(self._name, milliseconds)):
            milliseconds += 1
        return os.path.join(directory, name)

    def claim(self) -> None:
        """Take the file away from its name. Raises BeingWritten or Superseded, and it stays.

        Under a lease, so that a writer who comes in between is seen: he would write into the moved
        file, and the FTP server would say that all is well.
        """
        try:
            self._open(self._name)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ELOOP):
                raise Superseded("taken away before its turn") from e
            raise
        held = lease.take(self._fd)
        if held is False:
            raise BeingWritten("it is being written")
        try:
            if not self._is_ours(self._look()):
                raise Superseded("overwritten before its turn")
            try:
                os.rename(self._name, self._claim, src_dir_fd=self.source, dst_dir_fd=self.source)
            except FileNotFoundError as e:
                raise Superseded("taken away before its turn") from e
            claimed = _stat(self.source, self._claim)
            if claimed is None or claimed.inode != self.upload.state.inode:
                # Another file had been renamed over it.
                self._give_back(Superseded("replaced before its turn"))
            if held and lease.is_being_broken(self._fd):
                self._give_back(BeingWritten("it is being written"))
        finally:
            if held:
                lease.release(self._fd)

    def check_claim(self) -> None:
        """See that nobody writes the claimed file. Raises BeingWritten or Superseded.

        Some may have looked its name up before it was claimed, and open it only now.
        """
        if lease.is_written(self._fd):
            self._give_back(BeingWritten("it is being written"))
        now = self._look()
        if self._is_ours(now):
            return
        if self._put_back():
            raise Superseded("overwritten before its turn")
        # A newer file has the name. This one goes on with what was written to it.
        self.upload = replace(self.upload, state=now)

    def hand_over(self, keep_on: Callable[[], None]) -> None:
        """Bring the claimed file to its final name. Raises FileExistsError if that is taken."""
        self._status = self._status or os.fstat(self._fd)
        self._before = self._look()
        if self._is_one_filesystem():
            attributes.change(self._fd, self._settings)
            assert self.source is not None
            assert self.target is not None
            try:
                renaming.rename(self.source, self._claim, self.target, self._final)
            except OSError as e:
                # Two mounts of one filesystem are two.
                if e.errno != errno.EXDEV:
                    raise
            else:
                self._arrived = True
                self._before = self._state = self._look()
                return
        self._copy_over(keep_on)

    def _copy_over(self, keep_on: Callable[[], None]) -> None:
        assert self.target is not None
        assert self._status is not None
        self._look_for_room()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(self._copy, flags, 0o600, dir_fd=self.target)
        try:
            try:
                copying.copy(self._fd, fd, self._before.size, keep_on=keep_on)
                attributes.copy_extended(self._fd, fd)
                attributes.copy(fd, self._settings, self._status)
                os.fsync(fd)
            finally:
                os.close(fd)
            self.check_claim()
            if self._is_changed():
                self._give_back(Superseded("changed while it was copied"))
            if not renaming.link(self.target, self._copy, self.target, self._final):
                renaming.rename(self.target, self._copy, self.target, self._final)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self._copy, dir_fd=self.target)
            raise
        self._arrived = True
        final = _stat(self.target, self._final)
        if final is None:
            raise FileNotFoundError(errno.ENOENT, "the file was taken away from its destination")
        self._state = final

    def _look_for_room(self) -> None:
        """Raise OSError with ENOSPC where a copy cannot fit: gigabytes need not tell each time."""
        assert self._status is not None
        room = os.statvfs(f"/proc/self/fd/{self.target}")
        # Blocks as the file has them, which its holes have not; st_blocks counts 512 bytes each.
        if room.f_blocks and self._status.st_blocks * 512 > room.f_bfree * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def check_moved(self) -> None:
        """See once more, later, that nobody writes the file. Raises BeingWritten or Superseded."""
        if self._fd < 0:
            return
        writing = lease.is_written(self._fd)
        if not writing and not self._is_changed():
            return
        assert self.source is not None
        assert self.target is not None
        if self._look().is_same_file(self._state):
            renaming.rename(self.target, self._final, self.source, self._claim)
        else:
            for name in (self._final, self._copy):
                found = _stat(self.target, name)
                if found and found.is_same_file(self._state):
                    os.unlink(name, dir_fd=self.target)
        if writing:
            self._give_back(BeingWritten("it is being written"))
        self._give_back(Superseded("overwritten before its turn"))

    def put_back(self) -> None:
        """Give a claimed file its name again, for as long as it cannot be moved."""
        if not self._arrived and _exists(self.source, self._claim):
            self._put_back()

    def _give_back(self, why: BeingWritten | Superseded) -> NoReturn:
        if not self._put_back():
            why = BeingWritten("another file has taken its name")
        raise why

    def _put_back(self) -> bool:
        """Return False if the name has been taken meanwhile; then it stays claimed."""
        assert self.source is not None
        try:
            renaming.rename(self.source, self._claim, self.source, self._name)
        except FileExistsError:
            return False
        if self._status is not None:
            attributes.restore(self._fd, self._status)
        return True

    def finish(self) -> None:
        """Remove claim and copy of an upload that has been moved, which is written down."""
        state, before = self.upload.state, self.upload.source_state
        copy = _stat(self.target, self._copy)
        if copy and copy.is_same_file(state):
            os.unlink(self._copy, dir_fd=self.target)
        claim = _stat(self.source, self._claim)
        if before is None or claim is None or claim.inode != before.inode:
            return
        self._open(self._claim)
        now, writing = self._look(), lease.is_written(self._fd)
        if writing or now.rewritten_since(before.size, before.ctime):
            # A writer who was late: what he writes is another upload.
            if self._put_back():
                return
            if writing:
                raise BeingWritten("it is being written")
        os.unlink(self._claim, dir_fd=self.source)

    def _open(self, name: str) -> None:
        if self._fd >= 0:
            return
        try:
            self._fd = os.open(name, beneath.READ, dir_fd=self.source)
        except PermissionError:
            # To rename it needs no right to read.
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(name, flags, dir_fd=self.source)

    def _is_changed(self) -> bool:
        now, before = self._look(), self._before
        return (now.size, now.mtime) != (before.size, before.mtime)

    def _look(self) -> FileState:
        return FileState.of(os.fstat(self._fd))


def _stat(directory: int | None, name: str) -> FileState | None:
    """Return the state of a regular file, None where there is none."""
    if directory is None:
        return None
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return FileState.of(status) if stat.S_ISREG(status.st_mode) else None


def _exists(directory: int | None, name: str) -> bool:
    """Whether there is anything of that name."""
    if directory is None:
        return False
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
