"""`watchman import-config`: the first version's config.py as an INI file.

Print the configuration of the first version of watchman as an INI file.

The Python files are read, not run. The INI file has a comment that begins with
NOTE for each thing that has no counterpart or means something else now. Read
these comments, then run watchman check.
"""

import argparse
import os
import sys
import tempfile

from watchman.commands.importing import celeryconfig, conversion
from watchman.commands.importing.draft import Draft
from watchman.commands.importing.literals import read
from watchman.commands.shared import shell
from watchman.commands.shared.phrases import count
from watchman.config import inifile
from watchman.errors import ConfigError

PROGRAM = "watchman import-config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--celery", dest="settings", metavar="FILE", help="its Celery settings, celeryconfig.py"
    )
    parser.add_argument("file", metavar="FILE", help="its configuration, config.py")


def main(arguments: argparse.Namespace) -> int:
    draft = Draft()
    written = read(arguments.file)
    conversion.convert(written, draft)
    conversion.remarks(written, draft)
    if arguments.settings:
        celeryconfig.convert(read(arguments.settings), arguments.settings, draft)
    text = draft.text(f"What {arguments.file} said, for watchman. See watchman.ini.example.")
    print(text, end="")
    sys.stdout.flush()
    if notes := draft.count():
        shell.complain(PROGRAM, f"{count(notes, 'comment')} to read: look for # NOTE:")
    problems = _problems(text)
    for problem in problems:
        shell.complain(PROGRAM, problem)
    return shell.REFUSED if problems else shell.DONE


def _problems(text: str) -> tuple[str, ...]:
    """Return what is still wrong with the INI file."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "watchman.ini")
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        try:
            inifile.load(path)
        except ConfigError as error:
            return tuple(
                problem.replace(f"{path}: ", "still wrong: ") for problem in error.problems
            )
    return ()
