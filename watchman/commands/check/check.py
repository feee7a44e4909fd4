"""`watchman check`: the INI file and everything it names.

Check the INI file and everything it names: directories, rights, limits, and where each task
goes. Run it as the user who runs the daemon. Touches and sends nothing. --brokers also asks each
broker whether it would take each task: none is sent, and what RabbitMQ lacks is made for a moment,
as the first task would make it. --proftpd FILE reads ProFTPD's configuration. Exit code 1 says
that there is an ERROR; a WARN alone is 0.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator

from watchman.commands.check import brokers, places, proftpd, trees
from watchman.commands.check.findings import Finding, Level, ok, warn
from watchman.commands.shared import shell
from watchman.commands.shared.filesystems import user_name
from watchman.commands.shared.table import count
from watchman.config import inifile, locations
from watchman.config.settings import Settings
from watchman.uploads.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per finding")
    parser.add_argument("--brokers", action="store_true", help="ask each broker about its tasks")
    parser.add_argument("--proftpd", metavar="FILE", help="check ProFTPD's configuration as well")


def main(arguments: argparse.Namespace) -> int:
    settings = inifile.load(locations.find(arguments.config))
    levels: Counter[Level] = Counter()
    for finding in _check(settings, connect=arguments.brokers, proftpd_file=arguments.proftpd):
        levels[finding.level] += 1
        if arguments.json:
            shell.print_json(finding._asdict())
        else:
            text = printable(finding.text)
            print(f"{finding.level:<5}  {finding.subject:<14}  {text}", flush=True)
    if not arguments.json:
        errors = count(levels[Level.ERROR], "error")
        print(f"{errors}, {count(levels[Level.WARN], 'warning')}")
    return shell.REFUSED if levels[Level.ERROR] else shell.DONE


def _check(settings: Settings, *, connect: bool, proftpd_file: str | None) -> Iterator[Finding]:
    yield ok("config", f"{settings.file}, checked as {user_name(os.geteuid())}")
    yield from (warn("config", warning) for warning in settings.warnings())
    yield from places.check(settings)
    yield from trees.check(settings)
    yield from brokers.check(settings, connect=connect)
    if proftpd_file is not None:
        yield from proftpd.check(settings, os.path.abspath(proftpd_file))
