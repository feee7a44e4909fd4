"""Selects the uploads for `retry`, `drop` and `queue`, and prints what was done to them."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Protocol

from watchman.commands.shared import client, shell
from watchman.uploads.text import printable

#: Ids in one request. With so many it stays within its 64 KiB.
IDS = 1_700

#: Seconds to wait for the next line. The daemon may have to search a million uploads for it.
TIMEOUT = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per upload")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    add_filters(parser)


def add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help="an upload's id, or a beginning that no other id has"
    )
    which = parser.add_argument_group(
        "instead of ids",
        "All that you give must be true. --failed and --deferred together mean either.",
    )
    which.add_argument("--failed", action="store_true", help="failed uploads")
    which.add_argument("--deferred", action="store_true", help="deferred uploads")
    which.add_argument("--broker", metavar="NAME", help="uploads for this broker")
    which.add_argument(
        "--path",
        metavar="PATTERN",
        help="uploads whose path matches, as uploaded or as it is now; patterns as in [task:...]",
    )


class Progress(Protocol):
    """Shows how many uploads were answered, at each call. Closed before these are printed."""

    def __call__(self, done: int) -> None: ...

    def close(self) -> None: ...


def carry_out(event: str, done: str, arguments: argparse.Namespace, progress: Progress) -> int:
    """Have the daemon do `event`, and print each upload after `done`. Return the exit code."""
    acted = refused = 0
    if arguments.dry_run:
        done = f"would be {done}"
    for fields in _requests(arguments):
        asked = {"what": event, **fields} if arguments.dry_run else fields
        name = "rehearse" if arguments.dry_run else event
        for row in client.request(arguments.socket, name, asked, TIMEOUT, heard=progress):
            progress.close()
            if row["refused"]:
                refused += 1
                shell.complain(f"watchman {event}", f"{row['id']}: {row['refused']}")
            else:
                acted += 1
            if arguments.json:
                shell.print_json(row)
            elif not row["refused"]:
                print(done, row["id"], printable(row["path"]))
    progress.close()
    if not acted and not refused and not arguments.json:
        print(f"nothing to {event}")
    return shell.REFUSED if refused else shell.DONE


def total(arguments: argparse.Namespace) -> int | None:
    """Return how many uploads the answer will have; None if that is not known beforehand."""
    if arguments.ids:
        return len(arguments.ids)
    if arguments.broker or arguments.path:
        return None
    [status] = client.request(arguments.socket, "status")
    states = [state for state in ("failed", "deferred") if getattr(arguments, state)]
    counts: dict[str, int] = status["uploads"]
    return sum(counts[state] for state in states or ("failed", "deferred"))


def filters_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Return a request's fields for the filters given. Raises Misused for an empty one."""
    # An empty value may come from an unset variable of a shell script. It must not mean "all".
    if not all(one.strip() for one in arguments.ids) or "" in (arguments.broker, arguments.path):
        raise shell.Misused("an id, a broker's name or a pattern is empty")
    filters = {name: "yes" for name in ("failed", "deferred") if getattr(arguments, name)}
    filters |= {"broker": arguments.broker} if arguments.broker else {}
    filters |= {"pattern": arguments.path} if arguments.path else {}
    return filters


def _requests(arguments: argparse.Namespace) -> Iterator[dict[str, str]]:
    filters = filters_of(arguments)
    if getattr(arguments, "all", False):
        filters["all"] = "yes"
    if bool(filters) == bool(arguments.ids):
        options = "--all, " if hasattr(arguments, "all") else ""
        raise shell.Misused(f"give either ids or {options}--failed, --deferred, --broker, --path")
    if filters:
        yield filters
    yield from requests_of(arguments.ids)


def requests_of(ids: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the fields of each request, as many as the ids need."""
    for start in range(0, len(ids), IDS):
        yield {"ids": " ".join(ids[start : start + IDS])}
