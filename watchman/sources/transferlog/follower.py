"""The source that reads ProFTPD's transfer log.

Only this source learns of sessions in a chroot (`DefaultRoot`): mod_exec cannot run a hook there.
"""

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

#: Events of a log's directory that wake us: a file in it was written to, made or renamed.
MASK = events.MODIFY | events.CREATE | events.MOVED_TO

#: Seconds between two reads when nothing wakes us, and until a refused `submit` is tried again.
LOOK = 1.0

#: Bytes of a refused line that are logged.
SHOWN = 120

#: `submit(log, notifications, mark)`: see Dispatcher.submit_lines.
Submit = Callable[[str, Sequence[Notification], Any], bool]


class Log:
    """One configured log: its files, the notifications from its records, and its status."""

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
        #: How many "records" and "refused" lines there were, and refused ones by reason.
        self._counts: Counter[str] = Counter()
        self._last: float | None = None

    def read(self) -> Iterator[list[Notification]]:
        """Yield what the new lines say, in parts. `files.mark` tells how far each part goes."""
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
            "unread": self.files.unread(),
            "missing": isinstance(self.files.problem, FileNotFoundError),
            "lost_since": self.files.lost_since,
            "error": self._error(),
        }

    def _error(self) -> str | None:
        problem = self.files.problem
        if self._counts["refused"] and not self._counts["records"]:
            return "no line has the right form: compare LogFormat and token with the INI file"
        if self.files.lost_since is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.files.lost_since))
            return (
                f"no file holds the lines that came after {since}, so watchman may have missed"
                " failed uploads since then: look where logrotate puts old files, and then type"
                " watchman reload"
            )
        # ProFTPD makes the file when a session begins, but it never makes the directory.
        not_yet = isinstance(problem, FileNotFoundError)
        if problem is None or (not_yet and os.path.isdir(os.path.dirname(self.path))):
            return None
        return problem.strerror or str(problem)

    def _understand(self, piece: bytes, since: int) -> Notification | None:
        """Return what a piece of the log says, None if nothing or if it is refused.

        Records older than `since` were read in another file.
        """
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
            # The first field may be a token, of another server perhaps: a secret, so not logged.
            shown = piece.partition(b"|")[2] or piece
            logger.warning(
                "Log %r holds a line %s: %r. Further ones are only counted.",
                self.path,
                why,
                shown[:SHOWN],
            )


class TransferLog:
    """A thread that reads the logs as they grow, and submits what their lines say."""

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
        """Take what the thread calls.

        `submit` is `Dispatcher.submit_lines`. `marked` returns, by log, the latest mark that is
        durable. `caught_up(moment)` is called when everything that the logs held at that moment
        (monotonic) was submitted and is durable.
        """
        paths = tuple(paths)
        self._logs = [Log(path, token, paths, clock=clock) for path in paths]
        self._submit = submit
        self._marked = marked
        self._caught_up = caught_up
        self._inotify = Inotify()
        self._stopping = threading.Event()
        #: Set once each log was read to its end, or could not be.
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="transferlog", daemon=True)

    def start(self) -> None:
        """Start, and return once each log was read to its end. Raises InotifyUnavailable."""
        marked = self._marked()
        for log in self._logs:
            if log.path in marked:
                log.files.resume(marked[log.path])
        self._inotify.open()
        self._thread.start()
        self._begun.wait()

    def read(self) -> None:
        """Have the logs read soon, without waiting for an event. Any thread may call it."""
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

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def status(self) -> dict[str, dict[str, Any]]:
        """Return the status of each log: how many records, how many refused lines, any error."""
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
        """Watch the directories of the logs. Repeated, for they may be other directories by now."""
        for directory in {os.path.dirname(log.path) for log in self._logs}:
            with contextlib.suppress(OSError):
                fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._inotify.watch(fd, MASK)
                finally:
                    os.close(fd)

    def _read(self, log: Log) -> bool:
        """Submit the new lines of a log; return False if we are told to stop before all are."""
        for notifications in log.read():
            if notifications and not self._submit_durably(log, notifications):
                return False
        return log.files.is_marked() or self._submit_durably(log, [])

    def _submit_durably(self, log: Log, notifications: Sequence[Notification]) -> bool:
        """Submit again and again until it is durable; return False if we are told to stop."""
        mark = log.files.mark()
        while not self._stopping.is_set():
            if self._submit(log.path, notifications, mark):
                return True
            self._begun.set()
            self._stopping.wait(LOOK)
        return False
