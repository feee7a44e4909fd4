"""Writes the log, to stderr or to a file, as text or as JSON.

A thread that logs never waits for the reader of the log. If stderr is a pipe that nobody reads,
write(2) blocks after 64 KiB, see pipe(7), and would stop the daemon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from watchman.config.files import made_with
from watchman.config.settings import Settings
from watchman.uploads.text import printable

#: Most lines that wait to be written, of some 500 bytes each. Lines beyond these are lost.
WAITING = 10_000

#: Most lines that are written together.
AT_ONCE = 1_000

#: Seconds to wait for more lines, if the last ones were written less than that ago.
GATHER = 0.01

#: Seconds that `close` waits for the last lines to be written.
LAST_WORDS = 1.0

#: Bytes that we can write to a pipe without waiting, if poll(2) says that it is writable. See
#: pipe(7).
PIPE_BUF = select.PIPE_BUF

#: Seconds until we try again to write to a pipe that nobody reads, or to a disk that is full.
AGAIN = 0.2

#: Seconds between two messages on stderr about a log file that cannot be written.
COMPLAINTS = 60.0

#: The descriptor of standard error, see stderr(3).
STDERR = 2


class Record(logging.LogRecord):
    """A record without source file and line: to find these takes half of the time of a line."""

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
        **_: object,
    ) -> None:
        # As in LogRecord, a single mapping has the values for placeholders with names.
        is_named = bool(args) and len(args) == 1 and isinstance(args[0], Mapping) and args[0]
        self.name, self.msg, self.args = name, msg, args[0] if is_named else args
        self.levelno, self.levelname = level, logging.getLevelName(level)
        self.exc_info, self.exc_text, self.stack_info = exc_info, None, sinfo
        self.created = time.time()
        self.msecs = 1000 * (self.created % 1)
        # Our formats do not use these, but others may.
        self.pathname, self.lineno, self.funcName = pathname, lineno, func or ""
        self.filename = self.module = pathname


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_text:
            line["traceback"] = record.exc_text
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Formats a record as one line, even if a file name has newlines; a traceback may follow."""

    #: The second (epoch) of the last line and its text. The next line is often of the same second.
    _second, _written = -1, ""

    def format(self, record: logging.LogRecord) -> str:
        if int(record.created) != self._second:
            self._second = int(record.created)
            self._written = time.strftime(self.default_time_format, time.localtime(self._second))
        message = printable(record.getMessage())
        line = f"{self._written},{int(record.msecs):03} {record.levelname} {record.name}: {message}"
        return f"{line}\n{record.exc_text}" if record.exc_text else line


class Stderr:
    """Standard error: a pipe to supervisor or systemd, or a terminal. One thread writes to it."""

    def __init__(self, ending: threading.Event) -> None:
        self._ending = ending
        self._poll = select.poll()
        self._poll.register(STDERR, select.POLLOUT)

    def write(self, text: bytes) -> int:
        """Write some of `text` and return how many bytes; raises OSError if none can be."""
        # write(2) to a full pipe would block until somebody reads, and we could not stop then.
        while not self._poll.poll(1000 * AGAIN):
            if self._ending.is_set():
                raise BlockingIOError
        return os.write(STDERR, text[:PIPE_BUF])


