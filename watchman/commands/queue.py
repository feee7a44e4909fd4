"""`watchman queue`: uploads noticed, waiting, deferred (when tried again), failed (why).

List the uploads that are not done: failed ones first, for they need you, then deferred ones,
which are tried again, then what waits for its broker, then what is not known to be whole yet.
Of a file that is being written it says by which program, where you may see that: root sees all.
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from watchman.commands.shared import client, shell
from watchman.commands.shared.table import Columns, ago, table, until
from watchman.commands.shared.writers import WRITTEN, told, writers
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

#: Characters of a request that may name files; it has 64 KiB.
ROOM = 60_000

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
    rows = _queue(arguments.socket, fields)
    shell.show(rows, _report(rows), as_json=arguments.json)
    return shell.DONE


def _queue(socket: str, fields: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """Yield what the daemon lists, with who has files open for writing.

    Of a file that it knows already the daemon hears when it is closed, not when it is opened. So
    it is told which ones are open; it lists those that may become uploads.
    """
    [status] = client.request(socket, "status")
    open_files = writers(watch["path"] for watch in status["watches"].values())
    if open_files:
        fields = {**fields, "open": json.dumps(list(_few(open_files)))}
    for row in client.request(socket, "queue", fields, TIMEOUT):
        of_file = open_files.get(row["path"] or "")
        yield {**row, "writers": of_file} if of_file else row


def _few(paths: Iterable[str]) -> Iterator[str]:
    """Yield as many as fit into a request."""
    room = ROOM
    for path in paths:
        room -= len(json.dumps(path)) + len(", ")
        if room < 0:
            return
        yield path


def _report(uploads: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    counts = Counter[str]()
    while page := list(itertools.islice(uploads, PAGE)):
        header, *lines = table(COLUMNS, page)
        if not counts:
            yield header
        for upload, line in zip(page, lines, strict=True):
            counts[upload["state"]] += 1
            yield line
            if reason := _why(upload):
                yield f"    {printable(reason)}"
    listed = ", ".join(f"{number} {state}" for state, number in counts.items())
    yield listed or "nothing waits, nothing has failed"


def _why(upload: Mapping[str, Any]) -> str:
    reason, by = upload.get("reason") or "", told(upload.get("writers", ()))
    if by and reason == WRITTEN:
        return f"{reason} by {by}"
    return "; ".join(filter(None, (reason, by and f"open for writing by {by}")))
