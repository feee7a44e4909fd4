"""Whose a file is: a hard link gives one of somebody else a name below a watch."""

from __future__ import annotations

import os
import pwd
import stat
from typing import NamedTuple

from watchman.uploads.upload import Notification, Source

#: Seconds for which a file that is refused must have stayed as it is: OpenSSH's sftp-server renames
#: by link(2) and unlink(2), so that a file has two names for a moment.
LINKED = 1.0


class Ownership(NamedTuple):
    """A file's owner, group and number of names, and the owner of the directory it was found in."""

    user: int
    group: int
    links: int
    directory: int

    @classmethod
    def of(cls, file: os.stat_result, directory: os.stat_result) -> Ownership:
        return cls(file.st_uid, file.st_gid, file.st_nlink, directory.st_uid)

    def refusal(self, uploader: int | None = None) -> str:
        """Return why the file must not be moved or announced, "" if it may be."""
        if self.links == 1 or self.user in (self.directory, uploader):
            return ""
        return (
            f"a hard link to a file of uid {self.user}, who neither uploaded it nor owns the"
            " directory it is in"
        )


def owner_of(file: os.stat_result, directory: int) -> int:
    """Return the uid of a file's owner; of its open directory's if it may be a stranger's file."""
    is_linked = file.st_nlink > 1 and not stat.S_ISDIR(file.st_mode)
    return os.fstat(directory).st_uid if is_linked else file.st_uid


def uploader(notification: Notification) -> int | None:
    """Return the uid of who uploaded a file, as far as we are told by whom we can believe.

    On the socket anyone may name any user, so it is who speaks that counts: a hook runs as its
    user. But root speaks for others.
    """
    if notification.source is Source.HOOK and notification.uid != 0:
        return notification.uid
    try:
        return pwd.getpwnam(notification.user).pw_uid if notification.user else None
    except KeyError:
        return None  # known to ProFTPD alone
