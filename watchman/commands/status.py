"""`watchman status`: healthy or not and why: sources, watches, brokers, queue sizes.

Ask the daemon whether it is healthy, and print why not first, after what is paused: that is no
problem, for somebody wanted it so. A warning tells of a source that should have spoken and did
not; it may be wrong, and does not count as a problem. --wait SECONDS gives a daemon that is just
starting so long to answer and to be healthy. Exit code 0 says healthy, 1 not, 3 that no daemon
answers.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from watchman.commands.shared import client, shell
from watchman.commands.shared.table import Columns, ago, clock, count, table, until
from watchman.errors import SocketUnavailable
from watchman.uploads.text import printable

#: Seconds between two questions of --wait.
POLL = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait for it to answer and to be healthy, for at most so long",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # nor nan
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def main(arguments: argparse.Namespace) -> int:
    found = _once_healthy(arguments.socket, time.monotonic() + arguments.wait)
    shell.show([found], _report(found), as_json=arguments.json)
    return shell.DONE if found["healthy"] else shell.REFUSED


def _once_healthy(socket: str, deadline: float) -> Mapping[str, Any]:
    """Ask until the daemon is healthy or it is the deadline; raises SocketUnavailable then."""
    while True:
        try:
            [found] = client.request(socket, "status")
        except SocketUnavailable:
            if time.monotonic() >= deadline:
                raise
        else:
            if found["healthy"] or time.monotonic() >= deadline:
                return found
        time.sleep(POLL)


#: What is shown of brokers and moves alike.
SINKS: Columns = {
    "SINCE": lambda sink: ago(sink.get("since")),
    "WAITING": "waiting",
    "ATTEMPTS": "attempts",
    "NEXT TRY": lambda sink: until(sink.get("next_try")),
}

BROKERS: Columns = {
    "BROKER": "name",
    "STATE": lambda broker: f"{broker['state']}{', paused' if broker.get('paused') else ''}",
    **SINKS,
    "ERROR": "error",
}

MOVES: Columns = {"MOVE": "name", "STATE": "state", **SINKS, "DESTINATION": "destination"}

WATCHES: Columns = {
    "WATCH": "name",
    "STATE": "state",
    "DIRECTORIES": "directories",
    "UNWATCHED": "unwatched",
    "UNMATCHED": "unmatched",
    "EXCLUDED": "excluded",
    "SCANNED": lambda watch: "now" if watch.get("scanning") else _before(watch.get("last_scan")),
    "PATH": "path",
}

SOURCES: Columns = {
    "SOURCE": "name",
    "HEARD": "heard",
    "LAST": lambda source: _before(source.get("last")),
    "SAID": lambda source: ", ".join(f"{n} {kind}" for kind, n in source.get("said", {}).items()),
}


def _report(found: Mapping[str, Any]) -> Iterator[str]:
    for pause in found.get("paused", ()):
        waiting = f"; {count(pause['waiting'], 'upload')} held back" if pause["waiting"] else ""
        yield f"PAUSED {pause['name']} since {ago(pause['since'])}{waiting}"
    yield "healthy" if found["healthy"] else "NOT HEALTHY"
    for problem in found.get("problems", ()):
        yield f"  - {printable(problem)}"
    for warning in found.get("warnings", ()):
        yield f"  warning: {printable(warning)}"
    yield (
        f"watchman {found['version']}, pid {found['pid']}, runs since {clock(found['since'])}"
        f" ({ago(found['since'])}) with {printable(found['config'])}"
    )
    yield ""
    yield ", ".join(f"{number} {state}" for state, number in found["uploads"].items())
    if found.get("oldest_waiting") is not None:
        yield f"oldest waiting since {ago(found['oldest_waiting'])}"
    yield ""
    yield from _table(BROKERS, found["brokers"])
    for name, broker in found["brokers"].items():
        for held in broker.get("held_up", ()):
            yield (
                f"  {name}: {count(held['uploads'], 'upload')} held up by"
                f" {printable(held['what'])}, tried {count(held['attempts'], 'time')},"
                f" next in {until(held['next_try'])}: {printable(held['reason'])}"
            )
    yield ""
    if found.get("moves"):
        yield from _table(MOVES, found["moves"])
        yield ""
    yield from _table(WATCHES, found["watches"])
    for name, watch in found["watches"].items():
        if watch.get("error"):
            yield f"  {name}: {printable(watch['error'])}"
        told, unconfirmed = watch.get("told", {}), watch.get("unconfirmed", 0)
        if any(told.values()) or unconfirmed:
            words = ", ".join(f"{number} by {source}" for source, number in told.items())
            yield f"  {name}: ProFTPD told of {words}; {count(unconfirmed, 'upload')} unconfirmed"
    yield ""
    yield from _table(SOURCES, found["sources"])
    for path, log in found.get("transfer_logs", {}).items():
        refused = f", {count(log['refused'], 'refused line')}" if log["refused"] else ""
        if log.get("ambiguous"):
            refused += f" ({log['ambiguous']} with an ambiguous user name)"
        problem = f"; {printable(log['error'])}" if log["error"] else ""
        yield (
            f"  {printable(path)}: {count(log['records'], 'line')}{refused},"
            f" last {_before(log['last'])}{problem}"
        )


def _table(columns: Columns, named: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return table(columns, ({"name": name, **one} for name, one in named.items()))


def _before(epoch: float | None) -> str:
    return "never" if epoch is None else f"{ago(epoch)} ago"
