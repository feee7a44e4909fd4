"""Whether we have the rights that a move needs, by a look at directories. Moves nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator, Sequence

from watchman.config.settings import MoveSettings
from watchman.uploads import mounts
from watchman.uploads.rights import (
    CAP_CHOWN,
    CAP_FOWNER,
    ENTER,
    WRITE,
    Problems,
    account,
    complaint,
    group_name,
    has_capability,
    may,
    me,
    user_name,
)

#: A file and what lstat(2) says of it.
File = tuple[str, os.stat_result]


class MoveRights:
    """A move, and what was seen in the directories that it takes files from."""

    def __init__(self, settings: MoveSettings) -> None:
        self._settings = settings
        self._problems = Problems()
        #: In how many directories files may be.
        self.looked = 0
        #: Whether files of others are renamed: these stay theirs, where a copy is ours.
        self._renames_foreign = False
        #: Of the destination, -1 where that cannot be looked at.
        self.device = -1
        with contextlib.suppress(OSError):
            self.device = os.stat(settings.destination).st_dev

    def look(self, top: str, status: os.stat_result, files: Sequence[File]) -> None:
        """Look at a directory, unless nothing can be uploaded there: as the FTP root is root's."""
        if not files and not _others_may_write(status):
            return
        self.looked += 1
        owners = {file.st_uid for _, file in files} or {status.st_uid}
        is_foreign = owners != {os.geteuid()}
        self._problems.need(top, WRITE)
        # In a sticky directory only the owner of one of both renames a file, see unlink(2).
        is_sticky = status.st_mode & stat.S_ISVTX and status.st_uid != os.geteuid()
        if is_foreign and is_sticky and may(top, WRITE) and not has_capability(CAP_FOWNER):
            text = f"{top!r} is sticky, so that {me()} may not move what others own"
            self._problems.add(f"{text}; chown {account()} {shlex.quote(top)}")
        if status.st_dev == self.device:
            self._renames_foreign |= is_foreign
        else:
            for path, _ in files:
                self._problems.need(path, os.R_OK)
        there = self._settings.destination
        target = os.path.normpath(os.path.join(there, os.path.relpath(top, self._settings.source)))
        while target != there and not os.path.lexists(target):
            target = os.path.dirname(target)
        if target != there:
            self._problems.need(target, WRITE)

    def miss(self, top: str) -> None:
        """Take a directory that cannot be looked into for one in which there are files."""
        with contextlib.suppress(OSError):
            if _others_may_write(os.stat(top)):
                self.looked += 1
                self._problems.add(complaint(top, ENTER | WRITE))

    def absent(self) -> str:
        """Say that the destination is not there or nothing is mounted on it; nothing if all is."""
        there, mounted = self._settings.destination, self._settings.mounted
        if os.path.isdir(there):
            is_mounted = not mounted or mounts.is_mounted(there)
            return "" if is_mounted else f"{there!r} is not mounted; the daemon waits until it is"
        text = f"{there!r} is not there yet; the daemon waits for it, never makes it"
        return text if mounted else f"{text}; install -d -o {account()} {shlex.quote(there)}"

    def problems(self) -> Iterator[str]:
        """Yield what keeps files from being moved to the destination, which is there."""
        self._problems.need(self._settings.destination, WRITE)
        yield from self._problems.told("files cannot be moved")
        yield from self._beyond_us()

    def _beyond_us(self) -> Iterator[str]:
        """Say what of `owner`, `group` and `mode` only root may set, see chown(2), chmod(2)."""
        owner, group, mode = self._settings.owner, self._settings.group, self._settings.mode
        is_ours = not self._renames_foreign
        if not has_capability(CAP_CHOWN):
            if owner is not None and not (is_ours and owner == os.geteuid()):
                yield f"owner = {user_name(owner)} takes CAP_CHOWN: leave it out, or run as root"
            if group is not None and group not in {os.getegid(), *os.getgroups()}:
                yield f"{me()} is not in its group; usermod -a -G {group_name(group)} {me()}"
            elif group is not None and not is_ours:
                yield "group of others' files takes CAP_CHOWN: leave it out, or run as root"
        if mode is not None and not is_ours and not has_capability(CAP_FOWNER):
            yield "mode of others' files takes CAP_FOWNER: leave it out, or run as root"


def regular(path: str) -> Iterator[File]:
    """Yield a path with what lstat(2) says of it, if it is a file that could be an upload."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            yield path, status


def _others_may_write(status: os.stat_result) -> bool:
    mode = status.st_mode
    return bool(
        (status.st_uid and mode & stat.S_IWUSR)
        or (status.st_gid and mode & stat.S_IWGRP)
        or mode & stat.S_IWOTH
    )
