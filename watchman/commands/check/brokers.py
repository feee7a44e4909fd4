"""What `watchman check` says of brokers, and of each task on its way to one."""

import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any, TypeVar

from watchman.commands.check import places
from watchman.commands.check.findings import Finding, Level, error, ok, warn
from watchman.commands.check.rights import WRITE
from watchman.commands.shared.routes import Routes
from watchman.config.rules import fill
from watchman.config.settings import BrokerSettings, Settings, TaskSettings
from watchman.errors import BrokerUnavailable, WatchmanError
from watchman.sinks.publishing import rehearsal, tls
from watchman.sinks.publishing.celeryapp import compose, embedded_folders
from watchman.sinks.publishing.sender import Sent, explain
from watchman.uploads.upload import FileState, Source, State, Task, Upload

#: Seconds to wait for a broker, all hosts of its url together.
TIMEOUT = 15.0

T = TypeVar("T")


def check(settings: Settings, *, connect: bool) -> Iterator[Finding]:
    """Look at brokers and tasks; `connect` asks the brokers about their tasks, and sends none."""
    routes = Routes(settings.brokers)
    asked: dict[str, BrokerSettings] = {}
    for broker in settings.brokers.values():
        yield from _broker(broker, routes, asked if connect else None)
        if broker.name not in {task.broker for task in settings.tasks}:
            yield warn(f"broker:{broker.name}", "no task uses it")
    for number, task in enumerate(settings.tasks):
        yield _task(task, routes, asked)
        yield from _hidden(task, settings.tasks[:number])


def _broker(
    broker: BrokerSettings, routes: Routes, asked: dict[str, BrokerSettings] | None
) -> Iterator[Finding]:
    """Look at a broker, connect if there is an `asked`, and put it there if it can be asked."""
    subject = f"broker:{broker.name}"
    try:
        app = routes.app(broker.name)
    except WatchmanError as problem:
        yield error(subject, str(problem))
        return
    if broker.url.startswith("filesystem://"):
        yield from _folders(subject, broker.url)
        return
    where = app.connection_for_write().as_uri()
    if problems := tls.unreadable(app.conf.broker_use_ssl):
        yield error(subject, "; ".join(problems))
    elif asked is None:
        yield ok(subject, f"{where} (not tried; --brokers connects)")
    else:
        yield _connected(broker, app, where, asked)


def _connected(
    broker: BrokerSettings, app: Any, where: str, asked: dict[str, BrokerSettings]
) -> Finding:
    subject = f"broker:{broker.name}"
    try:
        sender = _in_time(lambda: rehearsal.connect(app, declare=broker.declare))
    # Whatever the transport's library raises, it means that the broker cannot be used.
    except Exception as problem:
        return error(subject, f"{where}: {explain(problem)}")
    if sender is None:
        return ok(subject, f"{where} answers; whether it takes a task is not tried")
    sender.close()
    asked[broker.name] = broker
    return ok(subject, f"{where} answers")


def _folders(subject: str, url: str) -> Iterator[Finding]:
    folder, control = embedded_folders(url)
    # The sender sweeps what others have left, and syncs the directory: it must be able to read it.
    yield places.writable(subject, folder, "0700", WRITE | os.R_OK)
    if os.path.lexists(control):
        finding = places.writable(subject, control, "0700", WRITE | os.R_OK)
        if finding.level is Level.ERROR:
            yield finding


def _task(task: TaskSettings, routes: Routes, asked: dict[str, BrokerSettings]) -> Finding:
    subject = f"task:{task.name}"
    example = _example(task)
    try:
        route = routes.of(example)
    except WatchmanError as problem:
        return error(subject, str(problem))
    text = f"{task.task} goes to broker {task.broker}, {route}"
    if task.broker not in asked:
        return ok(subject, text)
    app = routes.app(task.broker)
    try:
        sent = _in_time(lambda: _rehearse(app, asked[task.broker], example))
        refused, reason = sent.state is not State.DONE, sent.reason
    except Exception as problem:
        refused, reason = True, explain(problem)
    if not refused:
        return ok(subject, f"{text}, which takes it{reason and '; '}{reason}")
    if "PRECONDITION_FAILED" in reason:
        reason += "; have task_queues say what it is like there, or declare = no"
    return error(subject, f"{text}, which would not take it: {reason}")


def _rehearse(app: Any, broker: BrokerSettings, task: Task) -> Sent:
    upload = Upload(
        id=str(uuid.uuid4()),
        watch="example",
        path="/example",
        original="/example",
        state=FileState(0, 0, 0, 0, 0),
        source=Source.SCAN,
        accepted=0.0,
        task=task,
    )
    sender = rehearsal.connect(app, declare=broker.declare)
    assert sender is not None
    with closing(sender):
        [sent] = sender.send([compose(app, upload)])
    return sent


def _example(task: TaskSettings) -> Task:
    return fill(
        task,
        path="/example",
        original="/example",
        watch="example",
        user="",
        client="",
        protocol="",
        size=0,
    )


def _in_time(work: Callable[[], T]) -> T:
    """Return what `work` does, or BrokerUnavailable: kombu has waits without an end."""
    outcome: Future[T] = Future()

    def attempt() -> None:
        try:
            outcome.set_result(work())
        except Exception as e:
            outcome.set_exception(e)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if not outcome.done():
        raise BrokerUnavailable(f"no answer within {TIMEOUT:.0f} seconds")
    return outcome.result()


def _hidden(task: TaskSettings, earlier: Sequence[TaskSettings]) -> Iterator[Finding]:
    """Say which patterns of a task never match, for another one comes first."""
    for pattern in task.patterns:
        for other in earlier:
            if {pattern, "*"} & set(other.patterns):
                text = f"never has {pattern}: [task:{other.name}], which comes first, takes it"
                yield warn(f"task:{task.name}", text)
                break
