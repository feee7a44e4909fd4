"""`watchman drop`: give uploads up: no task is sent for them.

Give up uploads that wait, are deferred or have failed. No task is sent for
them, unless their file is written again or you send it with watchman-send. The
files stay as they are. `explain` tells the story of a dropped upload for as
long as `history` says. Each upload is printed as `dropped ID PATH` once that is
safe on disk. If the task of an upload is being sent at this moment, the command
waits for that, for up to ten seconds. It refuses the upload if the task was
sent, or is still being sent then.
"""

import argparse
from functools import partial

from watchman.commands.screens import progress
from watchman.commands.shared import selection

add_arguments = selection.add_arguments


def main(arguments: argparse.Namespace) -> int:
    shown = progress.progress("drop", partial(selection.total, arguments))
    return selection.carry_out("drop", "dropped", arguments, shown)
