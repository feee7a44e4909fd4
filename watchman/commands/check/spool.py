"""Checks who owns the spool, and the files in it.

The daemon of one user cannot go on with the files that another user has left in the spool.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator

from watchman.commands.shared import keeper
from watchman.config.settings import Settings
from watchman.uploads.rights import account, may, me, user_name


def whose(settings: Settings) -> str:
    """Return a message that the spool belongs to another user, and what to do.

    "" if the spool is ours, or is not there.
    """
    spool = settings.spool
    if not os.path.isdir(spool) or (owner := os.stat(spool).st_uid) == os.geteuid():
        return ""
    name = user_name(owner)
    run = f"runuser -u {name} -- watchman -c {shlex.quote(settings.file)} run"
    cure = f"let {name} run it: {keeper.start_kept(settings.file) or run}"
    if os.geteuid() != 0:
        cure += f"; or if {me()} is to run it: {_give(spool)}"
    return f"the spool {spool!r} belongs to {name}, and this is {me()}; {cure}"


def strays(spool: str) -> str:
    """Return a message about a file of another user in the spool that we may not use, and the cure.

    "" if there is none.
    """
    for path, owner in _of_others(spool):
        if not may(path, os.R_OK | os.W_OK):
            what = f"{path!r} in the spool belongs to {user_name(owner)}, and {me()} may not"
            return f"{what} read and write it; {_give(spool)}"
    return ""


def _give(spool: str) -> str:
    return f"chown -R {account()}: {shlex.quote(spool)}"


def _of_others(spool: str) -> Iterator[tuple[str, int]]:
    """Yield each path in a spool that belongs to another user, and the user's uid."""
    for directory, _, names in os.walk(spool):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):  # another daemon is at work here
                if (owner := os.lstat(path).st_uid) != os.geteuid():
                    yield path, owner
