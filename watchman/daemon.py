"""The daemon: who knows whom, in what order they start and stop, and signals."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from watchman import __version__
from watchman.config.files import limit_umask
from watchman.config.settings import Settings
from watchman.dispatch.dispatcher import Dispatcher
from watchman.errors import ConfigError, InotifyUnavailable, WatchmanError
from watchman.operate.control import Control
from watchman.operate.logs import log_to
from watchman.operate.queue_view import DOWN
from watchman.operate.reload import Reload
from watchman.operate.resubmissions import Resubmissions
from watchman.operate.watchdog import Watchdog
from watchman.sinks.moving.mover import Mover
from watchman.sinks.pauses import Pauses
from watchman.sinks.pipeline import Pipeline
from watchman.sinks.publishing.publisher import Publisher
from watchman.sinks.sinks import Movers, Publishers, Sinks, moves_of
from watchman.sources.finders import Finders
from watchman.sources.socket.listener import Listener
from watchman.store.journal import Journal
from watchman.store.ledger_migration import hand_over
from watchman.store.spool import lock, open_ledger

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether the work in hand is done.
DRAIN_POLL = 0.05

#: Seconds after a stop that a source is waited for: it may hang on a filesystem.
HUNG = 5.0

#: Seconds between two searches of all memory for what nobody refers to. Nothing else can run
#: meanwhile: some 300 ms with 100,000 uploads in memory, and Python would do it at every quarter
#: that it grows.
COLLECT = 600.0

#: Seconds between two looks of who waits for a reload at whether it will come at all.
RELOAD_POLL = 0.5


class Daemon:
    """Everything that runs, for one INI file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signals, self._wakeup = socket.socketpair()
        self._stopping = False
        self._watchdog = Watchdog(lambda: self._settings.drain)
        self._hung_up = False
        #: Of those who asked for a reload on the socket.
        self._wishes: queue.SimpleQueue[Future[list[str]]] = queue.SimpleQueue()

    def run(self) -> None:
        """Start all, reload at every SIGHUP, stop all at SIGTERM or SIGINT.

        Raises SpoolLocked, SocketUnavailable, ConfigError for what Celery cannot use, or OSError
        where the spool cannot be made or the journal not be read.
        """
        settings = self._settings
        limit_umask()
        log_to(settings)
        self._watchdog.start()
        self._catch_signals()
        collect_young()
        with contextlib.ExitStack() as inside:
            inside.callback(os.close, lock(settings.spool))
            pauses = Pauses(os.path.join(settings.spool, "paused.json"))
            ledgers = {
                name: open_ledger(settings, watch) for name, watch in settings.watches.items()
            }
            hand_over(settings, ledgers)
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
            pipeline = dispatcher.pipeline
            pipeline.backlogs.pause(pauses.since())
            publishers = Sinks(
                settings.brokers,
                lambda broker: Publisher(
                    broker, take=partial(pipeline.take, broker.name), report=pipeline.report
                ),
            )
            movers = Sinks(
                moves_of(settings),
                lambda section: Mover(
                    *section,
                    take=partial(pipeline.take_at, f"move:{section[0].name}"),
                    look=pipeline.file_tracker.look,
                    write=pipeline.write,
                    report=pipeline.report_move,
                ),
            )
            finders = Finders(
                submit_event=dispatcher.submit_event,
                submit_find=dispatcher.submit_find,
                takes_finds=dispatcher.takes_finds,
                submit_lines=dispatcher.submit_lines,
                marked=dispatcher.marked,
                caught_up=dispatcher.caught_up,
                mounts_changed=dispatcher.forget_filesystems,
            )
            finders.look(settings, excluded=dispatcher.rules.excluded, ledgers=ledgers)
            resubmissions = Resubmissions(
                journal=journal,
                submit=dispatcher.submit,
                was_moved=lambda path: dispatcher.rules.moved_by(path),
            )
            control = Control(
                settings,
                dispatcher=dispatcher,
                journal=journal,
                pauses=pauses,
                finders=finders,
                publishers=publishers,
                movers=movers,
                reload=self._ask_for_reload,
            )
            listener = Listener(
                settings.socket,
                submit=resubmissions.submit,
                query=control.query,
                admins=settings.admins,
            )
            reload = Reload(
                settings,
                ledgers=ledgers,
                dispatcher=dispatcher,
                publishers=publishers,
                movers=movers,
                finders=finders,
                listener=listener,
                control=control,
            )
            # What is started last is stopped first: sources, then sinks, then what they share.
            _start(inside, dispatcher)
            _start(inside, publishers)
            _start(inside, movers)
            # They are told together: who hangs does so while the others end.
            inside.callback(publishers.stop)
            inside.callback(pipeline.close)
            with contextlib.ExitStack() as sources:
                for source in (resubmissions, listener, finders):
                    _start(sources, source, patience=HUNG)
                if settings.exposed:
                    logger.warning("%s.", settings.warning())
                logger.info("Started watchman %s with %r.", __version__, settings.file)
                while not self._stopping:
                    if not self._wait(COLLECT):
                        gc.collect()
                    self._reload(reload)
                logger.info("Stopping.")
            self._drain(pipeline, movers, publishers)
        logger.info("Stopped. %d uploads wait in the journal.", pipeline.waiting())

    def _catch_signals(self) -> None:
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hang_up)
        # Sent to a holder of a lease when another opens the file; its default action is to end us.
        signal.signal(signal.SIGIO, signal.SIG_IGN)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True
        self._watchdog.arm()

    def _on_hang_up(self, *_: object) -> None:
        self._hung_up = True

    def _wait(self, timeout: float) -> bool:
        """Wait for a signal, or for someone who asks for a reload; return whether one came."""
        readable, _, _ = select.select([self._signals], [], [], timeout)
        if readable:
            self._signals.recv(4096)
        return bool(readable)

    def _ask_for_reload(self) -> list[str]:
        """Any other thread: have the INI file read again; return what changed, or raise."""
        wish: Future[list[str]] = Future()
        self._wishes.put(wish)
        with contextlib.suppress(BlockingIOError):  # so full that it wakes us anyhow
            self._wakeup.send(b"\0")
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                return wish.result(RELOAD_POLL)
        raise WatchmanError("watchman is stopping")

    def _reload(self, reload: Reload) -> None:
        """Reload if anyone wants it, and tell those who asked."""
        wishes = []
        while not self._wishes.empty():
            wishes.append(self._wishes.get())
        if not (wishes or self._hung_up):
            return
        self._hung_up = False
        try:
            changed = reload.run()
        except InotifyUnavailable:
            raise  # nothing is watched any more: better to end, and be started again
        except (WatchmanError, OSError) as e:
            for problem in e.problems if isinstance(e, ConfigError) else [str(e)]:
                logger.error("Reload refused, everything stays as it was: %s.", problem)
            for wish in wishes:
                wish.set_exception(e if isinstance(e, WatchmanError) else WatchmanError(str(e)))
        else:
            self._settings = reload.settings
            for wish in wishes:
                wish.set_result(changed)

    def _drain(self, pipeline: Pipeline, movers: Movers, publishers: Publishers) -> None:
        """Let publishers that get through finish what waits, for as long as the INI file says.

        A second signal ends it.
        """
        self._stopping = False
        deadline = time.monotonic() + self._settings.drain
        while time.monotonic() < deadline and not self._stopping:
            places = {f"move:{name}": status for name, status in movers.status().items()}
            places |= {f"broker:{name}": status for name, status in publishers.status().items()}
            up = [place for place, status in places.items() if status["state"] not in DOWN]
            if not any(pipeline.backlogs[place].in_hand() for place in up):
                return
            self._wait(DRAIN_POLL)


def collect_young() -> None:
    """Have Python look by itself at young objects only, where nearly all cycles end: see the
    generations of the module gc.
    """
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, sys.maxsize >> 32)


class Part(Protocol):
    """What a source, a sink and the dispatcher have in common."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def join(self) -> None: ...


def _start(
    stack: contextlib.ExitStack, part: Part, patience: float = threading.TIMEOUT_MAX
) -> None:
    """Start a part; the stack stops it, and waits for its end for at most `patience` seconds."""
    part.start()
    stack.callback(_join, part, patience)
    stack.callback(part.stop)


def _join(part: Part, patience: float) -> None:
    thread = threading.Thread(target=part.join, name="join", daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        logger.error(
            "The %s has not ended after %.0f seconds, as on a filesystem that hangs. Going on with"
            " the stop without it.",
            type(part).__name__.lower(),
            patience,
        )
