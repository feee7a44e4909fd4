"""The daemon: makes all parts, starts and stops them in order, and handles signals."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from watchman import __version__
from watchman.config.files import limit_umask
from watchman.config.settings import Settings
from watchman.dispatch.dispatcher import Dispatcher
from watchman.errors import ConfigError, InotifyUnavailable, WatchmanError
from watchman.operate.control import LOOK, Control
from watchman.operate.logs import log_to
from watchman.operate.metrics.exporter import Exporter
from watchman.operate.parts import Parts
from watchman.operate.queue_view import DOWN
from watchman.operate.reload import reload
from watchman.operate.resubmissions import Resubmissions
from watchman.operate.systemd import Systemd
from watchman.operate.watchdog import GRACE, Watchdog
from watchman.sinks.moving.mover import Mover
from watchman.sinks.pauses import Pauses
from watchman.sinks.pipeline import Pipeline
from watchman.sinks.publishing.publisher import Publisher
from watchman.sinks.sinks import Movers, Publishers, Sinks, moves_of
from watchman.sources.finders import Finders
from watchman.sources.socket.listener import Listener
from watchman.store.journal import Journal
from watchman.store.ledger_migration import migrate
from watchman.store.spool import lock, open_ledger

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether the work in hand is done.
DRAIN_POLL = 0.05

#: Seconds for which a stop waits for a source, because that may hang on a filesystem.
HUNG = 5.0

#: Seconds between two full runs of the garbage collector. Nothing else can run meanwhile: one takes
#: some 300 ms with 100,000 uploads in memory. By itself Python would begin one whenever the number
#: of objects has grown by a quarter.
COLLECT = 600.0

#: Thresholds of the module gc. Young objects are searched after YOUNG new ones; an upload makes
#: some fifty. NEVER is the highest threshold, a C int.
YOUNG, NEVER = 10_000, 2**31 - 1

#: Seconds after which a thread that waits for a reload looks whether the daemon is stopping.
RELOAD_POLL = 0.5


class Daemon:
    """Everything that runs for one INI file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signals, self._wakeup = socket.socketpair()
        self._stopping = False
        self._watchdog = Watchdog(lambda: self._settings.drain)
        self._systemd = Systemd()
        #: The requests to reload: from the socket, or from a signal, which waits for no result.
        self._wishes: queue.SimpleQueue[Future[list[str]]] = queue.SimpleQueue()

    def run(self) -> None:
        """Start all parts, reload at each SIGHUP, and stop at SIGTERM or SIGINT; then return.

        Only the main thread can handle signals, so call it there. Raises SpoolLocked,
        SocketUnavailable, InotifyUnavailable, JournalTooNew, ConfigError for what Celery cannot
        use, or OSError if the spool cannot be made or the journal cannot be read.
        """
        settings = self._settings
        limit_umask()
        log_to(settings)
        self._watchdog.start()
        self._systemd.starting()
        self._catch_signals()
        collect_young()
        with contextlib.ExitStack() as inside:
            parts = _make_parts(settings, inside)
            pipeline = parts.dispatcher.pipeline
            resubmissions = Resubmissions(journal=parts.journal, dispatcher=parts.dispatcher)
            control = Control(parts, reload=self._ask_for_reload)
            parts.exporter = Exporter(
                settings.metrics,
                spool=settings.spool,
                steps=pipeline.steps,
                status=control.status,
            )
            listener = Listener(
                settings.socket,
                submit=resubmissions.submit,
                query=control.query,
                admins=settings.admins,
            )
            # What is started last is stopped first: sources, then sinks, then what they share.
            _start(inside, parts.exporter, patience=HUNG)
            for part in (parts.dispatcher, parts.publishers, parts.movers):
                _start(inside, part)
            # Tell all sinks to stop before waiting for any, so that the others end while one hangs.
            inside.callback(parts.publishers.stop)
            inside.callback(pipeline.close)
            with contextlib.ExitStack() as sources:
                for source in (resubmissions, listener, parts.finders):
                    _start(sources, source, patience=HUNG)
                for warning in settings.warnings():
                    logger.warning("%s.", warning)
                parts.exporter.begin()
                logger.info("Started watchman %s with %r.", __version__, settings.file)
                running = (parts.dispatcher, parts.publishers, parts.movers, parts.finders)
                dead = partial(_dead, (*running, listener, resubmissions))
                self._systemd.ready(dead, control.status)
                self._attend(parts, listener, control)
                logger.info("Stopping.")
                self._systemd.stopping(self._settings.drain + GRACE)
            self._drain(parts)
        logger.info("Stopped. %d uploads wait in the journal.", pipeline.waiting())

    def _attend(self, parts: Parts, listener: Listener, control: Control) -> None:
        """Until a stop begins, reload when asked, look at health, and collect garbage."""
        collect, look = time.monotonic() + COLLECT, time.monotonic()
        while not self._stopping:
            self._wait(max(0.0, min(collect, look) - time.monotonic()))
            if time.monotonic() >= collect:
                gc.collect()
                collect = time.monotonic() + COLLECT
            if time.monotonic() >= look:
                control.look()
                look = time.monotonic() + LOOK
            self._reload(parts, listener)

    def _catch_signals(self) -> None:
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        # The handler may interrupt a `get` in this thread. SimpleQueue allows that, see its `put`
        # in Python's documentation.
        signal.signal(signal.SIGHUP, lambda *_: self._wishes.put(Future()))
        # The kernel sends SIGIO to the holder of a lease when the file is opened, see fcntl(2).
        # Its default action is to end the process.
        signal.signal(signal.SIGIO, signal.SIG_IGN)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True
        self._watchdog.arm()

    def _wait(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for a signal or a request to reload."""
        readable, _, _ = select.select([self._signals], [], [], timeout)
        if readable:
            self._signals.recv(4096)

    def _ask_for_reload(self) -> list[str]:
        """Have the main thread reload; return what changed. Called by other threads.

        Raises WatchmanError if the reload is refused, or if the daemon is stopping.
        """
        wish: Future[list[str]] = Future()
        self._wishes.put(wish)
        with contextlib.suppress(BlockingIOError):  # it is full, so it wakes the thread anyway
            self._wakeup.send(b"\0")
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                return wish.result(RELOAD_POLL)
        raise WatchmanError("watchman is stopping")

    def _reload(self, parts: Parts, listener: Listener) -> None:
        """Reload if that was requested, and give the result to those who wait for it."""
        wishes = []
        while not self._wishes.empty():
            wishes.append(self._wishes.get())
        if not wishes:
            return
        self._systemd.reloading()
        try:
            changed = reload(parts, listener)
        except InotifyUnavailable:
            raise  # nothing is watched any more: end, so that we are started again
        except (WatchmanError, OSError) as e:
            for problem in e.problems if isinstance(e, ConfigError) else [str(e)]:
                logger.error("Reload refused, everything stays as it was: %s.", problem)
            for wish in wishes:
                wish.set_exception(e if isinstance(e, WatchmanError) else WatchmanError(str(e)))
        else:
            self._settings = parts.settings
            for wish in wishes:
                wish.set_result(changed)
        self._systemd.reloaded()

    def _drain(self, parts: Parts) -> None:
        """Wait until the sinks that work have nothing in hand, at most `drain` seconds.

        A second signal ends the wait.
        """
        self._stopping = False
        deadline = time.monotonic() + self._settings.drain
        backlogs = parts.dispatcher.pipeline.backlogs
        while time.monotonic() < deadline and not self._stopping:
            if not any(
                backlogs[f"{kind}:{name}"].in_hand()
                for kind, sinks in parts.sinks().items()
                for name, sink in sinks.items()
                if sink["state"] not in DOWN
            ):
                return
            self._wait(DRAIN_POLL)


def collect_young() -> None:
    """Have Python's garbage collector search only young objects by itself.

    Nearly all garbage is young, see the generations in the documentation of the module gc. Objects
    that exist when this is called, such as modules, are not searched any more.
    """
    gc.freeze()
    _, middle, _ = gc.get_threshold()
    gc.set_threshold(YOUNG, middle, NEVER)


def _make_parts(settings: Settings, inside: contextlib.ExitStack) -> Parts:
    """Make all parts, but start none; `inside` closes what has to be closed in the end."""
    inside.callback(os.close, lock(settings.spool))
    pauses = Pauses(os.path.join(settings.spool, "paused.json"))
    ledgers = {name: open_ledger(settings, watch) for name, watch in settings.watches.items()}
    migrate(settings, ledgers)
    journal = Journal(
        os.path.join(settings.spool, "journal"), os.path.join(settings.spool, "history")
    )
    inside.callback(journal.close)
    dispatcher = Dispatcher(
        settings,
        journal=journal,
        ledgers=ledgers,
        rescan=lambda watch, subpath: finders.request(watch, subpath),
        request_later=lambda watch, owner: finders.request_later(watch, owner),
        read_log=lambda: finders.read_log(),
    )
    inside.callback(dispatcher.close)
    dispatcher.pipeline.backlogs.pause(pauses.since())
    publishers, movers = _make_sinks(settings, dispatcher.pipeline)
    finders = Finders(
        submit_events=dispatcher.submit_events,
        submit_find=dispatcher.submit_find,
        takes_finds=dispatcher.takes_finds,
        submit_lines=dispatcher.submit_lines,
        marked=dispatcher.marked,
        caught_up=dispatcher.caught_up,
        mounts_changed=dispatcher.forget_filesystems,
    )
    finders.look(settings, excluded=dispatcher.rules.excluded, ledgers=ledgers)
    return Parts(settings, ledgers, journal, pauses, dispatcher, publishers, movers, finders)


def _make_sinks(settings: Settings, pipeline: Pipeline) -> tuple[Publishers, Movers]:
    publishers = Sinks(
        settings.brokers,
        lambda broker: Publisher(
            broker, take=partial(pipeline.take, broker.name), report=pipeline.report
        ),
        wake=pipeline.backlogs.wake,
    )
    movers = Sinks(
        moves_of(settings),
        lambda section: Mover(
            *section,
            take=partial(pipeline.take_at, f"move:{section[0].name}"),
            take_aside=partial(pipeline.take_at, f"move:{section[0].name}", aside=True),
            look=pipeline.file_tracker.look,
            write=pipeline.write,
            report=pipeline.report_move,
        ),
        wake=pipeline.backlogs.wake,
    )
    return publishers, movers


class Part(Protocol):
    """What a source, a sink and the dispatcher have in common."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def join(self) -> None: ...
    def is_alive(self) -> bool: ...


def _start(
    stack: contextlib.ExitStack, part: Part, patience: float = threading.TIMEOUT_MAX
) -> None:
    """Start a part; the stack stops it, and waits for its end for at most `patience` seconds."""
    part.start()
    stack.callback(_join, part, patience)
    stack.callback(part.stop)


def _dead(parts: Iterable[Part]) -> list[str]:
    """Return the names of the parts of which a thread has ended."""
    return [_name(part) for part in parts if not part.is_alive()]


def _name(part: Part) -> str:
    return type(part).__name__.lower()


def _join(part: Part, patience: float) -> None:
    """Wait for the end of a part for at most `patience` seconds, then go on without it."""
    # In a thread, because a part's `join` knows no such limit.
    thread = threading.Thread(target=part.join, name="join", daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        logger.error(
            "The %s has not ended after %.0f seconds, as on a filesystem that hangs. Going on with"
            " the stop without it.",
            _name(part),
            patience,
        )
