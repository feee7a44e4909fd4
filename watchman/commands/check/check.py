"""`watchman check`: the INI file and everything it names.

Check the INI file and all that it names: directories, rights, limits, tasks.
It says where each task goes. It changes no file and sends no task.

Root checks with the rights of the daemon's user, who owns the spool. If the
daemon runs, these include its capabilities. --as USER names another user.

--brokers also asks each broker whether it would take each task. A queue or
exchange that RabbitMQ lacks is made, as the first task would make it, and
removed at once. --proftpd FILE also reads ProFTPD's configuration.

Exit code 1 says that there is an ERROR. If there are only WARNs, it is 0.
"""

import argparse
import importlib
import os
from collections import Counter, deque
from collections.abc import Iterator

from watchman.commands.check import brokers, places, proftpd, trees
from watchman.commands.check.findings import Finding, Level, error, ok, warn
from watchman.commands.check.user import become, user_of
from watchman.commands.screens import check, screen
from watchman.commands.shared import shell
from watchman.commands.shared.phrases import count
from watchman.config import inifile, locations
from watchman.config.settings import Settings
from watchman.uploads.rights import complaint, me


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per finding")
    parser.add_argument("--brokers", action="store_true", help="ask each broker about its tasks")
    parser.add_argument("--proftpd", metavar="FILE", help="check ProFTPD's configuration as well")
    parser.add_argument(
        "--as",
        dest="user",
        metavar="USER",
        help="check with the rights of USER, not of the owner of the spool; for root",
    )


def main(arguments: argparse.Namespace) -> int:
    settings = inifile.load(locations.find(arguments.config))
    levels: Counter[Level] = Counter()
    for finding in _check(settings, arguments):
        levels[finding.level] += 1
        if arguments.json:
            shell.print_json(finding._asdict())
        else:
            screen.show(check.draw(*finding))
    if not arguments.json:
        errors = count(levels[Level.ERROR], "error")
        print(f"{errors}, {count(levels[Level.WARN], 'warning')}")
    return shell.REFUSED if levels[Level.ERROR] else shell.DONE


def _check(settings: Settings, arguments: argparse.Namespace) -> Iterator[Finding]:
    # Read as root: the daemon's user need not be able to read ProFTPD's configuration.
    file = arguments.proftpd
    of_proftpd = proftpd.check(settings, os.path.abspath(file)) if file is not None else ()
    user = user_of(settings, arguments.user)
    if user is not None:
        _load(settings)
        become(user)
    how = f", {user.how}" if user else ""
    if os.geteuid() == 0 and not os.path.exists(settings.spool):
        how = "; is that the daemon's user? If not: --as USER"
    yield ok("config", f"{settings.file}, checked as {me()}{how}")
    if text := complaint(settings.file, os.R_OK):
        yield error("config", text)
    yield from (warn("config", warning) for warning in settings.warnings())
    yield from places.check(settings)
    yield from trees.check(settings)
    yield from brokers.check(settings, connect=arguments.brokers)
    yield from of_proftpd


def _load(settings: Settings) -> None:
    """Import now what Python would import later: root may keep it where the user may not read."""
    for name in ("encodings.idna", "secrets"):  # imported when a connection is made
        importlib.import_module(name)
    deque(brokers.check(settings, connect=False), maxlen=0)
