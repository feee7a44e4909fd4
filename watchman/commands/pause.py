"""`watchman pause`: make uploads of a watch or task, or for a broker, wait.

Make uploads wait until `watchman resume`: those of a watch, those of a task
section, those for a broker, or without NAME all of them. Nothing is lost:
uploads are accepted as ever. What is being sent at this moment is finished. A
restart does not end a pause. `status` shows pauses first, and stays healthy.
This command prints everything that is paused then.
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
    """Pause or resume, and print what is paused then."""
    if arguments.name == "":
        raise shell.Misused(f"the NAME to {event} is empty; leave it out to {event} everything")
    fields = {"name": arguments.name} if arguments.name else {}
    pauses = list(client.request(arguments.socket, event, fields))
    told = [f"paused {pause['name']}" for pause in pauses] or ["nothing is paused"]
    shell.show(pauses, told, as_json=arguments.json)
    return shell.DONE
