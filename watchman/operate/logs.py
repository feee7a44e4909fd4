"""Where the log goes, and its form. Whoever logs never waits for who reads it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import threading
import time

from watchman.config.files import made_with
from watchman.config.settings import Settings
from watchman.uploads.text import printable

#: Lines that wait to be written, at the most, some 500 bytes each; further ones are lost.
WAITING = 10_000

#: Lines written at once.
AT_ONCE = 1_000

#: Seconds for which lines are gathered that follow others within that time.
GATHER = 0.01

#: Seconds that an end waits until all is written that waits.
LAST_WORDS = 1.0

#: Bytes that a pipe takes without making us wait if poll(2) says that it is writable, see pipe(7).
PIPE_BUF = select.PIPE_BUF

#: Seconds between two looks at whether a reader is there again, or a disk has room.
AGAIN = 0.2

#: Seconds between two words on stderr about a log file that cannot be written.
COMPLAINTS = 60.0

STDERR = 2


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

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
    """One line, whatever strangers have put into names and reasons; a traceback follows it."""

    #: The second (epoch) of the last line, and how it is written: most lines are of the same.
    _second, _written = -1, ""

    def formatTime(self, record: logging.LogRecord, _: str | None = None) -> str:  # noqa: N802
        if int(record.created) != self._second:
            self._second = int(record.created)
            self._written = time.strftime(self.default_time_format, time.localtime(self._second))
        return f"{self._written},{int(record.msecs):03}"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = printable(record.message)
        return super().formatMessage(record)


class Stderr:
    """Standard error: a pipe of supervisor or systemd, or a terminal. One thread writes to it."""

    def __init__(self, ending: threading.Event) -> None:
        self._ending = ending
        self._poll = select.poll()
        self._poll.register(STDERR, select.POLLOUT)

    def write(self, text: bytes) -> int:
        """Write some of it, and return how many bytes; raises OSError if it is lost."""
        # write(2) to a full pipe would wait for its reader, and nothing could end that.
        while not self._poll.poll(1000 * AGAIN):
            if self._ending.is_set():
                raise BlockingIOError
        return os.write(STDERR, text[:PIPE_BUF])


class LogFile:
    """A file that logrotate may rename: what its path names then is opened anew. As Stderr."""

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
        # O_NONBLOCK for a FIFO without a reader, which would make us wait for one.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        fd = made_with(0o640)(self._path, flags)
        self.close()
        self._fd, status = fd, os.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)


class Writer(logging.Handler):
    """Takes lines from all threads, and has one write them; what nobody takes is lost and counted.

    A line is formatted by that thread, so a record must not change after it was logged.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises OSError if there can be no such log file."""
        super().__init__()
        self._ending = threading.Event()
        self._name = settings.log_file
        self._target = LogFile(self._name) if self._name else Stderr(self._ending)
        text = TextFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
        self._records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        #: Lines lost since the last one was written.
        self._lost = 0
        #: Guards it. Unlike the handler's lock it is held by no thread that writes.
        self._counting = threading.Lock()
        #: When a log file that is not written may be said of again (monotonic).
        self._next_complaint = 0.0
        #: When lines were written last (monotonic).
        self._last_write = 0.0
        #: Whether what was written last ends within a line.
        self._torn = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            # Now, for a traceback would keep all that it refers to.
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        if self._records.qsize() < WAITING:
            self._records.put(record)
        else:
            self._count(1)

    def close(self) -> None:
        """Write what waits if that goes quickly, and let go of the rest."""
        if not self._ending.is_set():
            self._records.put(None)
            self._thread.join(LAST_WORDS)
            self._ending.set()
            self._thread.join(2 * AGAIN)
        super().close()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            records = [self._records.get()]
            if time.monotonic() < self._last_write + GATHER:
                self._ending.wait(GATHER)
            self._last_write = time.monotonic()
            while len(records) < AT_ONCE and not self._records.empty():
                records.append(self._records.get())
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
        """Write records; return how many lines of them are lost."""
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
            # This thread must outlive a mistake of whoever logs.
            return f"{record.levelname} {record.name}: {record.msg!r} cannot be formatted: {e}\n"

    def _count(self, lines: int) -> None:
        with self._counting:
            self._lost += lines

    def _complain(self, error: OSError) -> None:
        """Say on stderr that a log file is not written, if there is anybody who reads that."""
        now = time.monotonic()
        if self._name and now >= self._next_complaint:
            self._next_complaint = now + COMPLAINTS
            text = f"watchman: log {self._name} cannot be written: {error.strerror};"
            text += " lines are lost until it can\n"
            with contextlib.suppress(OSError):
                if select.select([], [STDERR], [], 0)[1]:
                    os.write(STDERR, text.encode(errors="backslashreplace"))


def log_to(settings: Settings) -> None:
    """Have everything logged as the INI file says; OSError leaves it as it was."""
    writer = Writer(settings)
    # Nobody asks from where in the code, or in which thread: see "Optimization" in Python's Logging
    # HOWTO.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # The one before writes what it was given before this one begins.
    logging.basicConfig(handlers=[writer], level=logging.WARNING, force=True)
    logging.getLogger("watchman").setLevel(settings.log_level)
