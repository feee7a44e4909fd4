"""What a notification means: hold the file, accept it as an upload, pass it over, or fail it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from watchman.config.rules import Rules
from watchman.config.settings import Settings
from watchman.dispatch.crosscheck import Crosscheck
from watchman.dispatch.decisions import Decisions
from watchman.dispatch.hold_queue import Holding
from watchman.dispatch.judge import Judge
from watchman.dispatch.placing import Placing
from watchman.dispatch.renames import Renames
from watchman.dispatch.resubmit import Resubmitter
from watchman.dispatch.transfer_tracker import TransferTracker
from watchman.dispatch.transfers import Transfers
from watchman.dispatch.verdicts import Accept, Fail, Hold, Ignore, PassOver, RecentDecisions, Refuse
from watchman.sinks.pipeline import Pipeline
from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal
from watchman.store.ledgers import Ledgers
from watchman.uploads import beneath
from watchman.uploads.access import may_speak
from watchman.uploads.outcome import Outcome
from watchman.uploads.upload import (
    PROFTPD,
    Answer,
    FileState,
    Kind,
    Notification,
    Respond,
    Source,
    Upload,
    nobody,
)

#: Sources whose paths may lead over symlinks and `..`, as a client or an operator wrote them.
SPELLED = PROFTPD | {Source.RESUBMIT}


class Handler:
    """Handles one notification after the other, in the dispatcher's thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        rules: Rules,
        journal: Journal,
        ledgers: Ledgers,
        commit: GroupCommit,
        pipeline: Pipeline,
        decide_now: Callable[[str], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """Make the parts. The function is long only because there are many of them.

        `decide_now(path)` decides at once about finds of a path that wait for their turn.
        """
        self._settings = settings
        self._rules = rules
        self._ledgers = ledgers
        self._decide_now = decide_now
        self._clock = clock
        #: By source, how many notifications it has sent, and when it sent the last one (epoch).
        self.heard: Counter[str] = Counter()
        self.last_heard: dict[str, float] = {}
        self.crosscheck = Crosscheck()
        self.placing = Placing(locate=rules.locate, monotonic=monotonic)
        self._recent = RecentDecisions()
        transfers = Transfers(monotonic=monotonic)
        self.judge = Judge(
            rules=rules,
            ledgers=ledgers,
            recent=self._recent,
            transfers=transfers,
            monotonic=monotonic,
            transfer_log=bool(settings.proftpd.transfer_log),
        )
        self.holding = Holding(journal=journal, commit=commit, clock=clock, monotonic=monotonic)
        self.decisions = Decisions(
            rules=rules,
            recent=self._recent,
            holding=self.holding,
            pipeline=pipeline,
            ledgers=ledgers,
            commit=commit,
            clock=clock,
            monotonic=monotonic,
        )
        self.transfer_tracker = TransferTracker(
            rules=rules,
            ledgers=ledgers,
            recent=self._recent,
            judge=self.judge,
            transfers=transfers,
            holding=self.holding,
            decisions=self.decisions,
            journal=journal,
            commit=commit,
            clock=clock,
        )
        self._renames = Renames(
            rules=rules,
            judge=self.judge,
            ledgers=ledgers,
            holding=self.holding,
            decisions=self.decisions,
            pipeline=pipeline,
            complete=self.complete,
        )
        self._resubmitter = Resubmitter(
            rules=rules,
            holding=self.holding,
            decisions=self.decisions,
            pipeline=pipeline,
            commit=commit,
            clock=clock,
        )

    def change(self, settings: Settings) -> None:
        """Use other settings from now on."""
        self._settings = settings
        self.judge.change(transfer_log=bool(settings.proftpd.transfer_log))
        self.crosscheck.forget()
        for held in self.holding.queue.remove(lambda path: self._rules.locate(path) is None):
            if held.id:
                self.holding.release(held, Ignore("its watch left the INI file"))

    def hear(self, notification: Notification, answer: Respond, *, is_named: bool = False) -> None:
        """Count and take a notification; `is_named` says that its paths are canonical."""
        self.count(notification)
        if notification.source in SPELLED and not is_named:
            notification = self.named(notification)
        self.take(notification, answer)

    def count(self, notification: Notification) -> None:
        self.heard[notification.source] += 1
        self.last_heard[notification.source] = self._clock()
        self.crosscheck.hear(notification)

    def take(self, notification: Notification, answer: Respond, *, is_last: bool = True) -> None:
        """Take a notification; `is_last` is False if the next transfer of its path has failed."""
        if notification.source in SPELLED:
            notification = self.placing.place(notification)
        if notification.groups is not None and not self._may_speak_of_all(notification):
            answer(Answer(Outcome.ERROR, "only who may write a file may announce it"))
            return
        if notification.source in PROFTPD and notification.path:
            # An event that waits for its turn may be the close of this very transfer.
            self._decide_now(notification.path)
            self._hear_of(notification)
        if notification.source is Source.RESUBMIT:
            self._resubmitter.accept(notification, answer)
            return
        match notification.kind:
            case Kind.STARTED:
                self.transfer_tracker.begin(notification, answer)
            case Kind.ENDED:
                self.transfer_tracker.end(notification.session, "its session ended")
                self.decisions.answer_durably(answer)
            case Kind.FAILED:
                self.transfer_tracker.fail(notification)
                self.decisions.answer_durably(answer)
            case Kind.RENAMED:
                if reason := self.transfer_tracker.rename(notification):
                    self.decisions.answer_durably(answer, Outcome.IGNORED, reason)
                else:
                    self._renames.follow(notification, answer)
            case Kind.COMPLETED:
                path = self.transfer_tracker.complete(notification)
                if path and not is_last:
                    answer(Answer(Outcome.IGNORED, "a later transfer has failed"))
                elif path:
                    if path != notification.path:
                        notification = notification._replace(path=path)
                    self.complete(notification, answer)
                else:
                    answer(Answer(Outcome.IGNORED, "no path"))

    def _may_speak_of_all(self, notification: Notification) -> bool:
        """Whether who sent a notification may speak of each path in it that is below a watch."""
        begins = notification.kind is Kind.STARTED
        paths = filter(None, (notification.path, notification.old_path))
        return all(
            may_speak(notification, located[0].path, located[1], begins=begins)
            for located in map(self._rules.locate, paths)
            if located is not None
        )

    def _hear_of(self, notification: Notification) -> None:
        located = self._rules.locate(notification.path)
        if located is not None and notification.kind is not Kind.STARTED:
            source = notification.source
            decisive = source is self.judge.decisive
            self.crosscheck.hear_of(located[0].name, source, decisive=decisive)

    def complete(self, notification: Notification, answer: Respond) -> None:
        """Decide about a file that a source calls complete."""
        located = self._rules.locate(notification.path)
        if located is None:
            answer(Answer(Outcome.IGNORED, "below no watch"))
            return
        watch, subpath = located
        path = beneath.below(watch.path, subpath)
        held = self.holding.queue.get(path)
        if not may_speak(notification, watch.path, subpath):
            # The file is another user's, which came to that name since. It still may be an upload.
            notification = Notification(Kind.COMPLETED, path, Source.INOTIFY)
        verdict = self.judge.judge(watch, subpath, notification, held)
        if not isinstance(verdict, Hold):
            self.holding.queue.pop(path)
            if held is not None and held.id and not isinstance(verdict, Accept | Fail):
                self.holding.release(held, verdict)
        match verdict:
            case Ignore(reason):
                answer(Answer(Outcome.IGNORED, reason))
            case PassOver(state):
                self.decisions.pass_over(path, state, notification, answer)
            case Hold():
                self.holding.hold(path, notification, held, verdict, answer)
            case Fail(_, reason):
                is_missed = held is None or not held.failure
                if is_missed and not isinstance(verdict, Refuse):
                    self.crosscheck.miss(watch.name, notification.source, hinted=False)
                self.decisions.fail(watch, subpath, verdict, notification, held)
                answer(Answer(Outcome.IGNORED, reason))
            case Accept(_, word):
                if watch.proftpd and not self.judge.is_decisive(word):
                    hinted = word.source in PROFTPD or (held is not None and held.hooked)
                    self.crosscheck.miss(watch.name, word.source, hinted=hinted)
                self.decisions.accept(watch, subpath, verdict, answer, held)

    def named(self, notification: Notification) -> Notification:
        """Return a notification with canonical paths. May hang on a mount that does not answer."""
        roots = [watch.path for watch in self._settings.watches.values()]
        if notification.source is Source.RESUBMIT:
            roots += [move.destination for move in self._settings.moves.values()]
        path, old = (
            beneath.canonical(one, roots) if one else ""
            for one in (notification.path, notification.old_path)
        )
        return notification._replace(path=path, old_path=old)

    def superseded(self, upload: Upload) -> None:
        """Decide about the write that came after an upload's, for perhaps no source tells of it."""
        self.complete(Notification(Kind.COMPLETED, upload.path, Source.SCAN), nobody)

    def gone(self, path: str, state: FileState, is_lost: bool) -> None:
        """Forget the decision about a file that is gone; scan for it if it `is_lost`."""
        if is_lost:
            self.decisions.search(path, state)
        else:
            self.decisions.retract(path, state)

    def renamed(self, upload: Upload) -> None:
        """Decide about a file that got another name while its upload waited."""
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
            self._resubmitter.accept(word._replace(resubmit_as=given), nobody)
        else:
            self.complete(word, nobody)

    def replay_decision(self, upload: Upload, has_failed: bool, never_waited: bool) -> None:
        recent = self._recent.get(upload.source_path)
        if recent is None or recent.decided <= upload.accepted:
            self._recent.remember(upload, failed=never_waited, closed=True)
        self._ledgers.replay(upload, has_failed=has_failed)

    def replay_other(self, position: int, record: dict[str, Any]) -> None:
        """Replay a record of the journal: each part takes what concerns it."""
        if "file" in record:
            self._ledgers.replay_rename(record["path"], FileState.decode(record["file"]))
        self.decisions.replay(record)
        self.holding.replay(position, record)
        self.transfer_tracker.replay(position, record)

    def restore(self, *, logged: bool) -> None:
        """Restore what was held or open; `logged` if the logs tell how open transfers ended."""
        self.holding.restore()
        self.transfer_tracker.restore(logged=logged)
