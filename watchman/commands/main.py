"""The command `watchman`.

Turns every finished upload of an FTP server into one Celery task.

examples:
  watchman check                          is everything as it must be?
  watchman run                            the daemon, in the foreground
  watchman explain /srv/ftp/incoming/a.csv
  watchman status || mail -s watchman ops < /dev/null
  watchman retry --failed --path '*/events/*.csv'
  watchman pause broker:main
  watchman queue --json | jq -r 'select(.state == "failed").path'

To send an upload's task again by hand, see watchman-send --help.
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn, Protocol

from watchman.commands import drop, explain, pause, queue, reload, resume, retry, run, status
from watchman.commands.check import check
from watchman.commands.shared import shell, utf8
from watchman.config import inifile
from watchman.config.settings import Settings
from watchman.errors import SocketUnavailable


class Command(Protocol):
    """What each module of a command holds; its name is the command's."""

    __name__: str
    HELP: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def main(self, settings: Settings, arguments: argparse.Namespace) -> int: ...


MODULES: list[Command] = [run, check, explain, status, queue, retry, drop, pause, resume, reload]
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    utf8.insist()
    given = _parser().parse_args(arguments)

    def command() -> int:
        settings = inifile.load(inifile.find(given.config))
        try:
            return COMMANDS[given.command].main(settings, given)
        except SocketUnavailable as error:
            raise SocketUnavailable(f"{error}{shell.hint(error, settings)}") from error

    shell.leave("watchman", command)


def _parser() -> argparse.ArgumentParser:
    parser = shell.program("watchman", __doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        one = commands.add_parser(
            name, help=module.HELP, description=module.DESCRIPTION, epilog=shell.EXIT_CODES
        )
        # Also after the command, where many will write it.
        shell.add_config(one, default=argparse.SUPPRESS)
        module.add_arguments(one)
    return parser
