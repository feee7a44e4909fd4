"""What a notification means: hold the file, accept it as an upload, pass it over, or fail it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from watchman import beneath
from watchman.crosscheck import Crosscheck
from watchman.decisions import Decisions, Respond, nobody
from watchman.endings import Endings
from watchman.errors import JournalUnwritable, NotBelowWatch
from watchman.groupcommit import SLICE, GroupCommit
from watchman.journal import Journal
from watchman.judge import (
    PROFTPD,
    Accept,
    Fail,
    Hold,
    Ignore,
    Judge,
    PassOver,
)
from watchman.ledger import Ledger, key
from watchman.marks import READ, Marks
from watchman.moves import origin_of
from watchman.pipeline import Pipeline, task_of
from watchman.rules import Rules
from watchman.sessions import Transfers
from watchman.settings import MoveSettings, Settings, WatchSettings
from watchman.upload import (
    Answer,
    FileState,
    Kind,
    Notification,
    Outcome,
    Source,
    State,
    Upload,
)

logger = logging.getLogger(__name__)

#: Finds of scans that wait to be decided about, at the most.
FINDS = 200

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
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` tells the time that files and records bear, `monotonic` how long a wait was."""
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self.rules = Rules(settings)
        self._journal = journal
        self._ledgers = ledgers
        self._rescan = rescan
        self._commit = GroupCommit(journal, timer=self._look_again, idle=self._keep_house)
        self.pipeline = Pipeline(
            settings,
            rules=self.rules,
            journal=journal,
            ledgers=ledgers,
            commit=self._commit,
            settled=self._settled,
            superseded=self._superseded,
            gone=self._gone,
            monotonic=monotonic,
        )
        self.crosscheck = Crosscheck()
        transfers = Transfers()
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
        self.held = self._decisions.held
        self._endings = Endings(
            locate=self._locate,
            judge=self.judge,
            transfers=transfers,
            decisions=self._decisions,
            crosscheck=self.crosscheck,
            journal=journal,
            commit=self._commit,
            clock=clock,
        )
        self._finds = threading.Semaphore(FINDS)
        #: Whether the last try to clear ledgers and journal failed.
        self._uncleared = False
        self._marks = Marks(journal=journal, commit=self._commit)
        #: By source: how often it spoke, and when last (epoch).
        self.heard: Counter[str] = Counter()
        self.last_heard: dict[str, float] = {}

    def start(self) -> None:
        """Replay the journal, then begin to decide."""
        self.pipeline.replay(self._replay_decision, self._replay_other)
        if self._journal.damaged:
            self._look_for_lost()
        self._decisions.take_up()
        logs = self._settings.proftpd.transfer_log
        self._endings.take_up(logged=bool(logs) and self.marked().keys() >= set(logs))
        self._marks.forget(self._settings.proftpd.transfer_log)
        self._commit.start()

    def stop(self) -> None:
        """Decide about what was submitted, then end."""
        self._commit.stop()

    def join(self) -> None:
        """Wait for the end: all is committed."""
        self._commit.join()

    def close(self) -> None:
        """Close the ledgers, after the end."""
        for ledger in self._ledgers.values():
            # A decision that never became durable must be made again.
            if not self._commit.unwritable_since:
                _close(ledger)

    def submit(self, notification: Notification, answer: Respond | None = None) -> None:
        """Take a notification from a source's thread, which waits while there are too many.

        `answer` is called in the dispatcher's thread once the decision is durable.
        """
        self._commit.bring(partial(self._hear, notification, answer or nobody))

    def submit_find(self, notification: Notification) -> None:
        """Take what a scan has found, which waits its turn: there may be a million of them.

        Few at once, for whoever speaks meanwhile is heard after those.
        """
        self._finds.acquire()
        self._commit.bring(partial(self._hear_find, notification))

    def submit_lines(self, log: str, notifications: Sequence[Notification], mark: Any) -> bool:
        """Take what lines of a transfer log say, and a mark of where it was read to.

        Called in the source's thread. Returns once both are durable, in one commit, as a line that
        is read again after its decision could be taken for another write. False: neither is.
        """
        written: SimpleQueue[bool] = SimpleQueue()

        def work() -> None:
            for notification in notifications:
                try:
                    self._hear(notification, nobody)
                except Exception:
                    logger.exception("No decision on %r, as a log has it.", notification.path)
            self._marks.stage(log, mark, lambda: written.put(True), lambda _: written.put(False))

        self._commit.bring(work)
        return written.get()

    def caught_up(self) -> None:
        """Be told that the transfer logs were read to their end, what was submitted included."""
        self._commit.bring(self._endings.catch_up)

    def marked(self) -> dict[str, Any]:
        """Return the last mark by transfer log."""
        return self._marks.values()

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

    # The dispatcher's thread.

    def _change(self, settings: Settings, rules: Rules, ledgers: Mapping[str, Ledger]) -> None:
        before = self._ledgers.values()
        self._settings, self._ledgers, self.rules = settings, ledgers, rules
        self.pipeline.change(settings, rules=rules, ledgers=ledgers)
        log = bool(settings.proftpd.transfer_log)
        self.judge.change(rules=rules, ledgers=ledgers, transfer_log=log)
        self.crosscheck.forget()
        self._decisions.change(ledgers)
        self._marks.forget(settings.proftpd.transfer_log)
        for noticed in self.held.remove(lambda path: rules.locate(path) is None):
            if noticed.id:
                self._decisions.release(noticed, Ignore("its watch left the INI file"))
        for ledger in before:
            if not any(ledger is kept for kept in ledgers.values()):
                # Once the journal has what was decided until now.
                self._commit.stage(None, partial(_close, ledger), lasting=True)

    def _look_again(self) -> float:
        """Look at held files that are due, and for sessions that died; return when next, in s."""
        now = self._monotonic()
        for noticed in self.held.due(now):
            self._complete(noticed.notification, nobody)
        return min(self._endings.look_for_dead(), self.held.patience(now))

    def _keep_house(self) -> None:
        """Do what need not be done at once."""
        if self._commit.unwritable_since:
            return
        for watch in self._decisions.scans_due():
            self._rescan(watch, "")
        try:
            self._clear()
        except OSError as e:
            if not self._uncleared:
                logger.warning("Journal not cleared of what is settled: %s. Trying again.", e)
            self._uncleared = True
        else:
            self._uncleared = False
        if not self.pipeline.waiting():
            self.pipeline.whereabouts.forget_renames()
        self.pipeline.failures.forget(self._clock() - self._settings.keep_failed)
        self._marks.renew()

    def _clear(self) -> None:
        """Have the ledgers hold what is decided, and the journal let go of what is settled."""
        retirable, wasteful = self._journal.retirable(), self._journal.wasteful()
        for ledger in self._ledgers.values():
            if retirable or wasteful or ledger.full():
                ledger.flush()
        if retirable:
            self._journal.retire(self._settings.history)
        until = time.monotonic() + SLICE
        while wasteful:
            self._journal.compact()
            wasteful = self._journal.wasteful() and time.monotonic() < until

    def _hear_find(self, notification: Notification) -> None:
        self._finds.release()
        self._hear(notification, nobody)

    def _hear(self, notification: Notification, answer: Respond) -> None:
        self.heard[notification.source.value] += 1
        self.last_heard[notification.source.value] = self._clock()
        self.crosscheck.hear(notification)
        if notification.source in PROFTPD and notification.path:
            self._hear_of(notification)
        if notification.source is Source.RESUBMIT:
            self._resubmit(notification, answer)
            return
        match notification.kind:
            case Kind.STARTED:
                self._endings.begin(notification, answer)
            case Kind.ENDED:
                self._endings.end(notification.session, "its session ended")
                self._decisions.answer_durably(answer)
            case Kind.FAILED:
                self._endings.fail(notification)
                self._decisions.answer_durably(answer)
            case Kind.RENAMED:
                if reason := self._endings.rename(notification):
                    self._decisions.answer_durably(answer, Outcome.IGNORED, reason)
                else:
                    self._rename(notification, answer)
            case Kind.COMPLETED:
                path = self._endings.complete(notification)
                if path:
                    self._complete(replace(notification, path=path), answer)
                else:
                    answer(Answer(Outcome.IGNORED, "no path"))

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
        noticed = self.held.get(path)
        verdict = self.judge.judge(watch, subpath, notification, noticed)
        if not isinstance(verdict, Hold):
            self.held.pop(path)
            if noticed is not None and noticed.id and not isinstance(verdict, Accept):
                self._decisions.release(noticed, verdict)
        match verdict:
            case Ignore(reason):
                answer(Answer(Outcome.IGNORED, reason))
            case PassOver(state):
                self._decisions.pass_over(path, state, notification.source, answer)
            case Hold():
                found_in = watch.name if notification.source is Source.SCAN else ""
                self._decisions.hold(path, notification, noticed, verdict, answer, watch=found_in)
            case Fail(state, reason):
                if noticed is None or not noticed.failure:
                    self.crosscheck.miss(watch.name, notification.source, hinted=False)
                self._decisions.fail(watch, subpath, state, notification, reason)
                answer(Answer(Outcome.IGNORED, reason))
            case Accept(state, word):
                if watch.proftpd and self.judge.waited_in_vain(word):
                    hinted = word.source in PROFTPD or (noticed is not None and noticed.hooked)
                    self.crosscheck.miss(watch.name, word.source, hinted=hinted)
                self._decisions.accept(watch, subpath, state, word, answer, noticed)

    def _locate(self, path: str) -> beneath.Place | None:
        return beneath.locate(self.rules, self._settings.watches.values(), path)

    def _rename(self, notification: Notification, answer: Respond) -> None:
        """Follow a file or a directory that was renamed within the watches."""
        old, new = self._locate(notification.old_path), self._locate(notification.path)
        if notification.is_directory:
            for located in (old, new):
                if located is not None:
                    self._ledgers[located[0].name].disturb()
            self.pipeline.whereabouts.follow(notification.old_path, notification.path)
            if old is not None:
                self._rename_held(os.path.join(old[0].path, old[1]), notification)
        elif old is not None and new is not None and (inode := self._was_decided(*old, *new)):
            self.pipeline.whereabouts.follow(notification.old_path, notification.path, inode)
            self._decisions.answer_durably(answer, Outcome.DUPLICATE, "-")
        else:
            if old is not None and new is not None:
                notification = self._renamed_while_held(*old, *new) or notification
            self._complete(notification, answer)

    def _rename_held(self, directory: str, notification: Notification) -> None:
        """Follow the held files of a directory that was renamed."""
        for path in self.held.below(directory):
            new = notification.path + path[len(directory) :]
            self._rename(replace(notification, path=new, old_path=path, is_directory=False), nobody)

    def _renamed_while_held(
        self, old_watch: WatchSettings, old: str, watch: WatchSettings, subpath: str
    ) -> Notification | None:
        """Return what ProFTPD has said of a held file, as said of its new name."""
        noticed = self.held.get(os.path.join(old_watch.path, old))
        if noticed is None:
            return None
        try:
            state = beneath.state(watch.path, subpath)
        except (OSError, NotBelowWatch):
            return None
        if not self.judge.confirms(noticed, state):
            return None
        path = os.path.join(watch.path, subpath)
        return replace(noticed.notification, kind=Kind.COMPLETED, path=path)

    def _was_decided(
        self, old_watch: WatchSettings, old: str, new_watch: WatchSettings, new: str
    ) -> int:
        """Let the decision follow a file that was an upload under its old name.

        Return the file's inode, 0 if it was none.
        """
        if self.rules.excluded(old_watch, old) is not None:
            return 0
        if not self.rules.matches(os.path.join(old_watch.path, old)):
            return 0
        try:
            state = beneath.state(new_watch.path, new)
        except (OSError, NotBelowWatch):
            return 0
        if not self.judge.was_decided(old_watch, old, state):
            return 0
        self._ledgers[new_watch.name].put(new, state)
        return state.inode

    def _resubmit(self, notification: Notification, answer: Respond) -> None:
        """Accept a file that an operator names, whatever was decided about it."""
        located = self._locate(notification.path)
        move = self.rules.moved_by(notification.path)
        if move is not None:
            self._resubmit_moved(notification, move, answer)
            return
        if located is None:
            answer(Answer(Outcome.ERROR, "below no watch and no move's destination"))
            return
        watch, subpath = located
        path = os.path.join(watch.path, subpath)
        if not self.rules.matches(path, notification.resubmit_as):
            answer(Answer(Outcome.ERROR, "no task matches"))
            return
        try:
            look = beneath.look(watch.path, subpath)
        except (OSError, NotBelowWatch) as e:
            answer(Answer(Outcome.ERROR, getattr(e, "strerror", None) or str(e)))
            return
        if look.writing:
            answer(Answer(Outcome.ERROR, "it is being written"))
            return
        noticed = self.held.pop(path)
        if noticed is not None and noticed.id and notification.old_id:
            self._decisions.release(noticed, PassOver(look.state))
            noticed = None
        self._decisions.accept(watch, subpath, look.state, notification, answer, noticed)

    def _resubmit_moved(
        self, notification: Notification, move: MoveSettings, answer: Respond
    ) -> None:
        """Have the task of a file sent again that was moved; it stays where it is."""
        path = notification.path
        original = notification.resubmit_as or origin_of(move, path)
        tasks = self.rules.tasks_for(original)
        if not tasks:
            answer(Answer(Outcome.ERROR, f"no task matches it as {original}; give --as PATH"))
            return
        try:
            look = beneath.look(move.destination, os.path.relpath(path, move.destination))
        except (OSError, NotBelowWatch) as e:
            answer(Answer(Outcome.ERROR, getattr(e, "strerror", None) or str(e)))
            return
        located = self.rules.locate(original)
        upload = Upload(
            id=notification.old_id or str(uuid.uuid4()),
            watch=located[0].name if located else "",
            path=path,
            original=original,
            state=look.state,
            # As it was moved already: nobody looks for it below a watch.
            source_state=look.state,
            source=notification.source,
            accepted=self._clock(),
            task=None,
        )
        upload = replace(upload, task=task_of(upload, tasks[0]))

        def durable(position: int) -> None:
            self.pipeline.wait(upload.at(position))
            answer(Answer(Outcome.OK, upload.id))

        self._commit.stage(
            {"event": State.ACCEPTED.value, **upload.encode()},
            durable,
            lambda reason: answer(Answer(Outcome.ERROR, reason)),
        )

    def _superseded(self, upload: Upload) -> None:
        """See to it that the newer write is decided about, should nobody have spoken of it."""
        self._complete(Notification(Kind.COMPLETED, upload.path, Source.SCAN), nobody)

    def _gone(self, path: str, state: FileState) -> None:
        self._decisions.search(path, state)

    def _replay_decision(self, upload: Upload, has_failed: bool) -> None:
        self.judge.remember(upload, failed=has_failed)
        located = self.rules.locate(upload.source_path)
        if located is not None:
            watch, subpath = located
            ledger, state = self._ledgers[watch.name], upload.state
            if upload.source_state is not None:
                ledger.forget(subpath, upload.source_state.inode)
            else:
                decision = ledger.get(subpath, state)
                if decision is None or not decision.is_of(state):
                    ledger.put(subpath, state, waiting=not has_failed)
                elif has_failed:
                    ledger.settle(subpath, state)
            if ledger.full():
                self._flush_early(ledger)

    def _settled(self, upload: Upload) -> None:
        """Have the ledger know that it alone need know of an upload's file."""
        located = self.rules.locate(upload.source_path)
        if located is not None:
            self._ledgers[located[0].name].settle(located[1], upload.state)

    def _look_for_lost(self) -> None:
        """Have the scans that begin with every start find the files again whose record is lost.

        A ledger may know of the decision, which would have them passed over.
        """
        recorded = {
            key(upload.source_path, (upload.source_state or upload.state).inode)
            for upload in map(Upload.decode, self._journal.decisions())
        }
        for ledger in self._ledgers.values():
            if lost := ledger.doubt(recorded.__contains__):
                logger.warning(
                    "%d files had been accepted, and no record of it is left. Scanning for them.",
                    lost,
                )

    def _flush_early(self, ledger: Ledger) -> None:
        """While the journal is replayed, which may hold a million decisions."""
        try:
            ledger.flush()
        except OSError as e:
            logger.warning("Ledger kept in memory, it cannot be written: %s.", e.strerror)

    def _replay_other(self, position: int, record: dict[str, Any]) -> None:
        if record["event"] == READ:
            self._marks.keep(record["log"], record["mark"], position)
        self._decisions.replay(position, record)
        self._endings.replay(position, record)


def _close(ledger: Ledger, _: int = 0) -> None:
    try:
        ledger.close()
    except OSError as e:
        # All that it lacks stands in the journal.
        logger.warning("Ledger closed as it was, it cannot be written: %s.", e)
