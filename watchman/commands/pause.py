"""`watchman pause`: let uploads of a watch or task, or for a broker, wait.

Let uploads of a watch or of a task section, all for a broker, or without NAME everything, wait
until `watchman resume`. Nothing is lost: uploads are accepted as ever. What is being sent at this
moment is finished. A pause is kept over restarts and shown first in `status`, which stays healthy.
Printed is all that is paused then.
"""

import argparse

from watchman.commands.shared import client, shell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per pause")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="watch:NAME, task:NAME or broker:NAME"
    )


def main(arguments: argparse.Namespace) -> int:
    return ask("pause", arguments)


def ask(event: str, arguments: argparse.Namespace) -> int:
    """Pause or resume, and tell what is paused now."""
    if arguments.name == "":
        raise shell.Misused(f"the name of what to {event} is empty; leave it out for all")
    fields = {"name": arguments.name} if arguments.name else {}
    pauses = list(client.request(arguments.socket, event, fields))
    told = [f"paused {pause['name']}" for pause in pauses] or ["nothing is paused"]
    shell.show(pauses, told, as_json=arguments.json)
    return shell.DONE
