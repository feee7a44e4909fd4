"""What a notification means: hold the file, accept it as an upload, pass it over, or fail it."""

from __future__ import annotations

import contextlib
import logging
import os
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
from watchman.errors import JournalUnwritable, NotBelowWatch
from watchman.groupcommit import GroupCommit
from watchman.held import Held, Noticed
from watchman.journal import Journal
from watchman.judge import (
    PROFTPD,
    RECENT,
    STILL_OPEN,
    WRITING,
    Accept,
    Fail,
    Hold,
    Ignore,
    Judge,
    PassOver,
)
from watchman.ledger import Decision, Ledger
from watchman.moves import origin_of
from watchman.pipeline import Pipeline, task_of
from watchman.rules import Rules
from watchman.sessions import Transfer, Transfers, is_alive
from watchman.settings import MoveSettings, Settings, WatchSettings
from watchman.upload import Answer, FileState, Kind, Notification, Outcome, Source, State, Upload

logger = logging.getLogger(__name__)

#: Seconds within which the transfer log was read, after the session that wrote it has ended.
LOG_LAG = 1.0

Respond = Callable[[Answer], None]
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
    ) -> None:
        self._settings = settings
        self._clock = clock
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
            superseded=self._superseded,
        )
        self.held = Held()
        self.crosscheck = Crosscheck()
        self._transfers = Transfers()
        self.judge = Judge(
            rules=self.rules,
            ledgers=ledgers,
            transfers=self._transfers,
            clock=clock,
            transfer_log=bool(settings.proftpd.transfer_log),
        )
        #: By transfer log, the mark of where it was read to, and the position of its record.
        self._marked: dict[str, tuple[Any, int]] = {}
        #: While the journal is replayed: what is not over, with its position and record.
        self._noticed_before: dict[str, tuple[int, dict[str, Any]]] = {}
        self._begun_before: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        #: Paths of transfers that hooks began and ended, where the log has yet to tell of them.
        self._ended: set[str] = set()
        #: Watches with uploads that could not be written down: to be scanned when they can.
        self._missed: set[str] = set()
        #: By source: how often it spoke, and when last (epoch).
        self.heard: Counter[str] = Counter()
        self.last_heard: dict[str, float] = {}

    def start(self) -> None:
        """Replay the journal, then begin to decide."""
        self.pipeline.replay(self._replay_decision, self._replay_other)
        self._replay_transfers()
        self._forget_marks()
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
            ledger.close()

    def submit(self, notification: Notification, answer: Respond | None = None) -> None:
        """Take a notification from a source's thread, which waits while there are too many.

        `answer` is called in the dispatcher's thread once the decision is durable.
        """
        self._commit.bring(partial(self._hear, notification, answer or _nobody))

    def submit_lines(self, log: str, notifications: Sequence[Notification], mark: Any) -> bool:
        """Take what lines of a transfer log say, and a mark of where it was read to.

        Called in the source's thread. Returns once both are durable, in one commit, as a line that
        is read again after its decision could be taken for another write. False: neither is.
        """
        written: SimpleQueue[bool] = SimpleQueue()

        def durable(position: int) -> None:
            self._mark(log, mark, position)
            written.put(True)

        def work() -> None:
            for notification in notifications:
                try:
                    self._hear(notification, _nobody)
                except Exception:
                    logger.exception("No decision on %r, as a log has it.", notification.path)
            self._commit.stage(self._mark_record(log, mark), durable, lambda _: written.put(False))

        self._commit.bring(work)
        return written.get()

    def marked(self) -> dict[str, Any]:
        """Return the last mark by transfer log."""
        return {log: mark for log, (mark, _) in list(self._marked.items())}

    def _mark_record(self, log: str, mark: Any) -> dict[str, Any]:
        return {"event": "read", "log": log, "mark": mark}

    def _mark(self, log: str, mark: Any, position: int) -> None:
        """Keep a mark; None: the log is none of ours any more, and new should it come again."""
        if log in self._marked:
            self._journal.release(self._marked.pop(log)[1])
        if mark is not None:
            self._journal.hold(position)
            self._marked[log] = mark, position

    def _renew_marks(self) -> None:
        """Write marks again that alone may keep old segments from being retired."""
        for log, (mark, position) in self._marked.items():
            if not self._journal.is_current(position):

                def durable(position: int, log: str = log, mark: Any = mark) -> None:
                    self._mark(log, mark, position)

                self._commit.stage(self._mark_record(log, mark), durable, lasting=True)

    def _forget_marks(self) -> None:
        """Drop the marks of logs that left the INI file: decisions go on without their word."""
        for log in self._marked.keys() - set(self._settings.proftpd.transfer_log):

            def durable(position: int, log: str = log) -> None:
                self._mark(log, None, position)

            self._commit.stage(self._mark_record(log, None), durable, lasting=True)

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
        self._forget_marks()
        for noticed in self.held.remove(lambda path: rules.locate(path) is None):
            if noticed.id:
                self._release(noticed, Ignore("its watch left the INI file"))
        for ledger in before:
            if not any(ledger is kept for kept in ledgers.values()):
                try:
                    ledger.close()
                except OSError as e:
                    logger.warning("Ledger of a watch that was removed is not up to date: %s.", e)

    def _look_again(self) -> float:
        """Look at held files that are due, and for sessions that died; return when next, in s."""
        now = time.monotonic()
        for noticed in self.held.due(now):
            self._complete(noticed.notification, _nobody)
        for session in self._transfers.dead():
            self._end(session, "its session died")
        return self.held.patience(now)

    def _keep_house(self) -> None:
        """Do what need not be done at once."""
        if self._commit.unwritable_since:
            return
        while self._missed:
            self._rescan(self._missed.pop(), "")
        self.pipeline.forget_renames()
        self._renew_marks()
        retirable = self._journal.retirable()
        try:
            for ledger in self._ledgers.values():
                if retirable or ledger.full():
                    ledger.flush()
            if retirable:
                self._journal.retire(self._settings.history)
        except OSError as e:
            logger.warning("Journal not cleared of what is settled: %s.", e)

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
                self.judge.starts_heard = True
                self._begin(notification, answer)
            case Kind.ENDED:
                self._end(notification.session, "its session ended")
                self._answer_durably(answer)
            case Kind.FAILED:
                self._hear_failure(notification)
                self._answer_durably(answer)
            case Kind.RENAMED:
                self._rename(notification, answer)
            case Kind.COMPLETED:
                over = self._forget(notification.session, notification.path)
                if self.judge.starts_heard and self.judge.decisive is Source.LOG:
                    self._look_for_start(notification, begun=bool(over))
                self._complete(notification, answer)

    def _look_for_start(self, notification: Notification, *, begun: bool) -> None:
        """See whether hooks told of the start of a transfer that the log says is complete."""
        if notification.source is Source.HOOK and begun:
            if len(self._ended) >= RECENT:
                self._ended.clear()  # a log that is not written
            self._ended.add(notification.path)
        elif notification.source is Source.LOG:
            if not begun and notification.path not in self._ended:
                self.judge.starts_missed = True
                self.crosscheck.miss_start()
            self._ended.discard(notification.path)

    def _hear_of(self, notification: Notification) -> None:
        located = self._locate(notification.path)
        if located is not None and notification.kind is not Kind.STARTED:
            source = notification.source
            decisive = source is self.judge.decisive
            self.crosscheck.hear_of(located[0].name, source, decisive=decisive)

    def _answer_durably(self, answer: Respond) -> None:
        """Answer OK after what is staged."""
        self._commit.stage(
            None,
            lambda _: answer(Answer(Outcome.OK)),
            lambda reason: answer(Answer(Outcome.ERROR, reason)),
        )

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
                self._release(noticed, verdict)
        match verdict:
            case Ignore(reason):
                answer(Answer(Outcome.IGNORED, reason))
            case PassOver(state):
                self._pass_over(path, state, notification.source, answer)
            case Hold():
                self._hold(path, notification, noticed, verdict, answer)
            case Fail(state, reason):
                if noticed is None or not noticed.failure:
                    self.crosscheck.miss(watch.name, notification.source, hinted=False)
                self._fail(watch, subpath, state, notification, reason)
                answer(Answer(Outcome.IGNORED, reason))
            case Accept(state, word):
                if watch.proftpd and self.judge.waited_in_vain(word):
                    hinted = word.source in PROFTPD or (noticed is not None and noticed.hooked)
                    self.crosscheck.miss(watch.name, word.source, hinted=hinted)
                self._accept(watch, subpath, state, word, answer, noticed)

    def _locate(self, path: str) -> beneath.Place | None:
        return beneath.locate(self.rules, self._settings.watches.values(), path)

    def _hold(
        self,
        path: str,
        notification: Notification,
        before: Noticed | None,
        verdict: Hold,
        answer: Respond,
        failure: str = "",
    ) -> None:
        """Hold a file; what ProFTPD says of it is durable, as nobody may say it again."""
        word = verdict.word or notification
        if verdict.word is None and before is not None and notification.source not in PROFTPD:
            word = before.notification  # it could not be looked at
        noticed = self.held.hold(
            path,
            word,
            before,
            state=verdict.state,
            reason=verdict.reason,
            wait=verdict.wait,
            failure=failure,
        )
        logger.debug(
            "Noticed %r: %s. Looking again in %.1f seconds.", path, verdict.reason, verdict.wait
        )
        if notification.source not in PROFTPD:
            answer(Answer(Outcome.IGNORED, verdict.reason))
            return
        if noticed.position >= 0 and noticed.failure == (before.failure if before else ""):
            answer(Answer(Outcome.OK, noticed.id))
            return
        if not noticed.id:
            noticed.id = str(uuid.uuid4())

        def durable(position: int) -> None:
            now = self.held.get(path)
            if now is not None and now.id == noticed.id:
                if now.position >= 0:
                    self._journal.release(now.position)
                self._journal.hold(position)
                now.position = position
            answer(Answer(Outcome.OK, noticed.id))

        record = {"event": State.NOTICED.value, "at": self._clock(), "id": noticed.id}
        record |= {"path": path, "source": notification.source.value, "reason": verdict.reason}
        record |= {"user": notification.user, "client": notification.client}
        record |= {"protocol": notification.protocol}
        if noticed.failure:
            record["failure"] = noticed.failure
        self._commit.stage(record, durable, lambda reason: answer(Answer(Outcome.ERROR, reason)))

    def _release(self, noticed: Noticed, verdict: Ignore | PassOver | Fail) -> None:
        """Write down that a file, noticed durably, came to nothing."""

        def durable(_: int) -> None:
            if noticed.position >= 0:
                self._journal.release(noticed.position)

        reason = "decided about before" if isinstance(verdict, PassOver) else verdict.reason
        record = {"event": State.GONE.value, "at": self._clock(), "id": noticed.id}
        self._commit.stage({**record, "reason": reason}, durable, lasting=True)

    def _pass_over(
        self, path: str, state: FileState | None, source: Source, answer: Respond
    ) -> None:
        recent = self.judge.recent(path, state)
        if recent is not None:
            recent.sources.add(source)
        logger.debug("Passed over %r from %s: it was decided about.", path, source)
        # After what is staged: the upload that this one repeats may not be durable yet.
        self._commit.stage(
            None,
            lambda _: answer(Answer(Outcome.DUPLICATE, recent.id if recent else "-")),
            lambda reason: answer(Answer(Outcome.ERROR, reason)),
        )

    def _accept(
        self,
        watch: WatchSettings,
        subpath: str,
        state: FileState,
        notification: Notification,
        answer: Respond,
        noticed: Noticed | None = None,
    ) -> None:
        path = os.path.join(watch.path, subpath)
        upload = self._upload(watch, path, state, notification)
        if noticed is not None and noticed.id:
            upload = replace(upload, id=noticed.id)
        upload = self.pipeline.plan(upload)
        ledger = self._ledgers[watch.name]
        before = ledger.get(subpath, state)
        ledger.put(subpath, state)
        self.judge.remember(upload)
        self.pipeline.forgive(path)
        self.pipeline.arriving[upload.id] = upload

        def durable(position: int) -> None:
            if noticed is not None and noticed.position >= 0:
                self._journal.release(noticed.position)
            logger.info(
                "Accepted upload %s, noticed by %s: %r, %d bytes, for %s %s.",
                upload.id,
                upload.source,
                path,
                state.size,
                "task" if upload.task else "move",
                upload.task.name if upload.task else upload.move,
            )
            self.pipeline.wait(upload.at(position))
            del self.pipeline.arriving[upload.id]
            answer(Answer(Outcome.OK, upload.id))

        def failed(reason: str) -> None:
            del self.pipeline.arriving[upload.id]
            ledger.restore(subpath, state.inode, before)
            self._missed.add(watch.name)
            answer(Answer(Outcome.ERROR, reason))

        self._commit.stage({"event": State.ACCEPTED.value, **upload.encode()}, durable, failed)

    def _upload(
        self, watch: WatchSettings, path: str, state: FileState, notification: Notification
    ) -> Upload:
        return Upload(
            id=notification.old_id or str(uuid.uuid4()),
            watch=watch.name,
            path=path,
            original=notification.resubmit_as or path,
            state=state,
            source=notification.source,
            accepted=self._clock(),
            task=None,
            user=notification.user,
            client=notification.client,
            protocol=notification.protocol,
        )

    # Transfers, as ProFTPD's sessions tell of them.

    def _begin(self, notification: Notification, answer: Respond) -> None:
        """Remember that a session begins to write a file, and what is there now."""
        located = self._locate(notification.path) if notification.path else None
        if located is None or not notification.session:
            answer(Answer(Outcome.OK))
            return
        watch, subpath = located
        path = os.path.join(watch.path, subpath)
        before = None
        try:
            before = beneath.state(watch.path, subpath)
        except (OSError, NotBelowWatch):
            logger.debug("Nothing is at %r before its transfer.", path)

        def durable(position: int) -> None:
            self._open(Transfer(path, notification.session, before, position))
            answer(Answer(Outcome.OK))

        record = {"event": Kind.STARTED.value, "at": self._clock(), "path": path}
        record |= {"session": notification.session, "user": notification.user}
        record["before"] = before.encode() if before else None
        self._commit.stage(record, durable, lambda reason: answer(Answer(Outcome.ERROR, reason)))

    def _open(self, transfer: Transfer) -> None:
        self._journal.hold(transfer.position)
        for over in self._transfers.open(transfer):
            self._journal.release(over.position)

    def _forget(self, session: str, path: str = "") -> list[Transfer]:
        """Close a session's transfer of a path, or with "" all of them; return them."""
        if path:
            located = self._locate(path)
            path = os.path.join(located[0].path, located[1]) if located else path
        over = self._transfers.close(session, path)
        for transfer in over:
            record = {"event": Kind.ENDED.value, "at": self._clock(), "path": transfer.path}

            def durable(_: int, position: int = transfer.position) -> None:
                self._journal.release(position)

            self._commit.stage({**record, "session": session}, durable, lasting=True)
        return over

    def _end(self, session: str, reason: str) -> None:
        """Take what a session has begun and not ended for failed."""
        for transfer in self._forget(session):
            failed = Notification(Kind.FAILED, transfer.path, Source.HOOK, reason=reason)
            self._fail_transfer(failed, transfer.before, LOG_LAG)

    def _hear_failure(self, notification: Notification) -> None:
        reason = notification.reason or "ProFTPD says that its transfer failed"
        notification = replace(notification, reason=reason)
        over = self._forget(notification.session, notification.path)
        for transfer in over:
            failed = replace(notification, path=transfer.path)
            self._fail_transfer(failed, transfer.before, self._patience_of(transfer.path))
        if not over and notification.path:
            self._fail_transfer(notification, None, self._patience_of(notification.path))

    def _patience_of(self, path: str) -> float:
        """Return for how many seconds a hook's word of failure waits for the transfer log's."""
        located = self._locate(path)
        return located[0].confirm if located is not None else 0.0

    def _fail_transfer(
        self, notification: Notification, before: FileState | None, patience: float
    ) -> None:
        """Fail a file, unless the transfer that failed has not touched it.

        Where this is not the word that decides, that one is waited for, `patience` seconds.
        """
        located = self._locate(notification.path)
        if located is None or self.rules.excluded(*located) is not None:
            return
        watch, subpath = located
        path = os.path.join(watch.path, subpath)
        try:
            look = beneath.look(watch.path, subpath)
        except (OSError, NotBelowWatch) as e:
            logger.debug("A failed transfer left nothing at %r: %s.", path, e)
            return
        decision = self._ledgers[watch.name].get(subpath, look.state)
        touched = decision is None or look.state.rewritten_since(decision.size, decision.ctime)
        noticed = self.held.get(path)
        if noticed is not None and self.judge.confirms(noticed, look.state):
            touched = False
        # SFTP tells of the failure before it closes the file, and may write until then.
        if not look.writing and (look.state == before or not touched):
            return
        if look.writing or notification.source is not self.judge.decisive:
            hold = Hold("waiting for ProFTPD's transfer log", patience, look.state)
            if look.writing:
                hold = Hold(STILL_OPEN, WRITING, look.state)
            self._hold(path, notification, noticed, hold, _nobody, notification.reason)
            return
        noticed = self.held.pop(path)
        if noticed is not None and noticed.id:
            self._release(noticed, Fail(look.state, notification.reason))
        self._fail(watch, subpath, look.state, notification, notification.reason)

    def _fail(
        self,
        watch: WatchSettings,
        subpath: str,
        state: FileState,
        notification: Notification,
        reason: str,
    ) -> None:
        """List an upload as failed; its file stays, and is an upload once it is written again."""
        path = os.path.join(watch.path, subpath)
        ledger = self._ledgers[watch.name]
        before = ledger.get(subpath, state)
        ledger.put(subpath, state)
        if not self.rules.matches(path):
            return
        upload = self.pipeline.plan(self._upload(watch, path, state, notification))
        self.judge.remember(upload, failed=notification.source is not self.judge.decisive)
        self.pipeline.forgive(path)

        def failed(_: str) -> None:
            ledger.restore(subpath, state.inode, before)

        self.pipeline.fail(upload, reason, failed)

    def _rename(self, notification: Notification, answer: Respond) -> None:
        """Follow a file or a directory that was renamed within the watches."""
        old, new = self._locate(notification.old_path), self._locate(notification.path)
        if notification.is_directory:
            for located in (old, new):
                if located is not None:
                    self._ledgers[located[0].name].disturb()
            self.pipeline.follow(notification.old_path, notification.path)
            if old is not None:
                self._rename_held(os.path.join(old[0].path, old[1]), notification)
        elif old is not None and new is not None and self._was_decided(*old, *new):
            self.pipeline.follow(notification.old_path, notification.path)
            answer(Answer(Outcome.DUPLICATE, "-"))
        else:
            if old is not None and new is not None:
                notification = self._renamed_while_held(*old, *new) or notification
            self._complete(notification, answer)

    def _rename_held(self, directory: str, notification: Notification) -> None:
        """Follow the held files of a directory that was renamed."""
        for path in self.held.below(directory):
            new = notification.path + path[len(directory) :]
            self._rename(
                replace(notification, path=new, old_path=path, is_directory=False), _nobody
            )

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
    ) -> bool:
        """Whether a file was an upload under its old name; then the decision follows it."""
        if self.rules.excluded(old_watch, old) is not None:
            return False
        if not self.rules.matches(os.path.join(old_watch.path, old)):
            return False
        try:
            state = beneath.state(new_watch.path, new)
        except (OSError, NotBelowWatch):
            return False
        decision = self._ledgers[old_watch.name].get(old, state)
        if decision is None or state.rewritten_since(decision.size, decision.ctime):
            return False
        self._ledgers[new_watch.name].put(new, state)
        return True

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
            self._release(noticed, PassOver(look.state))
            noticed = None
        self._accept(watch, subpath, look.state, notification, answer, noticed)

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
        self._complete(Notification(Kind.COMPLETED, upload.path, Source.SCAN), _nobody)

    def _replay_decision(self, upload: Upload) -> None:
        self.judge.remember(upload)
        located = self.rules.locate(upload.source_path)
        if located is not None:
            watch, subpath = located
            ledger, state = self._ledgers[watch.name], upload.state
            if upload.source_state is not None:
                ledger.forget(subpath, upload.source_state.inode)
            elif ledger.get(subpath, state) != Decision(state.size, state.ctime):
                ledger.put(subpath, state)

    def _replay_other(self, position: int, record: dict[str, Any]) -> None:
        """Take up what was noticed or begun, by id or by session and path, until it ends."""
        match record["event"]:
            case State.NOTICED.value:
                self._noticed_before[record["id"]] = position, record
            case "read":
                self._mark(record["log"], record["mark"], position)
            case Kind.STARTED.value:
                self._begun_before[record["session"], record["path"]] = position, record
            case Kind.ENDED.value:
                self._begun_before.pop((record["session"], record["path"]), None)
            case _:
                self._noticed_before.pop(record.get("id", ""), None)

    def _replay_transfers(self) -> None:
        for position, record in self._noticed_before.values():
            failure = record.get("failure", "")
            notification = Notification(
                Kind.FAILED if failure else Kind.COMPLETED,
                record["path"],
                Source(record["source"]),
                user=record["user"],
                client=record["client"],
                protocol=record["protocol"],
            )
            self._journal.hold(position)
            noticed = self.held.hold(
                record["path"],
                notification,
                None,
                state=None,
                reason=record["reason"],
                # A failure may still be outdone by what the transfer log holds.
                wait=LOG_LAG if failure else 0.0,
                failure=failure,
            )
            noticed.id, noticed.position = record["id"], position
        for (session, path), (position, record) in self._begun_before.items():
            before = FileState.decode(record["before"]) if record["before"] else None
            # Of one that ended while we were down nobody can say how.
            if is_alive(session):
                self._open(Transfer(path, session, before, position))
        self._noticed_before.clear()
        self._begun_before.clear()


def _nobody(answer: Answer) -> None:
    """Answer a source that does not ask."""