class LogFile:
    """A log file. If logrotate renames it, a new one is opened at its path. Used as Stderr is."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._path = path
        self._fd = -1
        self._identity = (0, 0)
        self._open()

    def write(self, text: bytes) -> int:
        try:
            status = os.stat(self._path)
            is_same = (status.st_dev, status.st_ino) == self._identity
        except FileNotFoundError:
            is_same = False
        if not is_same:
            self._open()
        return os.write(self._fd, text)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        # Without O_NONBLOCK, to open a FIFO waits until somebody reads it, see fifo(7).
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        fd = made_with(0o640)(self._path, flags)
        self.close()
        self._fd, status = fd, os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)


class Writer(logging.Handler):
    """Takes records from all threads. A thread of its own formats and writes them.

    A record must not change after it was logged, because it is formatted later. Lines that cannot
    be written in time are lost, and counted.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises OSError if the log file cannot be opened."""
        super().__init__()
        self._ending = threading.Event()
        self._name = settings.log_file
        self._target = LogFile(self._name) if self._name else Stderr(self._ending)
        self.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
        #: Records that wait to be written, and None after the last one. Set `_roused` after each.
        self._records: deque[logging.LogRecord | None] = deque()
        self._roused = threading.Event()
        #: Lines lost since the last one that was written.
        self._lost = 0
        #: Guards `_lost`. The handler's own lock would not do: no thread may wait for a write.
        self._counting = threading.Lock()
        #: When we may say again on stderr that the log file cannot be written (monotonic).
        self._next_complaint = 0.0
        #: When lines were last written (monotonic).
        self._last_write = 0.0
        #: Whether the last write ended in the middle of a line.
        self._torn = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Hand a record on without the handler's lock, which `emit` does not need."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record to the thread that writes; never blocks."""
        if record.exc_info:
            # Formatted now: a traceback keeps all objects of its frames in memory.
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        if len(self._records) < WAITING:
            self._records.append(record)
            if not self._roused.is_set():
                self._roused.set()
        else:
            self._count(1)

    def close(self) -> None:
        """Write the lines that wait, or as many of them as can be written within LAST_WORDS."""
        if not self._ending.is_set():
            self._records.append(None)
            self._roused.set()
            self._thread.join(LAST_WORDS)
            self._ending.set()
            self._thread.join(2 * AGAIN)
        super().close()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._roused.wait()
            if time.monotonic() < self._last_write + GATHER:
                self._ending.wait(GATHER)
            self._last_write = time.monotonic()
            # Cleared before it is looked what waits: nothing that comes later is slept over.
            self._roused.clear()
            count = min(len(self._records), AT_ONCE)
            records = [self._records.popleft() for _ in range(count)]
            if self._records:
                self._roused.set()
            is_last = None in records or self._ending.is_set()
            self._write([record for record in records if record is not None])
        if isinstance(self._target, LogFile):
            self._target.close()

    def _write(self, records: list[logging.LogRecord]) -> None:
        if lost := self._lost:
            text = "Log is written again; %d lines were lost."
            word = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (lost,), None)
            if self._lose([word]):
                self._count(len(records))
                return
            self._count(-lost)
        self._count(self._lose(records))

    def _lose(self, records: list[logging.LogRecord]) -> int:
        """Write records; return how many lines could not be written."""
        text = "".join(map(self._line, records)).encode(errors="backslashreplace")
        rest = b"\n" + text if self._torn and text else text
        try:
            while rest:
                written = self._target.write(rest)
                self._torn = rest[written - 1 : written] != b"\n"
                rest = rest[written:]
        except OSError as e:
            if not self._lost:
                self._complain(e)
            self._ending.wait(AGAIN)
        return rest.count(b"\n")

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return f"{self.format(record)}\n"
        except Exception as e:
            # A wrong logging call must not end this thread.
            return f"{record.levelname} {record.name}: {record.msg!r} cannot be formatted: {e}\n"

    def _count(self, lines: int) -> None:
        with self._counting:
            self._lost += lines

    def _complain(self, error: OSError) -> None:
        """Write to stderr that the log file cannot be written, unless that would block."""
        now = time.monotonic()
        if self._name and now >= self._next_complaint:
            self._next_complaint = now + COMPLAINTS
            text = f"watchman: log {self._name} cannot be written: {error.strerror};"
            text += " lines are lost until it can\n"
            with contextlib.suppress(OSError):
                if select.select([], [STDERR], [], 0)[1]:
                    os.write(STDERR, text.encode(errors="backslashreplace"))


def log_to(settings: Settings) -> None:
    """Log as the INI file says from now on. Raises OSError, and then nothing changes."""
    writer = Writer(settings)
    # Our formats do not show source lines, threads or processes, so logging need not find them out:
    # see "Optimization" in Python's Logging HOWTO.
    logging._srcfile = None
    logging.setLogRecordFactory(Record)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # `force` closes the old writer first, which writes the lines that it has.
    logging.basicConfig(handlers=[writer], level=logging.WARNING, force=True)
    logging.getLogger("watchman").setLevel(settings.log_level)
