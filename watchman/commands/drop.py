"""`watchman drop`: give uploads up: no task is sent for them.

Give up uploads that wait, are deferred or have failed: no task is sent for them, unless they are
written or sent by hand again. The files stay as they are, and `explain` tells the uploads' story
for as long as `history` says. Printed once it is safe on disk: `dropped ID PATH`. An upload whose
task is being sent at this moment is waited for, and refused if it could be sent.
"""

import argparse
from functools import partial

from watchman.commands.screens import progress
from watchman.commands.shared import selection

add_arguments = selection.add_arguments


def main(arguments: argparse.Namespace) -> int:
    shown = progress.progress("drop", partial(selection.total, arguments))
    return selection.carry_out("drop", "dropped", arguments, shown)
