"""Who owns a file, and whether it may be moved or announced.

Anybody can make a hard link below a watch to a file of somebody else, see link(2). Without a check
watchman would move that file or send its path.
"""

from __future__ import annotations

import os
import pwd
import stat
from typing import NamedTuple

from watchman.uploads.upload import Notification, Source

#: Seconds for which a file must have stayed as it is before it is refused. OpenSSH's sftp-server
#: renames by link(2) and unlink(2), so a file may have two names for a moment.
LINKED = 1.0


class Ownership(NamedTuple):
    """A file's owner, group and number of names, and the owner of its directory."""

    user: int
    group: int
    links: int
    directory: int

    @classmethod
    def of(cls, file: os.stat_result, directory: os.stat_result) -> Ownership:
        return cls(file.st_uid, file.st_gid, file.st_nlink, directory.st_uid)

    def refusal(self, uploader: int | None = None) -> str:
        """Return why the file must not be moved or announced, "" if it may be.

        `uploader` is the uid of who uploaded it, if known.
        """
        if self.links == 1 or self.user in (self.directory, uploader):
            return ""
        return (
            f"a hard link to a file of uid {self.user}, who neither uploaded it nor owns the"
            " directory it is in"
        )


def owner_of(file: os.stat_result, directory: int) -> int:
    """Return the uid of a file's owner, or of its directory's owner if the file has more names.

    A file with several names may be a hard link to somebody else's file.
    """
    is_linked = file.st_nlink > 1 and not stat.S_ISDIR(file.st_mode)
    return os.fstat(directory).st_uid if is_linked else file.st_uid


def uploader(notification: Notification) -> int | None:
    """Return the uid of who uploaded a file, as far as a trustworthy source tells; else None.

    On the socket anyone can write any user name, so for a hook the uid of the process counts: it
    runs as the FTP user. Only root is believed what it says, for it may speak for others.
    """
    if notification.source is Source.HOOK and notification.uid != 0:
        return notification.uid
    try:
        return pwd.getpwnam(notification.user).pw_uid if notification.user else None
    except KeyError:
        return None  # a virtual user of ProFTPD, whom the system does not know
