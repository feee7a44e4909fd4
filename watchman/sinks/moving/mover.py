"""The mover of one `[move:NAME]` section: takes uploads, moves their files, reports, backs off."""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from watchman.config.moves import ASIDE
from watchman.config.settings import MoveSettings, WatchSettings
from watchman.errors import (
    BeingWritten,
    NotBelowWatch,
    Refused,
    Stopped,
    Superseded,
    TakesLong,
)
from watchman.sinks.moving.batch import Batch
from watchman.sinks.moving.directories import Directories
from watchman.sinks.sink import PATIENCE, BackOff, Sink, Take
from watchman.uploads.beneath import is_below
from watchman.uploads.upload import Report, State, Upload

logger = logging.getLogger(__name__)

#: Uploads that are taken together. With more of them little is gained: renames with a directory
#: sync each go at 2,100 a second, with a sync per 64 at 46,000.
BATCH = 64

#: Bytes of the largest file that is copied in its turn. The second thread copies larger ones,
#: because a disk may take ten seconds for a gigabyte.
LARGEST = 8 << 20

#: Seconds that `join` waits after `stop`.
HUNG = 5.0

#: Seconds until a thread goes on after an error that no upload explains.
STUCK = 1.0

#: Errors that concern everything that is moved to a filesystem, and not one directory alone.
WHOLE_FILESYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


class Mover(Sink):
    """The two threads of one `[move:...]`: a filesystem that hangs holds up no other move.

    One thread moves files in order. The other copies large files one by one; they were put aside
    for it, so that small files overtake them.

    `take` returns uploads to be moved, oldest first, and `take_aside` those that were put aside.
    `look` finds out what happened to a file that is not where it was. `write` is as with Batch.
    `report` is called once for each upload.
    """

    def __init__(
        self,
        move: MoveSettings,
        watches: Mapping[str, WatchSettings],
        *,
        take: Take,
        take_aside: Take,
        look: Callable[[Upload], Report | None],
        write: Callable[[State, Sequence[Upload]], list[Upload]],
        report: Callable[[Report], None],
    ) -> None:
        threads = {
            f"mover:{move.name}": partial(self._run, take, aside=False),
            f"copier:{move.name}": partial(self._run, take_aside, aside=True),
        }
        super().__init__(threads, hung=HUNG)
        self._move = move
        self._watches = watches
        self._look = look
        self._write = write
        self._report = report
        #: Guards back-offs and status, for both threads report.
        self._reporting = threading.Lock()
        #: By place and by what is wrong there. "Lane" below means such a pair.
        self._back_offs: dict[tuple[str, str], BackOff] = {}

    def hurry(self) -> None:
        """End all back-offs, that of the destination included. Any thread may call it."""
        for back_off in list(self._back_offs.values()):
            back_off.until = 0.0

    def _run(self, take: Take, *, aside: bool) -> None:
        limit = 1 if aside else BATCH
        while not self._stopping.is_set():
            try:
                self._move_all(take(limit, PATIENCE, self._stopping.is_set), aside)
            except Stopped:
                return
            # No error may end this thread. The journal has the uploads that were not reported, and
            # a restart gives them out again.
            except Exception:
                logger.exception("Uploads of move %s are stuck.", self._move.name)
                self._stopping.wait(STUCK)

    def _move_all(self, uploads: Sequence[Upload], aside: bool) -> None:
        """Move the files of all uploads, and report each."""
        if not uploads:
            return
        with Directories(self._move) as directories:
            if not self._is_there(directories, uploads):
                return
            batch = Batch(
                self._move,
                self._watches,
                directories,
                largest=math.inf if aside else LARGEST,
                write=self._write,
                keep_on=self._keep_on,
                settle=self._settle,
            )
            batch.move(uploads)

    def _is_there(self, directories: Directories, uploads: Sequence[Upload]) -> bool:
        """Whether the destination is available. If it is not, all uploads are deferred."""
        lane = (self._move.destination, "away")
        back_off = self._back_offs.get(lane)
        if back_off is not None and back_off.until > time.monotonic():
            reason = back_off.reason
        else:
            reason = directories.away()
        with self._reporting:
            if not reason:
                if self._status["state"] == "down":
                    where, name = self._move.destination, self._move.name
                    logger.info("Destination %s of move %s is back.", where, name)
                if self._status["state"] != "up":
                    self._stand("up")
                return True
            for upload in uploads:
                self._defer(upload, lane, reason)
            back_off = self._back_offs[lane]
            delay = back_off.until - time.monotonic()
            self._stand("down", reason, back_off.attempts, delay)
            return False

    def _keep_on(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    def _settle(self, upload: Upload, error: Exception | None, place: str) -> None:
        """Report an upload: its file was moved, or `error` was raised in the directory `place`."""
        with self._reporting:
            own_lane = (upload.id, f"upload {upload.id}")
            match error:
                case None:
                    self._succeed(upload)
                case Stopped():
                    self._report(Report(upload, State.DEFERRED))
                case Refused():
                    self._report(Report(upload, State.FAILED, str(error)))
                case TakesLong():
                    self._report(Report(upload, State.DEFERRED, lane=ASIDE))
                case Superseded() if report := self._look(upload):
                    self._back_offs.pop(own_lane, None)
                    self._report(report)
                case Superseded():
                    self._defer(upload, own_lane, str(error))
                case BeingWritten():
                    self._defer(upload, own_lane, str(error), logging.DEBUG)
                case NotBelowWatch():
                    reason = f"{place}: {error}"
                    self._defer(upload, (place, reason), reason)
                case OSError():
                    if error.errno in WHOLE_FILESYSTEM:
                        place = next(root for root in self._roots(upload) if is_below(place, root))
                    reason = f"{place}: {error.strerror}"
                    self._defer(upload, (place, reason), reason)
                case _:
                    self._defer(upload, (place, str(error)), str(error))

    def _succeed(self, upload: Upload) -> None:
        """Report an upload as moved, and end the back-offs of all places that it went through."""
        if self._back_offs:
            directories = map(os.path.dirname, (upload.source_path, upload.path))
            places = {upload.id, *directories, *self._roots(upload)}
            for lane in [lane for lane in self._back_offs if lane[0] in places]:
                del self._back_offs[lane]
        self._report(Report(upload, State.MOVED))

    def _roots(self, upload: Upload) -> Iterator[str]:
        """Yield the roots above an upload's places: destination, watch, and last `/`."""
        yield self._move.destination
        if upload.watch in self._watches:
            yield self._watches[upload.watch].path
        yield "/"

    def _defer(
        self, upload: Upload, lane: tuple[str, str], reason: str, level: int = logging.WARNING
    ) -> None:
        """Report an upload as deferred, in a lane that is left alone until its back-off ends."""
        back_off = self._back_offs.setdefault(lane, BackOff())
        now = time.monotonic()
        tried = back_off.until <= now
        if tried:
            delay = back_off.fail(now, reason)
            logger.log(
                level if back_off.attempts == 1 else logging.DEBUG,
                "Upload %s waits for move %s: %r: %s. Retrying in %.1f seconds.",
                upload.id,
                self._move.name,
                upload.path,
                reason,
                delay,
            )
        delay = back_off.until - now
        report = Report(upload, State.DEFERRED, reason, lane=lane[1], delay=delay, tried=tried)
        self._report(report)
