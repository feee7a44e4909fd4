"""`watchman queue`: uploads noticed, waiting, deferred (when tried again), failed (why).

Show the uploads that are not done, in groups of what has the same state, place and reason: failed
ones first, for they need you, then deferred ones, which are tried again, then what waits for its
broker, then what is not known to be whole yet. Of each group the first and the last upload are
shown, and with --all every one. Counts are of all, whatever is shown. Of a file that is being
written it says by which program, where you may see that: root sees all.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from watchman.commands.shared import client, selection, shell
from watchman.commands.shared.writers import Writer, writers

#: Characters of a request that may name files; it has 64 KiB.
ROOM = 60_000

#: Seconds to wait for the next line.
TIMEOUT = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per upload")
    parser.add_argument("--all", action="store_true", help="list every upload")
    parser.add_argument("--limit", type=_positive, metavar="N", help="list the first N")
    selection.add_filters(parser)


def _positive(text: str) -> int:
    """None listed would be told as none waiting."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def main(arguments: argparse.Namespace) -> int:
    filters = selection.filters_of(arguments)
    if filters and arguments.ids:
        raise shell.Misused("give either ids or --failed, --deferred, --broker, --path")
    if len(arguments.ids) > selection.IDS:
        raise shell.Misused(f"these are more than {selection.IDS} ids; leave them out for all")
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
    from watchman.commands.screens import queue, screen  # rich: --json need not wait for it

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

    Of a file that it knows already the daemon hears when it is closed, not when it is opened. So
    it is told which ones are open; it lists those that may become uploads.
    """
    [status] = client.request(socket, "status")
    return writers(watch["path"] for watch in status["watches"].values())


def _with_writers(upload: dict[str, Any], open_files: Mapping[str, list[Writer]]) -> dict[str, Any]:
    of_file = open_files.get(upload["path"] or "")
    return {**upload, "writers": of_file} if of_file else upload


def _few(paths: Iterable[str]) -> Iterator[str]:
    """Yield as many as fit into a request."""
    room = ROOM
    for path in paths:
        room -= len(json.dumps(path)) + len(", ")
        if room < 0:
            return
        yield path
