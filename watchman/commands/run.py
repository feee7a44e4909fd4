"""`watchman run`: the daemon, in the foreground.

Run the daemon in the foreground. SIGTERM and SIGINT stop it in order: first it stops listening
and watching, then it finishes what is in hand, for at most `drain`. What is left waits in the
journal for the next start. SIGHUP has it read the INI file again, as `watchman reload` does.
"""

import argparse

from watchman.commands.shared import shell
from watchman.config.settings import Settings
from watchman.errors import SocketUnavailable

HELP, DESCRIPTION = shell.texts(__doc__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none: the INI file says it all."""


def main(settings: Settings, arguments: argparse.Namespace) -> int:  # noqa: ARG001
    # Here, since it imports everything: the other commands stay quick.
    from watchman.daemon import Daemon

    try:
        Daemon(settings).run()
    except SocketUnavailable as error:
        # Not UNREACHABLE: that is what the other commands say of a daemon.
        shell.complain("watchman", str(error))
        return shell.REFUSED
    return shell.DONE
