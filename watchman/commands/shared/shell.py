"""What the commands share: exit codes, parsers, a line for each problem, printing an answer."""

import argparse
import gc
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from watchman import __version__
from watchman.commands.shared import keeper
from watchman.config import locations
from watchman.errors import (
    ConfigError,
    JournalTooNew,
    SocketUnavailable,
    SpoolLocked,
    SpoolNotOurs,
    WatchmanError,
)
from watchman.uploads.text import printable

#: Exit codes.
DONE = 0
#: Some paths were refused; `status`: not healthy; `check`: an ERROR; `run`: it could not start.
REFUSED = 1
#: Wrong usage, or a problem that remains if the command is started again with the same files.
USAGE = 2
#: The daemon does not answer.
UNREACHABLE = 3
#: Another daemon holds the spool.
LOCKED = 4
#: As shells report a process that SIGINT or SIGPIPE has ended.
INTERRUPTED = 130
BROKEN_PIPE = 141

#: Columns of a help text.
WIDTH = 80

EXIT_CODES = """\
exit codes:
  0  done
  1  some paths or ids were refused
     (status: not healthy; check: there is an ERROR; run: it could not start;
     import-config: something is left to be filled in)
  2  wrong usage, or the INI file is wrong
     (run: or the spool belongs to another user or to a newer version)
  3  the daemon does not answer
  4  run: another daemon holds the spool"""


class Misused(WatchmanError):
    """The arguments do not go together, or one is empty."""


#: Exit codes by error. Any other error is REFUSED.
CODES: Mapping[type[WatchmanError], int] = {
    ConfigError: USAGE,
    Misused: USAGE,
    JournalTooNew: USAGE,
    SpoolNotOurs: USAGE,
    SocketUnavailable: UNREACHABLE,
    SpoolLocked: LOCKED,
}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Prints help as it is written. Its width is fixed: asking the terminal for one takes long."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=WIDTH)


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage in one line, like any other problem."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=Formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        complain(self.prog, f"{message}; see {self.prog} --help")
        sys.exit(USAGE)


def description(doc: str | None) -> str:
    """Return the help text of a command: its module's docstring without the first line."""
    return (doc or "").partition("\n\n")[2]


def program(name: str, doc: str | None) -> Parser:
    """Return the parser of a program. Its docstring has a title, the purpose, and the rest."""
    purpose, _, more = description(doc).partition("\n\n")
    parser = Parser(prog=name, description=purpose, epilog=f"{more}\n{EXIT_CODES}")
    add_config(parser)
    add_socket(parser)
    parser.add_argument("--version", action="version", version=f"watchman {__version__}")
    return parser


def add_config(parser: argparse.ArgumentParser, **options: Any) -> None:
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help=f"the INI file (else $WATCHMAN_CONFIG, else {locations.DEFAULT_FILE})",
        **options,
    )


def add_socket(parser: argparse.ArgumentParser, **options: Any) -> None:
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="the daemon's socket (else $WATCHMAN_SOCKET, else the one that the INI file names)",
        **options,
    )


def ask(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a command that asks the daemon, with the path of the socket in `arguments.socket`.

    If no daemon answers, the error also says how to start one.
    """
    arguments.given_socket = arguments.socket
    arguments.socket = locations.find_socket(arguments.socket, arguments.config)
    try:
        return command(arguments)
    except SocketUnavailable as error:
        if not isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
            raise
        raise SocketUnavailable(f"{error}; {_hint(arguments)}") from error


def spelled(arguments: argparse.Namespace, command: str) -> str:
    """Return a command as the user who gave `arguments` must type it, for the same daemon."""
    file = os.path.abspath(locations.find(arguments.config))
    if command == keeper.RESTART:
        return keeper.start_kept(file).replace(" start ", " restart ") or command
    program, _, rest = command.partition(" ")
    if program != "watchman":
        return command
    given = ["-c", arguments.config] if arguments.config else []
    if arguments.given_socket and not rest.startswith("check"):
        given += ["--socket", arguments.given_socket]
    return " ".join([shlex.join([program, *given]), rest])


def _hint(arguments: argparse.Namespace) -> str:
    """Return what to do if no daemon answers."""
    file = os.path.abspath(locations.find(arguments.config))
    start = keeper.how_to_start(file)
    hint = f"is it running? Start it with: {start}" if start else "is it running?"
    if arguments.socket == locations.DEFAULT_SOCKET and locations.is_closed(file):
        hint += f"; {file} may name another socket, but you may not read it: give --socket PATH"
    return hint


def leave(program: str, command: Callable[[], int]) -> NoReturn:
    """Run `command` and exit. Print one line for each problem, without a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may be any bytes. They are printed as UTF-8, whatever $PYTHONIOENCODING says.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = command()
        sys.stdout.flush()
    except WatchmanError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        for problem in problems:
            complain(program, problem)
        code = CODES.get(type(error), REFUSED)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    except OSError as error:
        complain(program, str(error))
        code = REFUSED
    # At exit Python searches all that was imported for garbage: a tenth of a command's time. It
    # does not search what is frozen.
    gc.freeze()
    sys.exit(code)


def complain(program: str, problem: str) -> None:
    print(f"{program}: {printable(problem)}", file=sys.stderr)


def show(rows: Iterable[Mapping[str, Any]], lines: Iterable[str], *, as_json: bool) -> None:
    """Print an answer: `rows` as JSON objects, one a line, or else `lines`, made for people."""
    for line in map(json.dumps, rows) if as_json else lines:
        print(line)


def print_json(values: Any) -> None:
    print(json.dumps(values))
