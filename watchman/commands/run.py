"""`watchman run`: the daemon, in the foreground.

Run the daemon in the foreground. SIGTERM and SIGINT stop it in order: first it stops listening
and watching, then it finishes what is in hand, for at most `drain`. What is left waits in the
journal for the next start. SIGHUP has it read the INI file again, as `watchman reload` does.
A spool of another user is refused, as are files in it that may not be read and written: what one
user leaves there, the other could not go on with.
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
    """There are none: the INI file says it all."""


def main(arguments: argparse.Namespace) -> int:
    settings = inifile.load(locations.find(arguments.config))
    try:
        # Before anything else, the log too, is made in a wrong user's name.
        if why := spool.whose(settings) or spool.strays(settings.spool):
            raise SpoolNotOurs(why)
        Daemon(settings).run()
    except SocketUnavailable as error:
        # Not UNREACHABLE: that is what the other commands say of a daemon.
        place = places.writable("socket", os.path.dirname(settings.socket), "0755")
        cure = f"; {place.text}" if place.level is Level.ERROR else ""
        shell.complain("watchman", f"{error}{cure}")
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
