"""`watchman status`: healthy or not and why: sources, watches, brokers, queue sizes.

Ask the daemon whether it is healthy, and print why not: each problem with its
cure. Pauses come first. They are no problem, because somebody wanted them. A
warning tells, for example, of a source that should have spoken and did not. It
may be wrong, so it does not count as a problem. --wait SECONDS gives a daemon
that is starting so long to answer and to be healthy. --watch, on a terminal,
shows the status again every two seconds, until Ctrl-C. The exit code is 0 if
the daemon is healthy, 1 if not, 3 if no daemon answers. With --nagios it is
that of monitoring plugins: 0 OK; 1 WARNING, there is a warning or a pause; 2
CRITICAL, not healthy or no daemon answers; 3 UNKNOWN, the daemon cannot be
asked.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from watchman.commands.shared import client, nagios, shell
from watchman.errors import SocketUnavailable, WatchmanError

#: Seconds between two requests of --wait.
POLL = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait at most so long for the daemon to answer and to be healthy",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument(
        "-q", "--quiet", action="store_true", help="print nothing; the exit code tells"
    )
    form.add_argument(
        "--watch", action="store_true", help="show it every two seconds, on a terminal"
    )
    form.add_argument(
        "--nagios", action="store_true", help="print one line, as a monitoring plugin"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # written so that it refuses nan too
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def main(arguments: argparse.Namespace) -> int:
    if arguments.watch and not sys.stdout.isatty():
        raise shell.Misused("--watch is for a terminal")
    found = _once_healthy(arguments.socket, time.monotonic() + arguments.wait)
    if arguments.nagios:
        return nagios.tell(found)
    if arguments.json:
        shell.print_json(found)
    elif arguments.watch:
        _watch(arguments)
    elif not arguments.quiet:
        from watchman.commands.screens import screen, status  # imports rich, which takes long

        screen.show(*status.draw(found, partial(shell.spelled, arguments)))
    return shell.DONE if found["healthy"] else shell.REFUSED


def _watch(arguments: argparse.Namespace) -> None:
    from watchman.commands.screens import live, screen, status

    def draw() -> Iterable[Any]:
        try:
            [found] = client.request(arguments.socket, "status")
        except WatchmanError as error:
            # The daemon may be back at the next request.
            return [screen.text(error, "bold red")]
        return status.draw(found, partial(shell.spelled, arguments))

    live.watch(draw)


def _once_healthy(socket: str, deadline: float) -> Mapping[str, Any]:
    """Ask until the daemon is healthy or the deadline has passed, and return its last answer.

    Raises SocketUnavailable if it does not answer by then.
    """
    while True:
        try:
            [found] = client.request(socket, "status")
        except SocketUnavailable:
            if time.monotonic() >= deadline:
                raise
        else:
            if found["healthy"] or time.monotonic() >= deadline:
                return found
        time.sleep(POLL)
