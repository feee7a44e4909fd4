"""The command `watchman`."""

import argparse
from collections.abc import Sequence
from typing import NoReturn, Protocol

from watchman import __version__
from watchman.commands import drop, explain, pause, queue, reload, resume, retry, run, status
from watchman.commands.check import check
from watchman.commands.shared import shell, utf8
from watchman.config import inifile
from watchman.config.settings import Settings

EXAMPLES = """\
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


class Command(Protocol):
    """What each module of a command holds."""

    HELP: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def main(self, settings: Settings, arguments: argparse.Namespace) -> int: ...


COMMANDS: dict[str, Command] = {
    "run": run,
    "check": check,
    "explain": explain,
    "status": status,
    "queue": queue,
    "retry": retry,
    "drop": drop,
    "pause": pause,
    "resume": resume,
    "reload": reload,
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    utf8.insist()
    given = _parser().parse_args(arguments)

    def command() -> int:
        settings = inifile.load(inifile.find(given.config))
        return COMMANDS[given.command].main(settings, given)

    shell.leave("watchman", command)


def _parser() -> argparse.ArgumentParser:
    parser = shell.Parser(
        prog="watchman",
        description="Turns every finished upload of an FTP server into one Celery task.",
        epilog=f"{EXAMPLES}\n{shell.EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    shell.add_config(parser)
    parser.add_argument("--version", action="version", version=f"watchman {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=shell.EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # Also after the command, where many will write it.
        shell.add_config(one, default=argparse.SUPPRESS)
        module.add_arguments(one)
    return parser
