"""`watchman retry`: try failed and deferred uploads again now.

Try uploads again now, under the same ids. Deferred ones do not wait for their
next try any more, and neither does anything that is held up with them. Failed
ones wait for their broker or move again, with the task that the INI file gives
them now. Each upload is printed as `retried ID PATH` once that is safe on disk.
"""

import argparse
from functools import partial

from watchman.commands.screens import progress
from watchman.commands.shared import selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="all failed and deferred uploads")
    selection.add_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    shown = progress.progress("retry", partial(selection.total, arguments))
    return selection.carry_out("retry", "retried", arguments, shown)
