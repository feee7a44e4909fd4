"""`watchman resume`: end a pause, or all.

End the pause of NAME, or without NAME every pause: what waited for it goes on, the oldest first.
Printed is what is still paused.
"""

import argparse

from watchman.commands import pause
from watchman.commands.shared import shell
from watchman.config.settings import Settings

HELP, DESCRIPTION = shell.texts(__doc__)

add_arguments = pause.add_arguments


def main(settings: Settings, arguments: argparse.Namespace) -> int:
    return pause.ask(settings, "resume", arguments)
