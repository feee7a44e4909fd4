"""`watchman queue`: uploads that are not done: failed, deferred, waiting, noticed.

Show the uploads that are not done. Uploads with the same state, place and
reason form a group. Failed ones come first, because they need you. Then come
those that are deferred and will be tried again, those that wait for their
broker or move, and files that are noticed but may not be whole yet. Each group
shows its first and its last upload, and --all shows every one. The counts are
always those of all uploads. If a program has a file open for writing, the queue
names it, provided that you may see that program. Root sees all programs.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from watchman.commands.shared import client, selection, shell
from watchman.commands.shared.writers import Writer, writers

#: Characters of a request for the paths of open files. A request may have 64 KiB.
ROOM = 60_000

#: Seconds to wait for the next line.
TIMEOUT = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per upload")
    parser.add_argument("--all", action="store_true", help="list every upload")
    parser.add_argument("--limit", type=_positive, metavar="N", help="list the first N")
    selection.add_filters(parser)


def _positive(text: str) -> int:
    """Return the number. 0 is refused: an empty list would look as if no upload waited."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def main(arguments: argparse.Namespace) -> int:
    filters = selection.filters_of(arguments)
    if filters and arguments.ids:
        raise shell.Misused("give either ids or --failed, --deferred, --broker, --path")
    if len(arguments.ids) > selection.IDS:
        raise shell.Misused(
            f"more than {selection.IDS} ids are given; give none to see all uploads"
        )
    fields = filters or next(selection.requests_of(arguments.ids), {})
    open_files = _open_files(arguments.socket)
    fields |= {"open": json.dumps(list(_few(open_files)))} if open_files else {}

    def uploads() -> Iterator[dict[str, Any]]:
        limit = {} if arguments.limit is None else {"limit": str(arguments.limit)}
        for upload in client.request(arguments.socket, "queue", fields | limit, TIMEOUT):
            yield _with_writers(upload, open_files)

    if arguments.json:
        for upload in uploads():
            shell.print_json(upload)
        return shell.DONE
    from watchman.commands.screens import queue, screen  # imports rich: --json need not wait

    groups = [
        {**group, **{end: _with_writers(group[end], open_files) for end in ("first", "last")}}
        for group in client.request(arguments.socket, "groups", fields, TIMEOUT)
    ]
    if groups and (arguments.all or arguments.limit):
        queue.show_all(uploads())
        screen.show(queue.counts(groups))
    else:
        screen.show(*queue.draw(groups))
    return shell.DONE


def _open_files(socket: str) -> dict[str, list[Writer]]:
    """Return which programs have files below watches open for writing, by file.

    If a program opens a file that the daemon knows already, the daemon notices only that it is
    closed. So `queue` sends it the open files, and the daemon lists those that may become uploads.
    """
    [status] = client.request(socket, "status")
    return writers(watch["path"] for watch in status["watches"].values())


def _with_writers(upload: dict[str, Any], open_files: Mapping[str, list[Writer]]) -> dict[str, Any]:
    of_file = open_files.get(upload["path"] or "")
    return {**upload, "writers": of_file} if of_file else upload


def _few(paths: Iterable[str]) -> Iterator[str]:
    """Yield as many paths as fit into a request."""
    room = ROOM
    for path in paths:
        room -= len(json.dumps(path)) + len(", ")
        if room < 0:
            return
        yield path
