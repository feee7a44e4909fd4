"""`watchman resume`: the end of a pause."""

import argparse

from watchman.commands import pause
from watchman.config.settings import Settings

HELP = "end a pause, or all"
DESCRIPTION = """\
End the pause of NAME, or without NAME every pause: what waited for it goes on, the oldest first.
Printed is what is still paused.
"""

add_arguments = pause.add_arguments


def main(settings: Settings, arguments: argparse.Namespace) -> int:
    return pause.ask(settings, "resume", arguments)
