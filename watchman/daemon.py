"""The daemon: who knows whom, in what order they start and stop, signals and logging."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import logging.handlers
import os
import select
import signal
import socket
import sys
import time
from functools import partial
from typing import Protocol

from watchman import __version__
from watchman.control import Control
from watchman.dispatcher import Dispatcher
from watchman.errors import SpoolLocked
from watchman.journal import Journal
from watchman.ledger import Ledger
from watchman.pipeline import Pipeline
from watchman.settings import Settings, WatchSettings
from watchman.sinks.publisher import Publisher
from watchman.sources.listener import Listener
from watchman.sources.scanner import Scanner
from watchman.sources.transferlog import TransferLog
from watchman.sources.watcher import Watcher

logger = logging.getLogger(__name__)

#: clock_gettime(2)'s CLOCK_REALTIME_COARSE, which time.clock_gettime takes but does not name. The
#: kernel stamps files with it.
CLOCK_REALTIME_COARSE = 5

#: Seconds between two looks at whether the work in hand is done.
DRAIN_POLL = 0.05


class Daemon:
    """Everything that runs, for one INI file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signals, self._wakeup = socket.socketpair()
        self._stopping = False

    def run(self) -> None:
        """Start all, wait for SIGTERM or SIGINT, stop all.

        Raises SpoolLocked, SocketUnavailable, ConfigError for what Celery cannot use, or OSError
        where the spool cannot be made or the journal not be read.
        """
        settings = self._settings
        _log_to(settings)
        self._catch_signals()
        with contextlib.ExitStack() as inside:
            inside.callback(os.close, _lock(settings.spool))
            ledgers = {}
            for name, watch in settings.watches.items():
                ledgers[name] = _open_ledger(settings, watch)
                inside.callback(ledgers[name].close)
            journal = Journal(
                os.path.join(settings.spool, "journal"), os.path.join(settings.spool, "history")
            )
            inside.callback(journal.close)
            dispatcher = Dispatcher(
                settings,
                journal=journal,
                ledgers=ledgers,
                rescan=lambda watch, subpath: scanner.request(watch, subpath),
            )
            pipeline, excluded = dispatcher.pipeline, dispatcher.rules.excluded
            publishers = {
                name: Publisher(broker, take=partial(pipeline.take, name), report=pipeline.report)
                for name, broker in settings.brokers.items()
            }
            watches = settings.watches.values()
            scanner = Scanner(watches, submit=dispatcher.submit, excluded=excluded, ledgers=ledgers)
            watcher = Watcher(
                watches, submit=dispatcher.submit, rescan=scanner.request, excluded=excluded
            )
            transferlog = TransferLog(
                settings.proftpd.transfer_log,
                settings.proftpd.token,
                submit=dispatcher.submit_lines,
                marked=dispatcher.marked,
            )
            control = Control(
                settings,
                dispatcher=dispatcher,
                journal=journal,
                watcher=watcher,
                scanner=scanner,
                transferlog=transferlog,
                publishers=publishers,
            )
            listener = Listener(
                settings.socket,
                submit=dispatcher.submit,
                query=control.query,
                admins=settings.admins,
            )
            # What is started last is stopped first: sources, then sinks, then what they share.
            _start(inside, dispatcher)
            for publisher in publishers.values():
                _start(inside, publisher)
            inside.callback(pipeline.close)
            with contextlib.ExitStack() as sources:
                # At start the log is read to its end before a scan decides about what it tells of.
                if settings.proftpd.transfer_log:
                    _start(sources, transferlog)
                for source in (listener, scanner, watcher):
                    _start(sources, source)
                logger.info("Started watchman %s with %r.", __version__, settings.file)
                self._wait(None)
                logger.info("Stopping.")
            self._drain(pipeline, publishers)
        logger.info("Stopped. %d uploads wait in the journal.", pipeline.waiting())

    def _catch_signals(self) -> None:
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        # Sent to a holder of a lease when another opens the file; its default action is to end us.
        signal.signal(signal.SIGIO, signal.SIG_IGN)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True

    def _wait(self, timeout: float | None) -> None:
        """Wait for a signal."""
        while not self._stopping:
            readable, _, _ = select.select([self._signals], [], [], timeout)
            if readable:
                self._signals.recv(4096)
            if timeout is not None:
                return

    def _drain(self, pipeline: Pipeline, publishers: dict[str, Publisher]) -> None:
        """Let publishers that get through finish what waits, for as long as the INI file says.

        A second signal ends it.
        """
        self._stopping = False
        deadline = time.monotonic() + self._settings.drain
        while time.monotonic() < deadline and not self._stopping:
            if not any(
                pipeline.backlogs[name].in_hand()
                for name, publisher in publishers.items()
                if publisher.status()["state"] not in ("down", "blocked")
            ):
                return
            self._wait(DRAIN_POLL)


class Part(Protocol):
    """What a source, a sink and the dispatcher have in common."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def join(self) -> None: ...


def _start(stack: contextlib.ExitStack, part: Part) -> None:
    """Start a part; the stack stops it."""
    part.start()
    stack.callback(part.join)
    stack.callback(part.stop)


def _lock(spool: str) -> int:
    """Make the spool, owner-only, and hold it until the descriptor is closed."""
    os.makedirs(spool, mode=0o700, exist_ok=True)
    os.chmod(spool, 0o700)
    for directory in ("ledger", "journal", "history"):
        os.makedirs(os.path.join(spool, directory), mode=0o700, exist_ok=True)
    fd = os.open(os.path.join(spool, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise SpoolLocked(f"the daemon with pid {holder or '?'} holds the spool {spool}") from e
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _open_ledger(settings: Settings, watch: WatchSettings) -> Ledger:
    """Open a watch's ledger, and at first sight settle what is to become of what is there."""
    name = hashlib.blake2b(os.fsencode(watch.path), digest_size=8).hexdigest()
    ledger = Ledger(os.path.join(settings.spool, "ledger", name), watch.path)
    now = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    if not ledger.open():
        ledger.begin(0 if watch.existing else now)
    elif not watch.catch_up:
        ledger.begin(now)
    return ledger


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to(settings: Settings) -> None:
    handler: logging.Handler
    if settings.log_file:
        # It looks whether logrotate has renamed the file, and opens a new one.
        handler = logging.handlers.WatchedFileHandler(settings.log_file, errors="backslashreplace")
    else:
        handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("watchman").setLevel(settings.log_level)
