"""`watchman run`: the daemon, in the foreground.

Run the daemon in the foreground. SIGTERM and SIGINT stop it in order: first it stops listening
and watching, then it finishes what is in hand, for at most `drain`. What is left waits in the
journal for the next start. SIGHUP has it read the INI file again, as `watchman reload` does.
"""

import argparse

from watchman.commands.shared import shell
from watchman.config import inifile, whereabouts
from watchman.daemon import Daemon
from watchman.errors import SocketUnavailable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none: the INI file says it all."""


def main(arguments: argparse.Namespace) -> int:
    settings = inifile.load(whereabouts.find(arguments.config))
    try:
        Daemon(settings).run()
    except SocketUnavailable as error:
        # Not UNREACHABLE: that is what the other commands say of a daemon.
        shell.complain("watchman", str(error))
        return shell.REFUSED
    return shell.DONE
