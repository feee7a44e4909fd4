"""`watchman retry`: try failed and deferred uploads again now.

Try uploads again now, under the ids they have. Deferred ones need not wait for their next try, nor
does whatever is held up with them. Failed ones wait for their broker again, for the task that the
INI file as it is now gives them. Printed once it is safe on disk: `retried ID PATH`.
"""

import argparse
from functools import partial

from watchman.commands.screens import progress
from watchman.commands.shared import selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="all that have failed or are deferred")
    selection.add_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    shown = progress.progress("retry", partial(selection.total, arguments))
    return selection.carry_out("retry", "retried", arguments, shown)
