"""The command `watchman-send`: resubmits files by hand.

Send the tasks of uploaded files, again or for the first time.

examples:
  watchman-send /srv/ftp/incoming/a.csv
  find /srv/ftp -name '*.csv' -mmin -60 -print0 | watchman-send -0 -

Name files below a watch, or where a move has put them. Each becomes a new
upload with a new id, even if its task was sent before or `exclude` names it.
The answer is `OK ID PATH` once that is safe on disk. With --same-id a file
keeps the id of its last upload, for workers that skip repeats. That upload must
be over (done, dropped, gone or superseded) and still in the history. For
uploads that wait or have failed, use `watchman retry`.
"""

import argparse
import itertools
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from watchman.commands.screens import progress
from watchman.commands.shared import client, shell, utf8
from watchman.errors import SocketUnavailable
from watchman.uploads.outcome import Outcome
from watchman.uploads.text import printable

PROGRAM = "watchman-send"

#: Number of paths after which the progress is shown again.
PROGRESS = 100

#: Bytes to read at once.
READ = 64 * 1024


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    utf8.insist()
    given = parser().parse_args(arguments)
    shell.leave(PROGRAM, lambda: shell.ask(_send, given))


def parser() -> argparse.ArgumentParser:
    made = shell.program(PROGRAM, __doc__)
    made.add_argument(
        "-0",
        "--null",
        action="store_true",
        help="paths on standard input end with NUL, not newline",
    )
    made.add_argument(
        "--as",
        dest="as_path",
        metavar="PATH",
        help="send the one file as if it had been uploaded as PATH, which decides its task",
    )
    made.add_argument(
        "--same-id", action="store_true", help="use the id of the file's last upload again"
    )
    made.add_argument(
        "paths", nargs="+", metavar="PATH", help="a file, or - for paths on standard input"
    )
    return made


def _send(given: argparse.Namespace) -> int:
    if given.as_path and (len(given.paths) > 1 or given.paths == ["-"]):
        raise shell.Misused("--as is for one PATH at a time")
    fields = {"same_id": "yes"} if given.same_id else {}
    fields |= {"as": _absolute(given.as_path)} if given.as_path else {}
    sent = refused = 0
    end = b"\0" if given.null else b"\n"
    shown = _progress(given.paths, end)
    try:
        for batch in _batches(given.paths, end):
            paths = map(_absolute, batch)
            for path, outcome, detail in client.resubmit(given.socket, paths, fields):
                if outcome in (Outcome.OK, Outcome.DUPLICATE):
                    sent += 1
                    print(outcome, detail, printable(path))
                else:
                    refused += 1
                    shown.close()
                    shell.complain(PROGRAM, f"{path!r}: {detail or outcome.lower()}")
                if (sent + refused) % PROGRESS == 0:
                    shown(sent + refused)
    except SocketUnavailable as error:
        done = f"; {sent} sent before that" if sent else ""
        raise SocketUnavailable(f"{error}{done}") from error.__cause__
    finally:
        shown.close()
    return shell.REFUSED if refused else shell.DONE


def _absolute(path: str) -> str:
    # Neither realpath nor abspath: the daemon itself looks at symlinks and `..` on the way.
    return os.path.join(os.getcwd(), path) if path else path


def _batches(arguments: Sequence[str], end: bytes) -> Iterator[list[str]]:
    """Yield paths as they come: what a pipe holds is sent before we wait for more."""
    for piped, group in itertools.groupby(arguments, "-".__eq__):
        if piped:
            yield from _piped(end)
        else:
            yield list(group)


def _piped(end: bytes) -> Iterator[list[str]]:
    rest = b""
    while data := os.read(sys.stdin.fileno(), READ):
        *whole, rest = (rest + data).split(end)
        yield [os.fsdecode(path) for path in whole if path]
    if rest:
        yield [os.fsdecode(rest)]


def _progress(arguments: Sequence[str], end: bytes) -> progress.Progress:
    """Return a progress bar, or an unseen one if the terminal shows the answers anyway."""

    def total() -> int | None:
        piped = _count_piped(end) if "-" in arguments else 0
        return None if piped is None else sum(path != "-" for path in arguments) + piped

    return progress.UNSEEN if sys.stdout.isatty() else progress.progress("send", total)


def _count_piped(end: bytes) -> int | None:
    """Return how many paths standard input has; None if it is no file, so nobody can know."""
    fd = sys.stdin.fileno()
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    at, paths, last = os.lseek(fd, 0, os.SEEK_CUR), 0, end
    while data := os.pread(fd, READ, at):
        at, paths, last = at + len(data), paths + data.count(end), data[-1:]
    return paths + (last != end)


if __name__ == "__main__":
    main()
