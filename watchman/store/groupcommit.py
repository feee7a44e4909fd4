"""The dispatcher's thread: does one piece of work after another, and commits records in batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, TypeVar

from watchman.errors import JournalUnwritable
from watchman.store.inbox import Inbox, Work
from watchman.store.journal import Journal

logger = logging.getLogger(__name__)

#: How many pieces of work may wait in one lane. A thread that brings more waits.
INBOX = 10_000

#: Seconds of work before a commit. It is short because answers wait for the commit, and because a
#: task that was sent is sent again after a crash if the record of that is not durable. On a slow
#: disk it is SLICES times what the last commit took, at most SLICE_MOST: else the thread would
#: spend most of its time on commits.
SLICE, SLICES, SLICE_MOST = 0.01, 4, 0.05

#: Seconds between two tries to write a journal that could not be written.
RETRY = 1.0

T = TypeVar("T")


class Change(NamedTuple):
    """A record for the next commit, and what to call after it.

    `durable` is called with the record's position in the journal, `failed` with the reason why it
    is not written. A change without a record (its position is -1) only comes after those that were
    staged before it. If it is `lasting`, it is tried again until it is durable, and `failed` is
    never called.
    """

    record: dict[str, Any] | None
    durable: Callable[[int], None]
    failed: Callable[[str], None]
    lasting: bool


class GroupCommit:
    """Does work in one thread, in the order of each lane, and writes what it stages to the journal.

    Work that comes in during a commit makes the next batch, with one fdatasync(2) for all of it. A
    disk made 3,900 records per second durable one at a time, and 215,000 in batches of 64. Work may
    `stage` changes. What must not happen before they are durable goes into their `durable`.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        timer: Callable[[], float],
        committed: Work,
        idle: Work,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        #: All three are called in the thread. `timer` does what is due, and returns in how many
        #: seconds it is to be called again. `committed` is called after each commit, and `idle`
        #: when everything that was staged is durable.
        self._timer = timer
        self._committed = committed
        self._idle = idle
        self._monotonic = monotonic
        self._journal = journal
        self._inbox = Inbox(INBOX)
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._stopping = False
        #: When the thread began its current turn (monotonic). A turn takes some seconds at most: of
        #: sleep if there is nothing to do, else of work.
        self._turned = math.inf
        self._changes: list[Change] = []
        #: Since when the journal cannot be written (monotonic), 0.0 while it can.
        self.unwritable_since = 0.0
        #: Why it cannot be written, and when to try again (monotonic).
        self._reason = ""
        self._next_try = 0.0
        self._slice = SLICE

    def start(self) -> None:
        """Start the thread."""
        self._turned = self._monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Have the thread finish the work that was brought, and then end."""
        self.bring(self._stop)

    def join(self) -> None:
        """Wait for the end of the thread. All that can be committed is committed then."""
        if self._thread.ident is not None:
            self._thread.join()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stalled(self) -> float:
        """Return for how many seconds the current turn has lasted. Any thread may call it."""
        return max(0.0, self._monotonic() - self._turned)

    def bring(self, work: Work, lane: str = "") -> None:
        """Add work at the end of a lane. Blocks while the lane is full."""
        self._inbox.put(work, lane)

    def bring_first(self, work: Work) -> None:
        """Add work that is done before all work of the lanes. Never blocks.

        It is for reports about uploads that were handed out. They must not wait behind much other
        work: after a crash, uploads whose report is not committed are moved or sent again.
        """
        self._inbox.put_first(work)

    def stay_awake(self) -> None:
        """Call `idle` again soon, after the work that waits. Any thread may call it."""
        self._inbox.put_first(lambda: None)

    def call(self, work: Callable[[], T]) -> T:
        """Have work done in the thread; return its result once all that is staged then is durable.

        Raises what the work raises, and JournalUnwritable if the journal cannot be written; even
        then `lasting` changes are written later. Call it from other threads only.
        """
        done: Future[T] = Future()

        def answered() -> None:
            try:
                result = work()
            except BaseException as e:
                done.set_exception(e)
                return
            if not self._changes:
                done.set_result(result)
            else:
                self.stage(
                    None,
                    lambda _: done.set_result(result),
                    lambda reason: done.set_exception(JournalUnwritable(reason)),
                )

        self.bring(answered)
        return done.result()

    def stage(
        self,
        record: dict[str, Any] | None,
        durable: Callable[[int], None] = lambda _: None,
        failed: Callable[[str], None] = lambda _: None,
        *,
        lasting: bool = False,
    ) -> None:
        """Add a change to the next commit, see `Change`. Only work in the thread may call it."""
        self._changes.append(Change(record, durable, failed, lasting))

    def _run(self) -> None:
        while not (self._stopping and self._inbox.empty()):
            self._turned = self._monotonic()
            patience = outlive(self._timer)
            self._work(RETRY if patience is None else patience)
            self._commit()
            # The commit's callbacks may have staged more. `idle` is called only when everything
            # that was staged is durable.
            if not self._changes:
                outlive(self._idle)
        self._next_try = 0.0
        self._commit()
        while self._changes and not self.unwritable_since:
            self._commit()

    def _work(self, patience: float) -> None:
        """Wait at most `patience` seconds for work, then do work until it is time for a commit."""
        if self._changes:
            patience = min(patience, RETRY if self.unwritable_since else 0.0)
        work = self._inbox.take(max(patience, 0.0001))
        until = time.monotonic() + self._slice
        while work is not None:
            outlive(work)
            work = self._inbox.take(0.0) if time.monotonic() < until else None

    def _commit(self) -> None:
        changes, self._changes = self._changes, []
        if not changes:
            return
        if self._next_try > self._monotonic():
            # The journal could not be written a moment ago. Answer at once instead of waiting for
            # the disk to fail once more.
            self._take_back(changes)
            return
        began = time.monotonic()
        try:
            positions = self._journal.write([c.record for c in changes if c.record is not None])
        except JournalUnwritable as e:
            self._next_try = self._monotonic() + RETRY
            self._reason = str(e)
            self._take_back(changes)
            return
        if self.unwritable_since:
            logger.info("Journal is written again.")
            self.unwritable_since = self._next_try = 0.0
        self._slice = min(SLICE_MOST, max(SLICE, SLICES * (time.monotonic() - began)))
        following = iter(positions)
        for change in changes:
            position = next(following) if change.record is not None else -1
            outlive(partial(change.durable, position))
        outlive(self._committed)

    def _take_back(self, changes: list[Change]) -> None:
        if not self.unwritable_since:
            self.unwritable_since = self._monotonic()
            logger.critical(
                "Journal cannot be written: %s. Accepting and sending nothing until it can.",
                self._reason,
            )
        # The newest first, because each `failed` undoes its own change on top of the earlier ones.
        for change in reversed(changes):
            if not change.lasting:
                why = f"the journal cannot be written: {self._reason}"
                outlive(partial(change.failed, why))
        self._changes = [change for change in changes if change.lasting]
        if not self._changes:
            # With a record to write, `_commit` finds out when the disk has room again.
            self.stage({"event": "probed", "at": time.time()}, lasting=True)

    def _stop(self) -> None:
        self._stopping = True


def outlive(work: Callable[[], T]) -> T | None:
    """Do work in the dispatcher's thread; log what it raises, and return None then.

    The thread must not end by an exception, because all other work waits for it.
    """
    try:
        return work()
    except Exception:
        logger.exception("A step was not finished. A rescan finds the files that it was about.")
        return None
