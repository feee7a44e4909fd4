"""The source that reads ProFTPD's transfer log: the only one that knows of chrooted sessions."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyinotify

from watchman.errors import ForeignRecord
from watchman.sources.inotify import Inotify
from watchman.sources.logrecord import Interpreter, parse
from watchman.sources.tail import Position, Tail
from watchman.upload import Notification

logger = logging.getLogger(__name__)

#: What wakes us, of the directory of a log: it was written to, made or renamed.
MASK: int = pyinotify.IN_MODIFY | pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO

#: Seconds between looks when nothing wakes us.
LOOK = 1.0

#: Seconds after which a renamed log is let go of that nobody writes to, where we may not ask who
#: has it open.
FORSAKEN = 86400.0

Mark = Callable[[str, list[list[Any]]], None]


class Log:
    """One configured path: the file that it names, and those that it named before."""

    def __init__(self, path: str, token: str) -> None:
        self.path = path
        self._token = os.fsencode(token) + b"|"
        self._interpreter = Interpreter()
        #: The newest last.
        self._tails: list[Tail] = []
        #: What `positions` returned last.
        self._marked: list[Position] | None = None
        self._reported: set[str] = set()
        self.problem = ""
        self.counts: Counter[str] = Counter()
        self.last = 0.0

    def resume(self, marked: list[Position] | None) -> None:
        """Go on where the last run stopped; at first sight, with None, at the end."""
        if marked is None:
            with contextlib.suppress(OSError):
                self._tails = [Tail(self.path, -1)]
            return
        newest = 0.0
        for position in marked:
            tail = self._find(position)
            if tail is None:
                logger.warning("Lines are missing: no file of log %r goes on there.", self.path)
                continue
            tail.offset = position.offset
            self._tails.append(tail)
            newest = max(newest, tail.idle())
        known = {tail.inode for tail in self._tails}
        with contextlib.suppress(OSError):
            if os.stat(self.path).st_ino in known:
                newest = 0.0
        # Those that came and were renamed since, the oldest first.
        for path in self._siblings() if newest else ():
            with contextlib.suppress(OSError):
                status = os.stat(path)
                if path != self.path and status.st_ino not in known and status.st_mtime >= newest:
                    self._tails.append(Tail(path))
        self._marked = marked

    def _find(self, position: Position) -> Tail | None:
        """Find the file that was read to a position: by its inode, else by its bytes."""
        tails = []
        for path in self._siblings():
            with contextlib.suppress(OSError):
                tails.append(Tail(path))
        fitting = [tail for tail in tails if tail.holds(position)]
        fitting.sort(key=lambda tail: tail.inode != position.inode)
        for tail in tails:
            if fitting[:1] != [tail]:
                tail.close()
        return fitting[0] if fitting else None

    def _siblings(self) -> list[str]:
        """Return the files of the log by age: `uploads.log`, `uploads.log.1`, ..."""
        directory, name = os.path.split(self.path)
        found: list[tuple[float, str]] = []
        with contextlib.suppress(OSError):
            found = [
                (entry.stat().st_mtime, entry.path)
                for entry in os.scandir(directory)
                if entry.name.startswith(name) and entry.is_file(follow_symlinks=False)
            ]
        return [path for _, path in sorted(found)]

    def read(self) -> Iterator[Notification]:
        """Yield what was written since."""
        self._follow()
        for tail in list(self._tails):
            # Asked before reading: what is written until then is read, and nothing comes after.
            over = tail is not self._tails[-1] and self._is_over(tail)
            for piece, has_token in tail.records(self._token):
                if (notification := self._understand(piece, has_token=has_token)) is not None:
                    yield notification
            if over:
                self._tails.remove(tail)
                tail.close()

    def _is_over(self, tail: Tail) -> bool:
        """Whether no session writes a renamed file any more."""
        return not tail.has_writers() or time.time() - tail.idle() > FORSAKEN

    def _follow(self) -> None:
        """Open what the path names now, should it be another file."""
        try:
            status = os.stat(self.path)
        except OSError as e:
            self.problem = e.strerror or str(e)
            return
        current = self._tails[-1] if self._tails else None
        if current is not None and (current.inode, current.device) == (
            status.st_ino,
            status.st_dev,
        ):
            self.problem = ""
            if not current.holds(Position(0, current.offset, self._last_digest(current))):
                logger.info("Log %r was truncated; reading from its start.", self.path)
                self._read_copy(current)
                current.rewind()
            return
        known = {tail.inode for tail in self._tails}
        try:
            tail = Tail(self.path)
        except OSError as e:
            self.problem = e.strerror or str(e)
            return
        if tail.inode in known:
            tail.close()
            return
        self.problem = ""
        if current is not None:
            logger.info(
                "Log %r was rotated; reading the old one on until nobody has it.", self.path
            )
        self._tails.append(tail)

    def _last_digest(self, tail: Tail) -> str:
        for position in self._marked or ():
            if position.inode == tail.inode and position.offset == tail.offset:
                return position.digest
        return tail.position().digest

    def _read_copy(self, current: Tail) -> None:
        """Read what copytruncate copied and we had not read: the copy goes on where we were."""
        for position in self._marked or ():
            if position.inode == current.inode:
                copy = self._find(position)
                if copy is not None and copy.inode != current.inode:
                    copy.offset = position.offset
                    self._tails.insert(0, copy)
                elif copy is not None:
                    copy.close()

    def _understand(self, piece: bytes, *, has_token: bool) -> Notification | None:
        try:
            if not has_token:
                raise ForeignRecord("without our token")
            record = parse(piece)
        except ForeignRecord as e:
            self._refuse(str(e), piece)
            return None
        self.counts["records"] += 1
        self.last = time.time()
        return self._interpreter.notification(record)

    def _refuse(self, why: str, piece: bytes) -> None:
        self.counts["refused"] += 1
        if why not in self._reported:
            self._reported.add(why)
            logger.warning(
                "Log %r holds a line %s: %r. Further ones are only counted.",
                self.path,
                why,
                piece[:120],
            )

    def positions(self) -> list[Position] | None:
        """Return where all files were read to, None if that is what was returned last."""
        positions = [tail.position() for tail in self._tails]
        if positions == self._marked:
            return None
        self._marked = positions
        return positions

    def close(self) -> None:
        for tail in self._tails:
            tail.close()
        self._tails.clear()


class TransferLog:
    """A thread that reads the logs as they grow, and submits what they say.

    `mark(path, positions)` is called after what was read to there has been submitted: it must
    become durable after the decisions about that, never before.
    """

    def __init__(
        self,
        paths: Iterable[str],
        token: str,
        *,
        submit: Callable[[Notification], None],
        mark: Mark,
        marked: Callable[[], Mapping[str, list[list[Any]]]],
    ) -> None:
        self._logs = [Log(path, token) for path in paths]
        self._submit = submit
        self._mark = mark
        self._marked = marked
        self._inotify = Inotify()
        self._watched: dict[str, int] = {}
        self._stopping = threading.Event()
        self._wake = -1
        self._thread = threading.Thread(target=self._run, name="transferlog", daemon=True)

    def start(self) -> None:
        """Return when each log was read to its present end."""
        marked = self._marked()
        for log in self._logs:
            positions = marked.get(log.path)
            log.resume(
                None if positions is None else [Position.decode(values) for values in positions]
            )
        self._inotify.open()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watch()
        self._read()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def join(self) -> None:
        if self._wake >= 0:
            self._thread.join()
            self._inotify.close()
            for log in self._logs:
                log.close()
            os.close(self._wake)
            self._wake = -1

    def status(self) -> dict[str, dict[str, Any]]:
        """Return by log: records and refused lines, when last read (epoch), and its problem."""
        return {
            log.path: {
                "records": log.counts["records"],
                "refused": log.counts["refused"],
                "last": log.last or None,
                "problem": log.problem or None,
            }
            for log in self._logs
        }

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._inotify.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._stopping.is_set():
            try:
                poll.poll(1000 * LOOK)
                self._inotify.read()
                self._watch()
                self._read()
            except Exception:
                logger.exception("Reading the transfer log failed. Trying again.")
                self._stopping.wait(LOOK)

    def _watch(self) -> None:
        """Have changes in the directories of the logs wake us; a look each second is the rest."""
        for directory in {os.path.dirname(log.path) for log in self._logs}:
            with contextlib.suppress(OSError):
                fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._watched[directory] = self._inotify.watch(fd, MASK)
                finally:
                    os.close(fd)

    def _read(self) -> None:
        for log in self._logs:
            for notification in log.read():
                self._submit(notification)
            positions = log.positions()
            if positions is not None:
                self._mark(log.path, [position.encode() for position in positions])
