"""`watchman reload`: have the daemon read the INI file again.

Have the daemon read the INI file again, as SIGHUP does, and print what changed.
Nothing in hand is lost: accepted uploads go on as they were accepted, new and
changed watches are scanned, and brokers that did not change go on sending. A
wrong file is refused, and everything stays as it was. `spool` and `socket`
cannot change without a restart. A file that no task matched before stays
unmatched: send it with watchman-send. If the daemon lacks the rights for a
move, a warning names the command that grants them. `watchman check` checks
more.
"""

import argparse

from watchman.commands.shared import client, shell
from watchman.errors import ConfigError
from watchman.uploads.text import printable

#: Seconds to wait for a publisher to finish what it has in hand.
TIMEOUT = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(arguments: argparse.Namespace) -> int:
    [found] = client.request(arguments.socket, "reload", timeout=TIMEOUT)
    if "problems" in found:
        raise ConfigError(found["problems"])
    told = [printable(change) for change in found["changed"]] or ["nothing changed"]
    told += [f"warning: {printable(text)}" for text in found.get("forbidden", ())]
    shell.show([found], told, as_json=arguments.json)
    return shell.DONE
