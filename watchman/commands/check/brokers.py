"""Checks the brokers, and where each task goes."""

import os
import threading
import uuid
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any

from watchman.commands.check import places
from watchman.commands.check.findings import Finding, Level, error, ok, warn
from watchman.commands.shared.routes import Routes
from watchman.config.rules import fill
from watchman.config.settings import BrokerSettings, Settings, TaskSettings
from watchman.errors import BrokerUnavailable, WatchmanError
from watchman.sinks.publishing import rehearsal, tls
from watchman.sinks.publishing.celeryapp import embedded_folders
from watchman.sinks.publishing.messages import Message, compose
from watchman.sinks.publishing.sender import Sent, explain
from watchman.uploads.rights import WRITE
from watchman.uploads.upload import FileState, Source, State, Upload

#: Seconds to wait for a broker, all hosts of its url together.
TIMEOUT = 15.0


def check(settings: Settings, *, connect: bool) -> Iterator[Finding]:
    """Yield the findings about brokers and tasks.

    If `connect`, each broker is asked whether it would take its tasks. No task is sent.
    """
    routes = Routes(settings.brokers)
    asked, tasks = set(), [*settings.tasks, *_on_failed(settings)]
    used = {task.broker for task in tasks}
    for broker in settings.brokers.values():
        if (yield from _broker(broker, routes, connect=connect)):
            asked.add(broker.name)
        if broker.name not in used:
            yield warn(f"broker:{broker.name}", "no task uses it")
    for number, task in enumerate(tasks):
        broker = settings.brokers[task.broker]
        yield _task(task, broker, routes, ask=broker.name in asked)
        yield from _hidden(task, tasks[:number])


def _on_failed(settings: Settings) -> Iterator[TaskSettings]:
    """Yield the task of the option `on_failed`, if that is set, as settings of a section."""
    if found := settings.on_failed:
        told = dict.fromkeys(("id", "path", "user", "client", "reason"), "example")
        yield TaskSettings("on_failed", (), found.broker, found.task, args=[], kwargs=told)


def _broker(
    broker: BrokerSettings, routes: Routes, *, connect: bool
) -> Generator[Finding, None, bool]:
    """Yield the finding about a broker, and return whether it can be asked about tasks."""
    subject = f"broker:{broker.name}"
    try:
        app = routes.app(broker.name)
    except WatchmanError as problem:
        yield error(subject, str(problem))
        return False
    where = app.connection_for_write().as_uri()
    if broker.url.startswith("filesystem://"):
        yield from _folders(subject, broker.url)
    elif problems := tls.unreadable(app.conf.broker_use_ssl):
        yield error(subject, "; ".join(problems))
    elif not connect:
        yield ok(subject, f"{where} (not tried; --brokers connects)")
    else:
        try:
            can_be_asked, _ = _ask(app, broker)
        # Whatever the transport's library raises, it means that the broker cannot be used.
        except Exception as problem:
            yield error(subject, f"{where}: {explain(problem)}")
        else:
            more = "" if can_be_asked else "; whether it takes a task is not tried"
            yield ok(subject, f"{where} answers{more}")
            return can_be_asked
    return False


def _folders(subject: str, url: str) -> Iterator[Finding]:
    folder, control = embedded_folders(url)
    # The sender must be able to read the directory: it removes the unfinished files of killed
    # senders, and syncs the directory.
    yield places.writable(subject, folder, "0700", WRITE | os.R_OK)
    if os.path.lexists(control):
        finding = places.writable(subject, control, "0700", WRITE | os.R_OK)
        if finding.level is Level.ERROR:
            yield finding


def _task(task: TaskSettings, broker: BrokerSettings, routes: Routes, *, ask: bool) -> Finding:
    subject = f"task:{task.name}" if task.patterns else task.name
    try:
        app = routes.app(broker.name)
        message = compose(app, _example(task))
    except WatchmanError as problem:
        return error(subject, str(problem))
    text = f"{task.task} goes to broker {broker.name}, {message.route}"
    if not ask:
        return ok(subject, text)
    try:
        _, [sent] = _ask(app, broker, message)
        refused, reason = sent.state is not State.DONE, sent.reason
    except Exception as problem:
        refused, reason = True, explain(problem)
    if not refused:
        return ok(subject, f"{text}, which takes it{reason and '; '}{reason}")
    if "PRECONDITION_FAILED" in reason:
        reason += "; describe the queue in task_queues as the broker has it, or set declare = no"
    return error(subject, f"{text}, which would not take it: {reason}")


def _example(section: TaskSettings) -> Upload:
    path, watch = "/example", "example"
    task = fill(
        section, path=path, original=path, watch=watch, user="", client="", protocol="", size=0
    )
    state = FileState(0, 0, 0, 0, 0)
    return Upload(str(uuid.uuid4()), watch, path, path, state, Source.SCAN, accepted=0.0, task=task)


def _ask(app: Any, broker: BrokerSettings, *messages: Message) -> tuple[bool, list[Sent]]:
    """Connect. Return whether the broker can be asked, and what would become of each message.

    Raises BrokerUnavailable after TIMEOUT, because kombu may wait without an end.
    """
    outcome: Future[tuple[bool, list[Sent]]] = Future()

    def attempt() -> None:
        try:
            sent = []
            sender = rehearsal.connect(app, declare=broker.declare)
            if sender is not None:
                with closing(sender):
                    sent = [one for some in sender.send(messages) for one in some]
            outcome.set_result((sender is not None, sent))
        except Exception as e:
            outcome.set_exception(e)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not outcome.done():
        raise BrokerUnavailable(f"no answer within {TIMEOUT:.0f} seconds")
    return outcome.result()


def _hidden(task: TaskSettings, earlier: Sequence[TaskSettings]) -> Iterator[Finding]:
    """Warn of each pattern that gets no file, because an earlier task takes all its files."""
    for pattern in task.patterns:
        for other in earlier:
            if {pattern, "*"} & set(other.patterns):
                text = f"never gets {pattern}: [task:{other.name}] comes first and takes it"
                yield warn(f"task:{task.name}", text)
                break
