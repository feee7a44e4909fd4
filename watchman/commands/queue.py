"""`watchman queue`: uploads that are not done, and why."""

import argparse
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from watchman.commands import shell
from watchman.commands.table import ago, table, until
from watchman.settings import Settings
from watchman.wire import printable

HELP = "uploads noticed, waiting, deferred (when tried again), failed (why)"
DESCRIPTION = """\
List the uploads that are not done: failed ones first, for they need you, then deferred ones,
which are tried again, then what waits for its broker, then what is not known to be whole yet.
"""

#: Most important first.
STATES = ("failed", "deferred", "waiting", "noticed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per upload")


def main(settings: Settings, arguments: argparse.Namespace) -> int:
    uploads = sorted(shell.ask(settings, "queue"), key=_importance)
    if arguments.json:
        for upload in uploads:
            shell.print_json(upload)
    else:
        print("\n".join(_report(uploads, time.time())))
    return shell.DONE


def _importance(upload: Mapping[str, Any]) -> tuple[int, float]:
    state = upload["state"]
    return STATES.index(state) if state in STATES else len(STATES), upload.get("since") or 0.0


def _report(uploads: Sequence[Mapping[str, Any]], now: float) -> Iterator[str]:
    if not uploads:
        yield "nothing waits, nothing has failed"
        return
    header, *lines = table(
        ("STATE", "AGE", "ATTEMPTS", "NEXT TRY", "TASK", "BROKER", "ID", "PATH"),
        (
            (
                upload["state"],
                ago(upload.get("since"), now),
                upload.get("attempts"),
                until(upload.get("next_try"), now),
                upload.get("task"),
                upload.get("broker"),
                upload.get("id"),
                upload["path"],
            )
            for upload in uploads
        ),
    )
    yield header
    for upload, line in zip(uploads, lines, strict=True):
        yield line
        if upload.get("reason"):
            yield f"    {printable(upload['reason'])}"
    counts = Counter(upload["state"] for upload in uploads)
    yield ", ".join(f"{number} {state}" for state, number in counts.items())
