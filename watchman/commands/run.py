"""`watchman run`: the daemon, in the foreground.

Run the daemon in the foreground. SIGTERM and SIGINT stop it in order: first it stops listening
and watching, then it finishes what is in hand, for at most `drain`. What is left waits in the
journal for the next start. SIGHUP has it read the INI file again, as `watchman reload` does.
A spool of another user is refused, as are files in it that may not be read and written: what one
user leaves there, the other could not go on with.
"""

import argparse
import contextlib
import os
import shlex
from collections.abc import Iterator

from watchman.commands.check.rights import WRITE, account, complaint, me
from watchman.commands.shared import keeper, shell
from watchman.commands.shared.filesystems import may, user_name
from watchman.config import inifile, whereabouts
from watchman.config.settings import Settings
from watchman.daemon import Daemon
from watchman.errors import SocketUnavailable, SpoolNotOurs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none: the INI file says it all."""


def main(arguments: argparse.Namespace) -> int:
    settings = inifile.load(whereabouts.find(arguments.config))
    try:
        # Before anything else, the log too, is made in a wrong user's name.
        _insist_on_own_spool(settings)
        Daemon(settings).run()
    except SocketUnavailable as error:
        # Not UNREACHABLE: that is what the other commands say of a daemon.
        shell.complain("watchman", str(error))
        return shell.REFUSED
    except PermissionError as error:
        shell.complain("watchman", f"{error}{_lacking(error.filename)}")
        return shell.REFUSED
    return shell.DONE


def _lacking(path: str | None) -> str:
    """Which right keeps us from a file or from making it, and the command that grants it."""
    if path is None:
        return ""
    if os.path.lexists(path):
        found = complaint(path, os.R_OK | os.W_OK)
    else:
        found = complaint(os.path.dirname(path), WRITE)
    return f"; {found}" if found else ""


def _insist_on_own_spool(settings: Settings) -> None:
    """Raise SpoolNotOurs, with what to do instead, unless the spool is ours or still to be made."""
    spool = settings.spool
    if not os.path.isdir(spool):
        return
    place = shlex.quote(spool)
    owner = os.stat(spool).st_uid
    if owner != os.geteuid():
        name = user_name(owner)
        run = f"runuser -u {name} -- watchman -c {shlex.quote(settings.file)} run"
        cure = f"let {name} run it: {keeper.start_kept(settings.file) or run}"
        if os.geteuid() != 0:
            cure += f"; or if {me()} is to run it: chown -R {account()}: {place}"
        raise SpoolNotOurs(f"the spool {spool!r} belongs to {name}, and this is {me()}; {cure}")
    for path in _of_others(spool):
        if not may(path, os.R_OK | os.W_OK):
            whose = user_name(os.lstat(path).st_uid)
            what = f"{path!r} in the spool belongs to {whose}, and {me()} may not read and write it"
            raise SpoolNotOurs(f"{what}; chown -R {account()}: {place}")


def _of_others(spool: str) -> Iterator[str]:
    """The files and directories in a spool that are not ours."""
    for directory, _, names in os.walk(spool):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):  # another daemon is at work here
                if os.lstat(path).st_uid != os.geteuid():
                    yield path
