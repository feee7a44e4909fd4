"""`watchman status`: is it healthy, and if not, why."""

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from watchman.commands.shared import shell
from watchman.commands.shared.table import ago, clock, count, table, until
from watchman.config.settings import Settings
from watchman.uploads.text import printable

HELP = "healthy or not and why: sources, watches, brokers, queue sizes"
DESCRIPTION = """\
Ask the daemon whether it is healthy, and print why not first, after what is paused: that is no
problem, for somebody wanted it so. A warning tells of a source that should have spoken and did
not; it may be wrong, and does not count as a problem. Exit code 0 says healthy, 1 not, 3 that no
daemon answers.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(settings: Settings, arguments: argparse.Namespace) -> int:
    [found] = shell.ask(settings, "status")
    if arguments.json:
        shell.print_json(found)
    else:
        print("\n".join(_report(found, time.time())))
    return shell.DONE if found["healthy"] else shell.REFUSED


def _report(found: Mapping[str, Any], now: float) -> Iterator[str]:
    for pause in found.get("paused", ()):
        waiting = f"; {count(pause['waiting'], 'upload')} held back" if pause["waiting"] else ""
        yield f"PAUSED {pause['name']} since {ago(pause['since'], now)}{waiting}"
    yield "healthy" if found["healthy"] else "NOT HEALTHY"
    for problem in found.get("problems", ()):
        yield f"  - {printable(problem)}"
    for warning in found.get("warnings", ()):
        yield f"  warning: {printable(warning)}"
    yield (
        f"watchman {found['version']}, pid {found['pid']}, runs since {clock(found['since'])}"
        f" ({ago(found['since'], now)}) with {printable(found['config'])}"
    )
    yield ""
    uploads = found["uploads"]
    yield ", ".join(f"{number} {state}" for state, number in uploads.items())
    if found.get("oldest_waiting") is not None:
        yield f"oldest waiting since {ago(found['oldest_waiting'], now)}"
    yield ""
    yield from table(
        ("BROKER", "STATE", "SINCE", "WAITING", "ATTEMPTS", "NEXT TRY", "ERROR"),
        (
            (
                name,
                f"{broker['state']}, paused" if broker.get("paused") else broker["state"],
                ago(broker.get("since"), now),
                broker.get("waiting"),
                broker.get("attempts"),
                until(broker.get("next_try"), now),
                broker.get("error"),
            )
            for name, broker in found["brokers"].items()
        ),
    )
    for name, broker in found["brokers"].items():
        for held in broker.get("held_up", ()):
            yield (
                f"  {name}: {count(held['uploads'], 'upload')} held up by"
                f" {printable(held['what'])}, tried {count(held['attempts'], 'time')},"
                f" next in {until(held['next_try'], now)}: {printable(held['reason'])}"
            )
    yield ""
    if found.get("moves"):
        yield from table(
            ("MOVE", "STATE", "SINCE", "WAITING", "ATTEMPTS", "NEXT TRY", "DESTINATION"),
            (
                (
                    name,
                    move["state"],
                    ago(move.get("since"), now),
                    move.get("waiting"),
                    move.get("attempts"),
                    until(move.get("next_try"), now),
                    move.get("destination"),
                )
                for name, move in found["moves"].items()
            ),
        )
        yield ""
    yield from table(
        ("WATCH", "STATE", "DIRECTORIES", "UNWATCHED", "UNMATCHED", "EXCLUDED", "SCANNED", "PATH"),
        (
            (
                name,
                watch["state"],
                watch.get("directories"),
                watch.get("unwatched"),
                watch.get("unmatched"),
                watch.get("excluded"),
                "now" if watch.get("scanning") else _before(watch.get("last_scan"), now),
                watch["path"],
            )
            for name, watch in found["watches"].items()
        ),
    )
    for name, watch in found["watches"].items():
        if watch.get("error"):
            yield f"  {name}: {printable(watch['error'])}"
        told, unconfirmed = watch.get("told", {}), watch.get("unconfirmed", 0)
        if any(told.values()) or unconfirmed:
            words = ", ".join(f"{number} by {source}" for source, number in told.items())
            yield f"  {name}: ProFTPD told of {words}; {count(unconfirmed, 'upload')} unconfirmed"
    yield ""
    yield from table(
        ("SOURCE", "HEARD", "LAST", "SAID"),
        (
            (name, source.get("heard"), _before(source.get("last"), now), _said(source))
            for name, source in found["sources"].items()
        ),
    )
    yield from _logs(found, now)


def _logs(found: Mapping[str, Any], now: float) -> Iterator[str]:
    for path, log in found.get("transfer_logs", {}).items():
        refused = f", {count(log['refused'], 'refused line')}" if log["refused"] else ""
        if log.get("ambiguous"):
            refused += f" ({log['ambiguous']} with an ambiguous user name)"
        problem = f"; {printable(log['error'])}" if log["error"] else ""
        yield (
            f"  {printable(path)}: {count(log['records'], 'line')}{refused},"
            f" last {_before(log['last'], now)}{problem}"
        )


def _said(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in source.get("said", {}).items())


def _before(epoch: float | None, now: float) -> str:
    return "never" if epoch is None else f"{ago(epoch, now)} ago"
