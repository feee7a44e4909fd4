"""`watchman check`: the INI file and everything it names."""

import argparse
import os
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

from watchman.commands import places, proftpd, shell
from watchman.commands.filesystems import user_name
from watchman.commands.findings import Finding, Level, error, ok, warn
from watchman.commands.routes import Routes
from watchman.commands.table import count
from watchman.errors import WatchmanError
from watchman.rules import fill
from watchman.settings import BrokerSettings, Settings, TaskSettings
from watchman.wire import printable

HELP = "the INI file and everything it names"
DESCRIPTION = """\
Check the INI file and everything it names: directories, rights, limits, and where each task
goes. Run it as the user who runs the daemon. Touches and sends nothing; --brokers also connects
to each broker, --proftpd FILE reads ProFTPD's configuration. Exit code 1 says that there is an
ERROR; a WARN alone is 0.
"""

#: Seconds to wait for a broker, all hosts of its url together.
BROKER_TIMEOUT = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per finding")
    parser.add_argument("--brokers", action="store_true", help="connect to each broker")
    parser.add_argument("--proftpd", metavar="FILE", help="check ProFTPD's configuration as well")


def main(settings: Settings, arguments: argparse.Namespace) -> int:
    levels: Counter[Level] = Counter()
    for finding in _check(settings, connect=arguments.brokers, proftpd_file=arguments.proftpd):
        levels[finding.level] += 1
        if arguments.json:
            shell.print_json(finding.encode())
        else:
            text = printable(finding.text)
            print(f"{finding.level:<5}  {finding.subject:<14}  {text}", flush=True)
    if not arguments.json:
        errors = count(levels[Level.ERROR], "error")
        print(f"{errors}, {count(levels[Level.WARN], 'warning')}")
    return shell.REFUSED if levels[Level.ERROR] else shell.DONE


def _check(settings: Settings, *, connect: bool, proftpd_file: str | None) -> Iterator[Finding]:
    yield ok("config", f"{settings.file}, checked as {user_name(os.geteuid())}")
    yield from places.check(settings)
    routes = Routes(settings.brokers)
    used = {task.broker for task in settings.tasks}
    for broker in settings.brokers.values():
        yield from _broker(broker, routes, connect=connect)
        if broker.name not in used:
            yield warn(f"broker:{broker.name}", "no task uses it")
    earlier: list[TaskSettings] = []
    for task in settings.tasks:
        yield from _task(task, routes, earlier)
        earlier.append(task)
    if proftpd_file is not None:
        yield from proftpd.check(settings, os.path.abspath(proftpd_file))


def _broker(broker: BrokerSettings, routes: Routes, *, connect: bool) -> Iterator[Finding]:
    subject = f"broker:{broker.name}"
    try:
        app = routes.app(broker.name)
    except WatchmanError as problem:
        yield error(subject, str(problem))
        return
    if broker.url.startswith("filesystem://"):
        folder = broker.url.removeprefix("filesystem://")
        yield from places.writable_directory(subject, folder, "0700")
        return
    connection = app.connection_for_write()
    if not connect:
        yield ok(subject, f"{connection.as_uri()} (not tried; --brokers connects)")
    elif complaint := _fails_to_connect(connection):
        yield error(subject, f"{connection.as_uri()}: {complaint}")
    else:
        yield ok(subject, f"{connection.as_uri()} answers")


def _fails_to_connect(connection: Any) -> str:
    """Why a broker cannot be used, or nothing. In a thread, for kombu has waits without an end."""
    outcome: queue.SimpleQueue[str] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            connection.connect()
            # Only with a channel does kombu speak to Redis at all.
            connection.default_channel.close()
            connection.release()
        # Whatever the transport's library raises, it means that the broker cannot be used.
        except Exception as problem:
            outcome.put(str(problem) or type(problem).__name__)
        else:
            outcome.put("")

    threading.Thread(target=attempt, daemon=True).start()
    try:
        return outcome.get(timeout=BROKER_TIMEOUT)
    except queue.Empty:
        return f"no answer within {BROKER_TIMEOUT:.0f} seconds"


def _task(task: TaskSettings, routes: Routes, earlier: list[TaskSettings]) -> Iterator[Finding]:
    subject = f"task:{task.name}"
    example = fill(
        task,
        path="/example",
        original="/example",
        watch="example",
        user="",
        client="",
        protocol="",
        size=0,
    )
    try:
        route = routes.of(example)
    except WatchmanError as problem:
        yield error(subject, str(problem))
    else:
        yield ok(subject, f"{task.task} goes to broker {task.broker}, {route}")
    for pattern in task.patterns:
        for other in earlier:
            if {pattern, "*"} & set(other.patterns):
                text = f"never has {pattern}: [task:{other.name}], which comes first, takes it"
                yield warn(subject, text)
                break
