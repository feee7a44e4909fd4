"""`watchman queue`: uploads noticed, waiting, deferred (when tried again), failed (why).

List the uploads that are not done: failed ones first, for they need you, then deferred ones,
which are tried again, then what waits for its broker, then what is not known to be whole yet.
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from watchman.commands.shared import client, shell
from watchman.commands.shared.table import Columns, ago, table, until
from watchman.uploads.text import printable

COLUMNS: Columns = {
    "STATE": "state",
    "AGE": lambda upload: ago(upload.get("since")),
    "ATTEMPTS": "attempts",
    "NEXT TRY": lambda upload: until(upload.get("next_try")),
    "TASK": "task",
    "BROKER": "broker",
    "ID": "id",
    "PATH": "path",
}

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


def main(arguments: argparse.Namespace) -> int:
    fields = {} if arguments.limit is None else {"limit": str(arguments.limit)}
    uploads = client.request(arguments.socket, "queue", fields, TIMEOUT)
    shell.show(uploads, _report(uploads), as_json=arguments.json)
    return shell.DONE


def _report(uploads: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    counts = Counter[str]()
    while page := list(itertools.islice(uploads, PAGE)):
        header, *lines = table(COLUMNS, page)
        if not counts:
            yield header
        for upload, line in zip(page, lines, strict=True):
            counts[upload["state"]] += 1
            yield line
            if upload.get("reason"):
                yield f"    {printable(upload['reason'])}"
    listed = ", ".join(f"{number} {state}" for state, number in counts.items())
    yield listed or "nothing waits, nothing has failed"
