"""`watchman queue`: uploads that are not done, and why."""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from watchman.commands.shared import shell
from watchman.commands.shared.table import ago, table, until
from watchman.config.settings import Settings
from watchman.uploads.text import printable

HELP = "uploads noticed, waiting, deferred (when tried again), failed (why)"
DESCRIPTION = """\
List the uploads that are not done: failed ones first, for they need you, then deferred ones,
which are tried again, then what waits for its broker, then what is not known to be whole yet.
"""

HEADER = ("STATE", "AGE", "ATTEMPTS", "NEXT TRY", "TASK", "BROKER", "ID", "PATH")

#: Lines that are aligned with one another.
PAGE = 1_000

#: Seconds to wait for the next line.
TIMEOUT = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per upload")
    parser.add_argument("--limit", type=_positive, metavar="N", help="list the first N only")


def _positive(text: str) -> int:
    """None listed would be told as none waiting, see _report()."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def main(settings: Settings, arguments: argparse.Namespace) -> int:
    fields = {} if arguments.limit is None else {"limit": str(arguments.limit)}
    uploads = shell.stream(settings, "queue", fields, TIMEOUT)
    if arguments.json:
        for upload in uploads:
            shell.print_json(upload)
        return shell.DONE
    for line in _report(uploads, time.time()):
        print(line)
    return shell.DONE


def _report(uploads: Iterable[Mapping[str, Any]], now: float) -> Iterator[str]:
    counts = Counter[str]()
    following = iter(uploads)
    while page := list(itertools.islice(following, PAGE)):
        header, *lines = table(HEADER, [_row(upload, now) for upload in page])
        if not counts:
            yield header
        for upload, line in zip(page, lines, strict=True):
            counts[upload["state"]] += 1
            yield line
            if upload.get("reason"):
                yield f"    {printable(upload['reason'])}"
    listed = ", ".join(f"{number} {state}" for state, number in counts.items())
    yield listed or "nothing waits, nothing has failed"


def _row(upload: Mapping[str, Any], now: float) -> tuple[Any, ...]:
    return (
        upload["state"],
        ago(upload.get("since"), now),
        upload.get("attempts"),
        until(upload.get("next_try"), now),
        upload.get("task"),
        upload.get("broker"),
        upload.get("id"),
        upload["path"],
    )
