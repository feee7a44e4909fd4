"""The source that reads ProFTPD's transfer log: the only one that knows of chrooted sessions."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from watchman.errors import ForeignRecord
from watchman.sources.inotify import events
from watchman.sources.inotify.events import Inotify
from watchman.sources.transferlog.files import LogFiles
from watchman.sources.transferlog.lines import AMBIGUOUS, Interpreter, check, parse, whole
from watchman.uploads.upload import Notification

logger = logging.getLogger(__name__)

#: What wakes us, of the directory of a log: it was written to, made or renamed.
MASK = events.MODIFY | events.CREATE | events.MOVED_TO

#: Seconds between looks when nothing wakes us, and between tries to make durable what was read.
LOOK = 1.0

#: Bytes of a refused line that are shown.
SHOWN = 120

#: `submit(log, notifications, mark)`: see Dispatcher.submit_lines.
Submit = Callable[[str, Sequence[Notification], Any], bool]


class Log:
    """One configured log: its files, what its records say, and what was refused of it."""

    def __init__(
        self,
        path: str,
        token: str,
        others: Collection[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._token = os.fsencode(token) + b"|"
        self._interpreter = Interpreter()
        self.files = LogFiles(path, self._token, others, clock=clock)
        #: Of records, of refused lines, and of these by why.
        self._counts: Counter[str] = Counter()
        self._last: float | None = None

    def read(self) -> Iterator[list[Notification]]:
        """Yield what was written since, in parts; the files' mark tells how far that is."""
        self.files.follow()
        for tail in self.files.tails():
            while pieces := tail.read(self._token):
                found = [self._understand(piece, tail.since) for piece in pieces]
                yield [notification for notification in found if notification is not None]

    def status(self) -> dict[str, Any]:
        return {
            "records": self._counts["records"],
            "refused": self._counts["refused"],
            "ambiguous": self._counts[AMBIGUOUS],
            "last": self._last,
            "missing": isinstance(self.files.problem, FileNotFoundError),
            "lost_since": self.files.lost_since,
            "error": self._error(),
        }

    def _error(self) -> str | None:
        problem = self.files.problem
        if self._counts["refused"] and not self._counts["records"]:
            return "no line is as it should be: compare LogFormat and token with the INI file"
        if self.files.lost_since is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.files.lost_since))
            return (
                f"no file holds what it had after {since}, so uploads since then may have failed"
                " unseen: look for it where logrotate puts old files; reload says no more of it"
            )
        # ProFTPD makes the file when a session begins, but not its directory.
        not_yet = isinstance(problem, FileNotFoundError)
        if problem is None or (not_yet and os.path.isdir(os.path.dirname(self.path))):
            return None
        return problem.strerror or str(problem)

    def _understand(self, piece: bytes, since: int) -> Notification | None:
        try:
            record = parse(piece, self._token)
            path = whole(record.path)
            check(path)
        except ForeignRecord as e:
            self._refuse(str(e), piece, max(piece.count(b"\n"), 1))
            return None
        if foreign := record.path[len(path) + 1 :]:
            self._refuse("without our token", os.fsencode(foreign), foreign.count("\n") + 1)
        if record.at < since:
            return None
        self.files.last = max(self.files.last, record.at)
        self._counts["records"] += 1
        self._last = time.time()
        return self._interpreter.notification(record, path)

    def _refuse(self, why: str, piece: bytes, lines: int) -> None:
        is_first = not self._counts[why]
        self._counts["refused"] += lines
        self._counts[why] += lines
        if is_first:
            # What stands first may be the token that another file has.
            shown = piece.partition(b"|")[2] or piece
            logger.warning(
                "Log %r holds a line %s: %r. Further ones are only counted.",
                self.path,
                why,
                shown[:SHOWN],
            )


class TransferLog:
    """A thread that reads the logs as they grow, and submits what they say."""

    def __init__(
        self,
        paths: Iterable[str],
        token: str,
        *,
        submit: Submit,
        marked: Callable[[], Mapping[str, Any]],
        caught_up: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`marked` returns by log what was submitted last and became durable; `caught_up` is called
        when all is that the logs held at a time (monotonic).
        """
        paths = tuple(paths)
        self._logs = [Log(path, token, paths, clock=clock) for path in paths]
        self._submit = submit
        self._marked = marked
        self._caught_up = caught_up
        self._inotify = Inotify()
        self._stopping = threading.Event()
        #: Set when all was read once, or could not be.
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="transferlog", daemon=True)

    def start(self) -> None:
        """Return when each log was read to its present end. Raises InotifyUnavailable."""
        marked = self._marked()
        for log in self._logs:
            if log.path in marked:
                log.files.resume(marked[log.path])
        self._inotify.open()
        self._thread.start()
        self._begun.wait()

    def read(self) -> None:
        """Read soon, whether or not anything tells that there is more; from any thread."""
        self._inotify.wake()

    def stop(self) -> None:
        self._stopping.set()
        self._inotify.wake()

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()
        self._inotify.close()
        for log in self._logs:
            log.files.close()

    def status(self) -> dict[str, dict[str, Any]]:
        """Return by log: records and refused lines, when last read (epoch), and what is wrong."""
        return {log.path: log.status() for log in self._logs}

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                now = time.monotonic()
                self._watch()
                if all(self._read(log) for log in self._logs):
                    self._caught_up(now)
            except Exception:
                logger.exception("Reading the transfer log failed. Trying again.")
            self._begun.set()
            self._inotify.wait(LOOK)
            self._inotify.read()

    def _watch(self) -> None:
        """Have changes in the directories of the logs wake us; they may be others by now."""
        for directory in {os.path.dirname(log.path) for log in self._logs}:
            with contextlib.suppress(OSError):
                fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._inotify.watch(fd, MASK)
                finally:
                    os.close(fd)

    def _read(self, log: Log) -> bool:
        """Submit what a log holds; False if we stop before."""
        for notifications in log.read():
            if notifications and not self._bring(log, notifications):
                return False
        return log.files.is_marked() or self._bring(log, [])

    def _bring(self, log: Log, notifications: Sequence[Notification]) -> bool:
        """Submit until it is durable; False if we stop before."""
        mark = log.files.mark()
        while not self._stopping.is_set():
            if self._submit(log.path, notifications, mark):
                return True
            self._begun.set()
            self._stopping.wait(LOOK)
        return False
