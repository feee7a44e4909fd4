"""`watchman tail`: uploads as they pass, live.

Print a line for each step of each upload, as it happens, until Ctrl-C:
accepted, moved, sent, done (moved, and no task matches), deferred, failed,
retried, told (by on_failed), dropped, superseded (written again), renamed,
gone. Only steps from now on are printed. If you read more slowly than steps
come, a line says how many you have missed. The daemon does not wait for you.
If you give several options, a step must match all of them.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from watchman.commands.shared import client, shell
from watchman.uploads.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per step")
    parser.add_argument(
        "--path", metavar="PATTERN", help="files whose path matches, as uploaded or as it is now"
    )
    parser.add_argument("--watch", metavar="NAME", help="files below this watch")
    parser.add_argument("--task", metavar="NAME", help="files of this [task:NAME] section")
    parser.add_argument("--user", metavar="NAME", help="files that this FTP user has uploaded")


def main(arguments: argparse.Namespace) -> int:
    named = {"pattern": arguments.path, "watch": arguments.watch}
    named |= {"task": arguments.task, "user": arguments.user}
    # An empty value may come from an unset variable of a shell script. It must not mean "all".
    if "" in named.values():
        raise shell.Misused("a pattern or a name is empty")
    fields = {name: value for name, value in named.items() if value is not None}
    for step in client.follow(arguments.socket, "tail", fields):
        if arguments.json:
            shell.print_json(step)
        elif step["event"] == "following":
            _greet()
        else:
            print(_line(step))
        # The reader of a pipe wants each line as it comes.
        sys.stdout.flush()
    return shell.DONE


def _greet() -> None:
    if sys.stderr.isatty():
        print("Following. Ctrl-C ends it.", file=sys.stderr)


def _line(step: Mapping[str, Any]) -> str:
    moment = time.strftime("%H:%M:%S", time.localtime(step["at"]))
    if step["event"] == "missed":
        return f"{moment}  missed      {step['steps']} steps: they came faster than they were read"
    event = "sent" if step["event"] == "done" and step["broker"] else step["event"]
    reason = f": {step['reason']}" if step["reason"] else ""
    return f"{moment}  {event:<10}  {step['id']}  {printable(step['path'] + reason)}"
