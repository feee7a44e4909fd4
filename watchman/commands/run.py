"""`watchman run`: the daemon, in the foreground.

Run the daemon in the foreground. SIGTERM and SIGINT stop it in order: first it
stops listening and watching, then it finishes what is in hand, for at most
`drain`. The rest waits in the journal for the next start. SIGHUP makes it read
the INI file again, as `watchman reload` does. The daemon refuses a spool of
another user, and a spool with files that it may not read and write: it could
not go on with what another user's daemon has left there.
"""

import argparse
import os

from watchman.commands.check import places, spool
from watchman.commands.check.findings import Level
from watchman.commands.shared import shell
from watchman.config import inifile, locations
from watchman.daemon import Daemon
from watchman.errors import SocketUnavailable, SpoolNotOurs
from watchman.uploads.rights import WRITE, complaint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add none: everything is in the INI file."""


def main(arguments: argparse.Namespace) -> int:
    settings = inifile.load(locations.find(arguments.config))
    try:
        # First of all, because a daemon of the wrong user would make files, such as the log.
        if why := spool.whose(settings) or spool.strays(settings.spool):
            raise SpoolNotOurs(why)
        Daemon(settings).run()
    except SocketUnavailable as error:
        # Not UNREACHABLE: for other commands that means that no daemon answers.
        place = places.writable("socket", os.path.dirname(settings.socket), "0755")
        cure = f"; {place.text}" if place.level is Level.ERROR else ""
        shell.complain("watchman", f"{error}{cure}")
        return shell.REFUSED
    except PermissionError as error:
        shell.complain("watchman", f"{error}{_lacking(error.filename)}")
        return shell.REFUSED
    return shell.DONE


def _lacking(path: str | None) -> str:
    """Return which right we lack to use or make a file, and the command that grants it."""
    if path is None:
        return ""
    if os.path.lexists(path):
        found = complaint(path, os.R_OK | os.W_OK)
    else:
        found = complaint(os.path.dirname(path), WRITE)
    return f"; {found}" if found else ""
