"""The dispatcher: in one thread notifications get their turn, and decisions become durable."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from watchman.config.rules import Rules
from watchman.config.settings import Settings
from watchman.dispatch.handler import Handler
from watchman.dispatch.hold_queue import HeldFile
from watchman.dispatch.turns import WAITING, Find, Finds, Namers
from watchman.errors import JournalUnwritable
from watchman.sinks.pipeline import Pipeline
from watchman.store.checkpoints import READ, Checkpoints
from watchman.store.groupcommit import SLICE, GroupCommit
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.store.ledger_migration import migrate
from watchman.store.ledgers import Ledgers, close
from watchman.uploads.upload import Kind, Notification, Respond, Source, nobody

logger = logging.getLogger(__name__)

#: Seconds until we look again if a due file waits for the transfer log to be read, see `caught_up`.
LAG = 1.0

#: Seconds between two tries to clear a journal that could not be cleared, at least.
UNCLEARED = 5.0

T = TypeVar("T")


class Dispatcher:
    """Decides in one thread about what all sources say, and hands uploads to the pipeline.

    The class is long because it has each way into that thread, and what that does in between.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        journal: Journal,
        ledgers: Mapping[str, Ledger],
        rescan: Callable[[str, str], None],
        request_later: Callable[[str, int], None],
        read_log: Callable[[], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the parts. The function is long only because there are many of them.

        `rescan(watch, subpath)` asks for a scan of a subtree. `request_later(watch, owner)` asks
        for one of a watch for when `takes_finds(owner)` is true. `read_log` has the transfer log
        read soon, after which `caught_up` is called. `clock` tells the time of files and records,
        `monotonic` measures waits.
        """
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self.rules = Rules(settings)
        self._journal = journal
        self._ledgers = Ledgers(ledgers, self.rules)
        self._rescan = rescan
        self._read_log = read_log
        #: Whether we have asked for the log to be read, and it was not read since.
        self._log_asked = False
        self._commit = GroupCommit(
            journal,
            timer=self._look_again,
            committed=lambda: self.pipeline.backlogs.offer(),
            idle=self._keep_house,
            monotonic=monotonic,
        )
        self.pipeline = Pipeline(
            settings,
            rules=self.rules,
            journal=journal,
            ledgers=self._ledgers,
            commit=self._commit,
            settled=self._ledgers.settle,
            superseded=lambda upload: self._handler.superseded(upload),
            gone=lambda path, state, is_lost: self._handler.gone(path, state, is_lost),
            renamed=lambda upload: self._handler.renamed(upload),
            monotonic=monotonic,
        )
        self._finds = Finds(self._commit, locate=self.rules.locate, request_later=request_later)
        self._handler = Handler(
            settings,
            rules=self.rules,
            journal=journal,
            ledgers=self._ledgers,
            commit=self._commit,
            pipeline=self.pipeline,
            decide_now=self._finds.decide_now,
            clock=clock,
            monotonic=monotonic,
        )
        self._namers = Namers(self._handler.named)
        self._checkpoints = Checkpoints(journal=journal, commit=self._commit)
        #: When to try again to clear ledgers and journal (monotonic), if the last try failed.
        self._uncleared = 0.0
        # What `status` and `queue` show.
        self.judge, self.hold_queue = self._handler.judge, self._handler.holding.queue
        self.crosscheck, self.placing = self._handler.crosscheck, self._handler.placing
        self.heard, self.last_heard = self._handler.heard, self._handler.last_heard

    def start(self) -> None:
        """Replay the journal, then start the thread."""
        self.pipeline.replay(self._handler.replay_decision, self._replay_other)
        if self._journal.damaged:
            self._ledgers.forget_lost(self._journal)
        logs = self._settings.proftpd.transfer_log
        self._handler.restore(logged=bool(logs) and self.marked().keys() >= set(logs))
        self._checkpoints.forget(logs)
        self._commit.start()
        self._commit.stay_awake()  # there may be alarms to sound

    def stop(self) -> None:
        """Have the thread decide about what was submitted, except finds beyond AT_STOP, and end."""
        self._commit.bring(self._finds.close)
        self._commit.stop()

    def join(self) -> None:
        """Wait for the thread's end. Then all is durable that could be written."""
        self._commit.join()

    def is_alive(self) -> bool:
        return self._commit.is_alive()

    def close(self) -> None:
        """Close the ledgers, after `join`."""
        # Otherwise they may hold decisions that never became durable, and must be made again.
        if not self._commit.unwritable_since:
            close(self._ledgers.values())

    def submit(self, notification: Notification, answer: Respond | None = None) -> None:
        """Take a notification from a source's thread.

        `answer` is called in the dispatcher's thread once the decision is durable. Users of the
        socket take turns with each other and with all other sources, so that nobody can send so
        much that others are not heard. What a user sends waits in a thread of his own; other
        sources block here while too much waits.
        """
        answer = answer or nobody
        if notification.source is not Source.HOOK or notification.uid is None:
            self._commit.bring(partial(self._handler.hear, notification, answer))
            return
        lane = f"uid {notification.uid}"

        def pass_on(named: Notification) -> None:
            self._commit.bring(partial(self._handler.hear, named, answer, is_named=True), lane)

        self._namers.bring(notification, pass_on)

    def submit_events(self, notifications: Sequence[Notification]) -> None:
        """Take notifications from the watcher. Each waits for the turn of its file's owner.

        Blocks while too many wait, see `Finds.put`.
        """
        hear = self._handler.hear
        finds = [
            (Find(one.path, one.old_path), partial(hear, one, nobody)) for one in notifications
        ]
        self._finds.put(finds)

    def submit_find(self, notification: Notification) -> bool:
        """Take a file that a scan has found, as `submit_events` does: there may be a million.

        Return False if too many files of its owner wait, see `takes_finds`.
        """
        is_held = self.hold_queue.get(notification.path) is not None
        if not is_held and self._waiting_of(notification.owner) >= WAITING:
            return False
        self.submit_events([notification])
        return True

    def takes_finds(self, owner: int) -> bool:
        """Whether another scan makes sense after some files of an owner were not taken."""
        return self._waiting_of(owner) <= WAITING // 2

    def _waiting_of(self, owner: int | None) -> int:
        return 0 if owner is None else self._finds.waiting(owner) + self.hold_queue.found(owner)

    def submit_lines(self, log: str, notifications: Sequence[Notification], mark: Any) -> bool:
        """Take what lines of a transfer log say, and the mark of how far it was read.

        The source's thread calls it. Returns True once decisions and mark are durable, False if
        neither could be written. They are in one commit: a line that is read again after its
        decision could be taken for another write, for instance after an MFMT.
        """
        written: SimpleQueue[bool] = SimpleQueue()

        def work() -> None:
            for notification, is_last in _with_is_last(notifications):
                try:
                    self._handler.take(self._handler.named(notification), nobody, is_last=is_last)
                except Exception:
                    logger.exception(
                        "Could not decide about %r, of which the transfer log tells.",
                        notification.path,
                    )
            self._checkpoints.stage(log, mark, durable, lambda _: written.put(False))

        def durable() -> None:
            # Not before, for if this fails the same lines are submitted again.
            for notification in notifications:
                self._handler.count(notification)
            written.put(True)

        self._commit.bring(work)
        return written.get()

    def caught_up(self, now: float) -> None:
        """Note that all was submitted that the transfer logs held at `now` (monotonic)."""
        self._commit.bring(partial(self._catch_up, now))

    def marked(self) -> dict[str, Any]:
        """Return the last durable mark of each transfer log."""
        return self._checkpoints.values()

    def call(self, work: Callable[[], T]) -> T:
        """Have work done in the dispatcher's thread; return its result once all is durable.

        Raises what the work raises, or JournalUnwritable. Any other thread may call it.
        """
        return self._commit.call(work)

    def change(self, settings: Settings, ledgers: Mapping[str, Ledger]) -> None:
        """Use other settings from now on, and close the ledgers that are not among `ledgers`.

        What waits for a decision still waits. Uploads that were accepted keep their task and move.
        """
        # Its records are lasting: they are written as soon as the journal can be.
        with contextlib.suppress(JournalUnwritable):
            self.call(partial(self._change, settings, ledgers))

    def unwritable(self) -> bool:
        """Whether the journal cannot be written at present."""
        return bool(self._commit.unwritable_since)

    def forget_filesystems(self) -> None:
        """Note that something was mounted or unmounted. Any thread may call it."""
        for ledger in self._ledgers.values():
            ledger.filesystems.forget()

    def stalled(self) -> float:
        """Return for how many seconds the thread has been at one turn. Any thread may call it."""
        return self._commit.stalled()

    # In the dispatcher's thread.

    def _change(self, settings: Settings, ledgers: Mapping[str, Ledger]) -> None:
        self._settings = settings
        self.rules.change(settings)
        left = self._ledgers.change(ledgers)
        self.pipeline.change(settings)
        self._handler.change(settings)
        self._checkpoints.forget(settings.proftpd.transfer_log)
        # Not before the journal has what was decided until now.
        self._commit.stage(None, lambda _: close(left), lasting=True)
        self._commit.stage(None, lambda _: migrate(settings, ledgers), lasting=True)

    def _look_again(self) -> float:
        """Look at held files that are due, and for dead sessions; return the seconds until next."""
        now = self._monotonic()
        heard = self.judge.heard_until()
        due = self.hold_queue.due(heard)
        if due:
            works = [(Find(held.path), partial(self._look_at_held, held)) for held in due]
            self._finds.put(works, wait=False)
        patience = self.hold_queue.patience(now)
        if not patience and self.hold_queue.patience(heard):
            # ProFTPD may have spoken of a due file in its log, so that is read first.
            patience = LAG
            if not self._log_asked:
                self._log_asked = True
                self._read_log()
        return min(self._handler.transfer_tracker.end_dead_sessions(), patience)

    def _look_at_held(self, held: HeldFile) -> None:
        if self.hold_queue.get(held.path) is held:  # else it was decided about meanwhile
            self._handler.complete(held.notification, nobody)

    def _catch_up(self, now: float) -> None:
        self._log_asked = False
        self._handler.transfer_tracker.catch_up()
        self.judge.log_read = now

    def _keep_house(self) -> None:
        """Do what can wait until all that was staged is durable."""
        if self._commit.unwritable_since:
            return
        for watch in self._handler.decisions.scans_due():
            self._rescan(watch, "")
        if self._uncleared <= self._monotonic():
            self._try_to_clear()
        if not self.pipeline.waiting():
            self.pipeline.file_tracker.forget_renames()
        self.pipeline.failures.forget(self._clock() - self._settings.keep_failed)
        self.pipeline.alarms.sound()
        self._checkpoints.renew()

    def _try_to_clear(self) -> None:
        try:
            self._clear()
        except OSError as e:
            if not self._uncleared:
                logger.warning("Journal not cleared of what is settled: %s. Trying again.", e)
            # Not after each commit, for each try writes whole ledgers: 24 MB for a million files.
            self._uncleared = self._monotonic() + UNCLEARED
        else:
            if self._uncleared:
                logger.info("Journal is cleared again of what is settled.")
            self._uncleared = 0.0

    def _clear(self) -> None:
        """Write decisions to the ledgers, and drop from the journal what is settled; or OSError."""
        retirable, wasteful = self._journal.retirable(), self._journal.wasteful()
        self._ledgers.flush(all_of_them=retirable or wasteful)
        if retirable:
            self._journal.retire(self._settings.history)
        until = time.monotonic() + SLICE
        while wasteful:
            self._journal.compact()
            wasteful = self._journal.wasteful()
            if wasteful and time.monotonic() >= until:
                self._commit.stay_awake()
                return

    def _replay_other(self, position: int, record: dict[str, Any]) -> None:
        if record["event"] == READ:
            self._checkpoints.keep(record["log"], record["mark"], position)
        self._handler.replay_other(position, record)


def _with_is_last(
    notifications: Sequence[Notification],
) -> Iterator[tuple[Notification, bool]]:
    """Yield each notification, with False if the next transfer of its path has failed, else True.

    Lines of a log that are read together may be older than the files that we see.
    """
    failed: set[str] = set()
    found = []
    for notification in reversed(notifications):
        found.append((notification, notification.path not in failed))
        if notification.kind is Kind.FAILED and not notification.refused:
            failed.add(notification.path)
        elif notification.kind is Kind.COMPLETED:
            failed.discard(notification.path)
    return reversed(found)
