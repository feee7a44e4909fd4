"""The command `watchman`.

Turns every finished upload of an FTP server into one Celery task.

examples:
  watchman check                          is everything set up as it must be?
  watchman run                            the daemon, in the foreground
  watchman explain /srv/ftp/incoming/a.csv
  watchman status || mail -s watchman ops < /dev/null
  watchman retry --failed --path '*/events/*.csv'
  watchman pause broker:main
  watchman queue --json | jq -r 'select(.state == "failed").path'

To send an upload's task again by hand, see watchman-send --help.
"""

import argparse
import gc
import importlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from watchman.commands.shared import nagios, shell, utf8

#: The purpose of each command. The command's module has `add_arguments(parser)` and
#: `main(arguments)`. It is imported only if the command line names it: most commands answer in less
#: time than it takes to import all of them.
COMMANDS = {
    "run": "the daemon, in the foreground",
    "check": "the INI file and everything it names",
    "explain": "what would happen to a path, and why",
    "status": "healthy or not and why: sources, watches, brokers, queue sizes",
    "queue": "uploads that are not done: failed, deferred, waiting, noticed",
    "tail": "uploads as they pass, live",
    "retry": "try failed and deferred uploads again now",
    "drop": "give uploads up: no task is sent for them",
    "pause": "make uploads of a watch or task, or for a broker, wait",
    "resume": "end a pause, or all",
    "reload": "have the daemon read the INI file again",
    "import-config": "the first version's config.py as an INI file",
}

#: Number of new objects after which Python searches for garbage. Imported objects are no garbage.
#: With a search after every 700 objects, a sixth of the time to import rich is spent on searches.
OBJECTS = 100_000

#: Commands that ask no daemon.
ALONE = ("run", "check", "import-config")

#: Commands that read no INI file.
NO_INI = ("import-config",)

#: Modules of the commands that have a folder of their own.
FOLDERS = {"check": "check.check", "import-config": "importing.import_config"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    utf8.insist()
    gc.set_threshold(OBJECTS)
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = parser_for(arguments)
    try:
        given = parser.parse_args(arguments)
    except SystemExit as end:
        # Wrong arguments say nothing about the daemon, so for a monitoring plugin they are UNKNOWN.
        sys.exit(nagios.UNKNOWN if end.code and "--nagios" in arguments else end.code)
    command = module(given.command).main
    if given.command not in ALONE:
        ask = partial(shell.ask, command, given)
        is_plugin = getattr(given, "nagios", False)
        shell.leave("watchman", partial(nagios.guarded, ask) if is_plugin else ask)
    if given.socket:
        parser.error(f"--socket is not for {given.command}, which asks no daemon")
    shell.leave("watchman", lambda: command(given))


def module(command: str) -> Any:
    return importlib.import_module(f"watchman.commands.{FOLDERS.get(command, command)}")


def parser_for(arguments: Sequence[str]) -> shell.Parser:
    """Return the parser for a command line. It knows only the options of the command there."""
    parser = shell.program("watchman", __doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        one = commands.add_parser(name, help=purpose, epilog=shell.EXIT_CODES)
        if name in arguments:
            one.description = shell.description(module(name).__doc__)
            # Many people write these two options after the command. Accept them there too.
            if name not in NO_INI:
                shell.add_config(one, default=argparse.SUPPRESS)
            if name not in ALONE:
                shell.add_socket(one, default=argparse.SUPPRESS)
            module(name).add_arguments(one)
    return parser
