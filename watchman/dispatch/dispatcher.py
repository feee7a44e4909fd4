"""What a notification means: hold the file, accept it as an upload, pass it over, or fail it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from watchman.config.places import Place
from watchman.config.rules import Rules
from watchman.config.settings import Settings
from watchman.dispatch.crosscheck import Crosscheck
from watchman.dispatch.decisions import Decisions, Respond, nobody
from watchman.dispatch.finds import WAITING, Find, Finds
from watchman.dispatch.hold_queue import HeldFile
from watchman.dispatch.judge import PROFTPD, Accept, Fail, Hold, Ignore, Judge, PassOver, Refuse
from watchman.dispatch.namers import Namers
from watchman.dispatch.placing import Placing
from watchman.dispatch.renames import Renames
from watchman.dispatch.resubmit import Resubmitter
from watchman.dispatch.transfer_tracker import TransferTracker
from watchman.dispatch.transfers import Transfers
from watchman.errors import JournalUnwritable
from watchman.sinks.pipeline import Pipeline
from watchman.store.checkpoints import READ, Checkpoints
from watchman.store.groupcommit import SLICE, GroupCommit
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.store.ledger_migration import hand_over
from watchman.store.ledgers import Ledgers, close
from watchman.uploads import beneath
from watchman.uploads.access import may_speak
from watchman.uploads.upload import Answer, FileState, Kind, Notification, Outcome, Source, Upload

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether the transfer log was read; it tells when it was.
LAG = 1.0

#: Seconds between two tries to clear a journal that could not be cleared.
UNCLEARED = 5.0

#: Sources that may name a directory as their client did: through symlinks, by `..`.
SPELLED = PROFTPD | {Source.RESUBMIT}

T = TypeVar("T")


class Dispatcher:
    """Decides in one thread about what all sources say, and hands uploads to the pipeline."""

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
        """`rescan` has a subtree scanned, `request_later` a watch once `takes_finds` of an owner's;
        `read_log` has the transfer log read soon, see `caught_up`.

        `clock` tells the time that files and records bear, `monotonic` how long a wait was.
        """
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self.rules = Rules(settings)
        self._journal = journal
        self._ledgers = Ledgers(ledgers, self.rules)
        self._rescan = rescan
        self._read_log = read_log
        #: Whether the log was asked to be read, and was not since.
        self._log_asked = False
        self._commit = GroupCommit(
            journal, timer=self._look_again, idle=self._keep_house, monotonic=monotonic
        )
        self.pipeline = Pipeline(
            settings,
            rules=self.rules,
            journal=journal,
            ledgers=ledgers,
            commit=self._commit,
            settled=self._ledgers.settle,
            superseded=self._superseded,
            gone=self._gone,
            renamed=self._renamed,
            monotonic=monotonic,
        )
        self.crosscheck = Crosscheck()
        transfers = Transfers(monotonic=monotonic)
        self.judge = Judge(
            rules=self.rules,
            ledgers=ledgers,
            transfers=transfers,
            clock=clock,
            monotonic=monotonic,
            transfer_log=bool(settings.proftpd.transfer_log),
        )
        self._decisions = Decisions(
            judge=self.judge,
            pipeline=self.pipeline,
            ledgers=ledgers,
            journal=journal,
            commit=self._commit,
            clock=clock,
            monotonic=monotonic,
        )
        self.hold_queue = self._decisions.hold_queue
        self._transfer_tracker = TransferTracker(
            locate=self._locate,
            judge=self.judge,
            transfers=transfers,
            decisions=self._decisions,
            journal=journal,
            commit=self._commit,
            clock=clock,
        )
        self._renames = Renames(
            locate=self._locate,
            judge=self.judge,
            ledgers=ledgers,
            decisions=self._decisions,
            pipeline=self.pipeline,
            complete=self._complete,
        )
        self._resubmitter = Resubmitter(
            locate=self._locate,
            rules=self.rules,
            decisions=self._decisions,
            pipeline=self.pipeline,
            commit=self._commit,
            clock=clock,
        )
        self._finds = Finds(self._commit, locate=self._locate, request_later=request_later)
        #: When to try again to clear ledgers and journal (monotonic), if the last try failed.
        self._uncleared = 0.0
        self._namers = Namers(self._named)
        self._checkpoints = Checkpoints(journal=journal, commit=self._commit)
        self.placing = Placing(locate=self._locate, monotonic=monotonic)
        #: By source: how often it spoke, and when last (epoch).
        self.heard: Counter[str] = Counter()
        self.last_heard: dict[str, float] = {}

    def start(self) -> None:
        """Replay the journal, then begin to decide."""
        self.pipeline.replay(self._replay_decision, self._replay_other)
        if self._journal.damaged:
            self._ledgers.forget_lost(self._journal)
        self._decisions.restore()
        logs = self._settings.proftpd.transfer_log
        self._transfer_tracker.restore(logged=bool(logs) and self.marked().keys() >= set(logs))
        self._checkpoints.forget(self._settings.proftpd.transfer_log)
        self._commit.start()

    def stop(self) -> None:
        """Decide about what was submitted, but for finds beyond the first thousand; then end."""
        self._commit.bring(self._finds.close)
        self._commit.stop()

    def join(self) -> None:
        """Wait for the end: all is committed."""
        self._commit.join()

    def close(self) -> None:
        """Close the ledgers, after the end."""
        # A decision that never became durable must be made again.
        if not self._commit.unwritable_since:
            close(self._ledgers.by_watch.values())

    def submit(self, notification: Notification, answer: Respond | None = None) -> None:
        """Take a notification from a source's thread, which waits while there are too many.

        `answer` is called in the dispatcher's thread once the decision is durable. Users of the
        socket take turns, with each other and with all else: nobody can say so much that others are
        not heard.
        """
        answer = answer or nobody
        if notification.source is not Source.HOOK or notification.uid is None:
            self._commit.bring(partial(self._hear, notification, answer))
            return
        lane = f"uid {notification.uid}"

        def pass_on(named: Notification) -> None:
            self._commit.bring(partial(self._hear, named, answer, is_named=True), lane)

        self._namers.bring(notification, pass_on)

    def submit_event(self, notification: Notification) -> None:
        """Take what the watcher has seen, which waits for its file's owner's turn.

        The watcher waits while there is too much of it.
        """
        find = Find(notification.path, notification.old_path)
        self._finds.put(find, partial(self._hear, notification, nobody))

    def submit_find(self, notification: Notification) -> bool:
        """Take what a scan has found, as `submit_event` does: there may be a million of them.

        False: too many of the same owner's wait, see `takes_finds`.
        """
        is_held = self.hold_queue.get(notification.path) is not None
        if not is_held and self._waiting_of(notification.owner) >= WAITING:
            return False
        self.submit_event(notification)
        return True

    def takes_finds(self, owner: int) -> bool:
        """Whether an owner's files are worth another scan, after some were not taken."""
        return self._waiting_of(owner) <= WAITING // 2

    def _waiting_of(self, owner: int | None) -> int:
        return 0 if owner is None else self._finds.waiting(owner) + self.hold_queue.found(owner)

    def submit_lines(self, log: str, notifications: Sequence[Notification], mark: Any) -> bool:
        """Take what lines of a transfer log say, and a mark of where it was read to.

        Called in the source's thread. Returns once both are durable, in one commit, as a line that
        is read again after its decision could be taken for another write. False: neither is.
        """
        written: SimpleQueue[bool] = SimpleQueue()

        def work() -> None:
            for notification, is_last in _with_last_words(notifications):
                try:
                    self._take(self._named(notification), nobody, is_last=is_last)
                except Exception:
                    logger.exception("No decision on %r, as a log has it.", notification.path)
            self._checkpoints.stage(log, mark, durable, lambda _: written.put(False))

        def durable() -> None:
            # Not before, since they may have to be read again.
            for notification in notifications:
                self._count(notification)
            written.put(True)

        self._commit.bring(work)
        return written.get()

    def caught_up(self, now: float) -> None:
        """Be told that all that the transfer logs held `now` (monotonic) was submitted."""
        self._commit.bring(partial(self._catch_up, now))

    def marked(self) -> dict[str, Any]:
        """Return the last mark by transfer log."""
        return self._checkpoints.values()

    def call(self, work: Callable[[], T]) -> T:
        """Have work done in the dispatcher's thread and made durable; from another thread.

        Returns or raises what the work does, or JournalUnwritable.
        """
        return self._commit.call(work)

    def change(self, settings: Settings, rules: Rules, ledgers: Mapping[str, Ledger]) -> None:
        """Go over to other settings; ledgers that are not among `ledgers` any more are closed.

        What is in hand stays so, and what was accepted goes on as it was accepted.
        """
        # What it writes down is written whenever the journal can be.
        with contextlib.suppress(JournalUnwritable):
            self.call(partial(self._change, settings, rules, ledgers))

    def unwritable(self) -> bool:
        """Whether the journal cannot be written at present."""
        return bool(self._commit.unwritable_since)

    def forget_filesystems(self) -> None:
        """Be told that something was mounted or unmounted; from any thread."""
        for ledger in self._ledgers.by_watch.values():
            ledger.filesystems.forget()

    def stalled(self) -> float:
        """Return for how many seconds the thread has been busy with one thing; for any thread."""
        return self._commit.stalled()

    # The dispatcher's thread.

    def _change(self, settings: Settings, rules: Rules, ledgers: Mapping[str, Ledger]) -> None:
        self._settings, self.rules = settings, rules
        left = self._ledgers.change(ledgers, rules)
        self.pipeline.change(settings, rules=rules, ledgers=ledgers)
        log = bool(settings.proftpd.transfer_log)
        self.judge.change(rules=rules, ledgers=ledgers, transfer_log=log)
        self.crosscheck.forget()
        self._decisions.change(ledgers)
        self._renames.change(ledgers)
        self._resubmitter.change(rules)
        self._checkpoints.forget(settings.proftpd.transfer_log)
        for noticed in self.hold_queue.remove(lambda path: rules.locate(path) is None):
            if noticed.id:
                self._decisions.release(noticed, Ignore("its watch left the INI file"))
        # Once the journal has what was decided until now.
        self._commit.stage(None, lambda _: close(left), lasting=True)
        self._commit.stage(None, lambda _: hand_over(settings, ledgers), lasting=True)

    def _look_again(self) -> float:
        """Look at held files that are due, and for sessions that died; return when next, in s."""
        now = self._monotonic()
        heard = self.judge.heard_until()
        for noticed in self.hold_queue.due(heard):
            self._finds.put_now(Find(noticed.path), partial(self._look_at_held, noticed))
        patience = self.hold_queue.patience(now)
        if not patience and self.hold_queue.patience(heard):
            # The log is asked first; it wakes us.
            patience = LAG
            if not self._log_asked:
                self._log_asked = True
                self._read_log()
        return min(self._transfer_tracker.end_dead_sessions(), patience)

    def _look_at_held(self, noticed: HeldFile) -> None:
        if self.hold_queue.get(noticed.path) is noticed:  # else it was decided about meanwhile
            self._complete(noticed.notification, nobody)

    def _catch_up(self, now: float) -> None:
        self._log_asked = False
        self._transfer_tracker.catch_up()
        self.judge.log_read = now

    def _keep_house(self) -> None:
        """Do what need not be done at once."""
        if self._commit.unwritable_since:
            return
        for watch in self._decisions.scans_due():
            self._rescan(watch, "")
        if self._uncleared <= self._monotonic():
            self._try_to_clear()
        if not self.pipeline.waiting():
            self.pipeline.file_tracker.forget_renames()
        self.pipeline.failures.forget(self._clock() - self._settings.keep_failed)
        self._checkpoints.renew()

    def _try_to_clear(self) -> None:
        try:
            self._clear()
        except OSError as e:
            if not self._uncleared:
                logger.warning("Journal not cleared of what is settled: %s. Trying again.", e)
            # Not after each commit: ledgers are written for it, as a whole.
            self._uncleared = self._monotonic() + UNCLEARED
        else:
            if self._uncleared:
                logger.info("Journal is cleared again of what is settled.")
            self._uncleared = 0.0

    def _clear(self) -> None:
        """Have the ledgers hold what is decided, and the journal let go of what is settled."""
        retirable, wasteful = self._journal.retirable(), self._journal.wasteful()
        self._ledgers.flush(all_of_them=retirable or wasteful)
        if retirable:
            self._journal.retire(self._settings.history)
        until = time.monotonic() + SLICE
        while wasteful:
            self._journal.compact()
            wasteful = self._journal.wasteful() and time.monotonic() < until

    def _hear(self, notification: Notification, answer: Respond, *, is_named: bool = False) -> None:
        self._count(notification)
        if notification.source in SPELLED and not is_named:
            notification = self._named(notification)
        self._take(notification, answer)

    def _count(self, notification: Notification) -> None:
        self.heard[notification.source.value] += 1
        self.last_heard[notification.source.value] = self._clock()
        self.crosscheck.hear(notification)

    def _take(self, notification: Notification, answer: Respond, *, is_last: bool = True) -> None:
        """Take what is said of a file; `is_last` unless we know already that its next transfer has
        failed: what is there now is that one's.
        """
        if notification.source in SPELLED:
            notification = self.placing.place(notification)
        if not all(map(partial(self._may_speak, notification), _paths(notification))):
            answer(Answer(Outcome.ERROR, "only who may write a file may announce it"))
            return
        if notification.source in PROFTPD and notification.path:
            # An event that waits tells how the file was closed of which this is the word.
            self._finds.hasten(notification.path)
            self._hear_of(notification)
        if notification.source is Source.RESUBMIT:
            self._resubmitter.accept(notification, answer)
            return
        match notification.kind:
            case Kind.STARTED:
                self._transfer_tracker.begin(notification, answer)
            case Kind.ENDED:
                self._transfer_tracker.end(notification.session, "its session ended")
                self._decisions.answer_durably(answer)
            case Kind.FAILED:
                self._transfer_tracker.fail(notification)
                self._decisions.answer_durably(answer)
            case Kind.RENAMED:
                if reason := self._transfer_tracker.rename(notification):
                    self._decisions.answer_durably(answer, Outcome.IGNORED, reason)
                else:
                    self._renames.follow(notification, answer)
            case Kind.COMPLETED:
                path = self._transfer_tracker.complete(notification)
                if path and not is_last:
                    answer(Answer(Outcome.IGNORED, "a later transfer has failed"))
                elif path:
                    self._complete(replace(notification, path=path), answer)
                else:
                    answer(Answer(Outcome.IGNORED, "no path"))

    def _may_speak(self, notification: Notification, path: str) -> bool:
        located = self._locate(path)
        if located is None:
            return True
        begins = notification.kind is Kind.STARTED
        return may_speak(notification, located[0].path, located[1], begins=begins)

    def _hear_of(self, notification: Notification) -> None:
        located = self._locate(notification.path)
        if located is not None and notification.kind is not Kind.STARTED:
            source = notification.source
            decisive = source is self.judge.decisive
            self.crosscheck.hear_of(located[0].name, source, decisive=decisive)

    def _complete(self, notification: Notification, answer: Respond) -> None:
        """Decide about a file that its source says is complete."""
        located = self._locate(notification.path)
        if located is None:
            answer(Answer(Outcome.IGNORED, "below no watch"))
            return
        watch, subpath = located
        path = os.path.join(watch.path, subpath)
        noticed = self.hold_queue.get(path)
        if not may_speak(notification, watch.path, subpath):
            # Another's file has taken the place of what it was said of.
            notification = Notification(Kind.COMPLETED, path, Source.INOTIFY)
        verdict = self.judge.judge(watch, subpath, notification, noticed)
        if not isinstance(verdict, Hold):
            self.hold_queue.pop(path)
            if noticed is not None and noticed.id and not isinstance(verdict, Accept | Fail):
                self._decisions.release(noticed, verdict)
        match verdict:
            case Ignore(reason):
                answer(Answer(Outcome.IGNORED, reason))
            case PassOver(state):
                self._decisions.pass_over(path, state, notification, answer)
            case Hold():
                self._decisions.hold(path, notification, noticed, verdict, answer)
            case Fail(state, reason):
                is_missed = noticed is None or not noticed.failure
                if is_missed and not isinstance(verdict, Refuse):
                    self.crosscheck.miss(watch.name, notification.source, hinted=False)
                self._decisions.fail(watch, subpath, state, notification, reason, noticed)
                answer(Answer(Outcome.IGNORED, reason))
            case Accept(state, word, ownership):
                if watch.proftpd and not self.judge.is_decisive(word):
                    hinted = word.source in PROFTPD or (noticed is not None and noticed.hooked)
                    self.crosscheck.miss(watch.name, word.source, hinted=hinted)
                self._decisions.accept(
                    watch, subpath, state, word, answer, noticed, ownership=ownership
                )

    def _named(self, notification: Notification) -> Notification:
        """Return what was said, of the one path that each file has."""
        roots = [watch.path for watch in self._settings.watches.values()]
        if notification.source is Source.RESUBMIT:
            roots += [move.destination for move in self._settings.moves.values()]
        path, old = (
            beneath.canonical(one, roots) if one else ""
            for one in (notification.path, notification.old_path)
        )
        return replace(notification, path=path, old_path=old)

    def _locate(self, path: str) -> Place | None:
        return self.rules.locate(path)

    def _superseded(self, upload: Upload) -> None:
        """See to it that the newer write is decided about, should nobody have spoken of it."""
        self._complete(Notification(Kind.COMPLETED, upload.path, Source.SCAN), nobody)

    def _gone(self, path: str, state: FileState, is_lost: bool) -> None:
        if is_lost:
            self._decisions.search(path, state)
        else:
            self._decisions.retract(path, state)

    def _renamed(self, upload: Upload) -> None:
        """Decide about a file that has another name than it had as an upload."""
        word = Notification(
            Kind.COMPLETED,
            upload.path,
            upload.source,
            user=upload.user,
            client=upload.client,
            protocol=upload.protocol,
        )
        if upload.source is Source.RESUBMIT:
            given = upload.original if upload.original != upload.path else ""
            self._resubmitter.accept(replace(word, resubmit_as=given), nobody)
        else:
            self._complete(word, nobody)

    def _replay_decision(self, upload: Upload, has_failed: bool, never_waited: bool) -> None:
        recent = self.judge.recent(upload.source_path, None)
        if recent is None or recent.decided <= upload.accepted:
            self.judge.remember(upload, failed=never_waited, closed=True)
        self._ledgers.replay(upload, has_failed=has_failed)

    def _replay_other(self, position: int, record: dict[str, Any]) -> None:
        if record["event"] == READ:
            self._checkpoints.keep(record["log"], record["mark"], position)
        if "file" in record:
            self._ledgers.replay_rename(record["path"], FileState.decode(record["file"]))
        self._decisions.replay(position, record)
        self._transfer_tracker.replay(position, record)


def _paths(notification: Notification) -> list[str]:
    return [path for path in (notification.path, notification.old_path) if path]


def _with_last_words(
    notifications: Sequence[Notification],
) -> Iterator[tuple[Notification, bool]]:
    """Yield what lines of a log say, each with whether no transfer follows that has failed later.

    Lines that are read together may be older than what is seen of their files.
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
