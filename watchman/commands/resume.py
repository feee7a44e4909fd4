"""`watchman resume`: end a pause, or all.

End the pause of NAME, or without NAME every pause. What waited for it goes on,
the oldest uploads first. This command prints what is still paused.
"""

import argparse

from watchman.commands import pause

add_arguments = pause.add_arguments


def main(arguments: argparse.Namespace) -> int:
    return pause.ask("resume", arguments)
