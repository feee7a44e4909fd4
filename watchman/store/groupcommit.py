"""One thread that decides, and makes what it decided durable in batches."""

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

#: Pieces of work of one lane that wait before those who bring more must wait.
INBOX = 10_000

#: Seconds of work before a commit: whoever waits for one waits no longer than that, and what has
#: been sent is sent again after a crash if that was not written down. On a slow disk it is so many
#: times what the last commit took, up to the most: else the disk would have most of the time.
SLICE, SLICES, SLICE_MOST = 0.01, 4, 0.05

#: Seconds between two tries to write a journal that could not be written.
RETRY = 1.0

T = TypeVar("T")


class Change(NamedTuple):
    """A record for the next commit, and what follows once it is durable or could not be.

    A change without a record follows those staged before it. `lasting` ones are tried again until
    they are durable, and have no `failed`.
    """

    record: dict[str, Any] | None
    durable: Callable[[int], None]
    failed: Callable[[str], None]
    lasting: bool


class GroupCommit:
    """Work for one thread, in the order in which it came to each lane, and the journal's batches.

    What comes in while the last batch is committed is the next batch: one fdatasync for all of it.
    Work may `stage` changes; what must wait until they are durable goes into `durable`.
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
        #: `timer` does what is due and says in how many seconds it wants to be called again;
        #: `committed` follows each commit, `idle` is called when all that was staged is durable.
        #: All in the thread.
        self._timer = timer
        self._committed = committed
        self._idle = idle
        self._monotonic = monotonic
        self._journal = journal
        self._inbox = Inbox(INBOX)
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._stopping = False
        #: When it last began a turn (monotonic), each of which takes a second at the most.
        self._turned = math.inf
        self._changes: list[Change] = []
        #: Since when the journal cannot be written (monotonic), 0.0 while it can.
        self.unwritable_since = 0.0
        #: Why, and when to try again (monotonic).
        self._reason = ""
        self._next_try = 0.0
        self._slice = SLICE

    def start(self) -> None:
        """Begin to work."""
        self._turned = self._monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Finish the work that was brought, then end."""
        self.bring(self._stop)

    def join(self) -> None:
        """Wait for the end: all is committed that can be."""
        if self._thread.ident is not None:
            self._thread.join()

    def stalled(self) -> float:
        """Return for how many seconds the thread has been at one turn; for any thread."""
        return max(0.0, self._monotonic() - self._turned)

    def bring(self, work: Work, lane: str = "") -> None:
        """Bring work, to be done in the order of its lane; wait while that has too much of it."""
        self._inbox.put(work, lane)

    def bring_first(self, work: Work) -> None:
        """Bring work that is done before what was brought otherwise: it says what became of what
        was handed out, and is not to be forgotten in a crash because much else has come in.
        """
        self._inbox.put_first(work)

    def call(self, work: Callable[[], T]) -> T:
        """Have work done in the thread; return its result once what is staged then is durable.

        Raises what the work raises, and JournalUnwritable while the journal cannot be written: what
        is `lasting` will be done nevertheless. Any thread but its own.
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
        """Add a record to the next commit; only the thread's own work may.

        `durable` is called with its position, or `failed` with the reason why it is not written.
        """
        self._changes.append(Change(record, durable, failed, lasting))

    def _run(self) -> None:
        while not (self._stopping and self._inbox.empty()):
            self._turned = self._monotonic()
            patience = outlive(self._timer)
            self._work(RETRY if patience is None else patience)
            self._commit()
            # What follows on a record may have staged more: not durable yet, and idle work is to
            # find all of it so.
            if not self._changes:
                outlive(self._idle)
        self._next_try = 0.0
        self._commit()
        while self._changes and not self.unwritable_since:
            self._commit()

    def _work(self, patience: float) -> None:
        """Do what there is to do, for a while; wait for it at most `patience` seconds."""
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
            # Whoever asks meanwhile need not wait for a disk to say the same once more.
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
        # The newest first: each one undoes what it did on top of those before it.
        for change in reversed(changes):
            if not change.lasting:
                why = f"the journal cannot be written: {self._reason}"
                outlive(partial(change.failed, why))
        self._changes = [change for change in changes if change.lasting]
        if not self._changes:
            # Somebody must find out when the disk has room again.
            self.stage({"event": "probed", "at": time.time()}, lasting=True)

    def _stop(self) -> None:
        self._stopping = True


def outlive(work: Callable[[], T]) -> T | None:
    """Do work of the dispatcher's thread; whatever it raises ends only that, for all else waits for
    this thread.
    """
    try:
        return work()
    except Exception:
        logger.exception("Work left undone. What it was about waits for a rescan.")
        return None
