"""What follows from a verdict, made durable: a file is held, passed over, an upload, or failed."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from watchman.config.settings import WatchSettings
from watchman.dispatch.hold_queue import HeldFile, HoldQueue
from watchman.dispatch.judge import PROFTPD, Fail, Hold, Ignore, Judge, PassOver
from watchman.dispatch.transfers import LOG_LAG
from watchman.sinks.pipeline import Pipeline
from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.uploads import beneath
from watchman.uploads.ownership import Ownership
from watchman.uploads.upload import (
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

#: Seconds between two scans for files that went away before their turn.
SEARCH = 300.0

Respond = Callable[[Answer], None]


def nobody(_: Answer) -> None:
    """Answer a source that does not ask."""


class Decisions:
    """Carries out verdicts, in the dispatcher's thread; answers once all is durable."""

    def __init__(
        self,
        *,
        judge: Judge,
        pipeline: Pipeline,
        ledgers: Mapping[str, Ledger],
        journal: Journal,
        commit: GroupCommit,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._judge = judge
        self._pipeline = pipeline
        self._ledgers = ledgers
        self._journal = journal
        self._commit = commit
        self._clock = clock
        self._monotonic = monotonic
        self.hold_queue = HoldQueue(clock=clock, monotonic=monotonic)
        #: Watches to be scanned, and when (monotonic): uploads of theirs could not be written down,
        #: or their files were not where they had been.
        self._missed: dict[str, float] = {}
        #: When watches were searched last for such files (monotonic).
        self._searched: dict[str, float] = {}
        #: While the journal is replayed: what is not over, with its position and record.
        self._noticed_before: dict[str, tuple[int, dict[str, Any]]] = {}

    def change(self, ledgers: Mapping[str, Ledger]) -> None:
        """Write down in other ledgers from now on."""
        self._ledgers = ledgers

    def answer_durably(self, answer: Respond, outcome: Outcome = Outcome.OK, of: str = "") -> None:
        """Answer after what is staged; `of` which upload."""
        self._commit.stage(
            None,
            lambda _: answer(Answer(outcome, of)),
            lambda reason: answer(Answer(Outcome.ERROR, reason)),
        )

    def hold(
        self,
        path: str,
        notification: Notification,
        before: HeldFile | None,
        verdict: Hold,
        answer: Respond,
        failure: str = "",
    ) -> None:
        """Hold a file; what ProFTPD says of it is durable, as nobody may say it again."""
        word, overlapped = verdict.word or notification, verdict.overlapped
        if verdict.word is None and before is not None and notification.source not in PROFTPD:
            # It could not be looked at.
            word, overlapped = before.notification, before.writing or before.overlapped
        noticed = self.hold_queue.hold(
            path,
            word,
            before,
            state=verdict.state,
            reason=verdict.reason,
            wait=verdict.wait,
            writing=verdict.writing,
            overlapped=overlapped,
            unspoken=verdict.unspoken,
            failure=failure,
        )
        logger.debug(
            "HeldFile %r: %s. Looking again in %.1f seconds.", path, verdict.reason, verdict.wait
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
            now = self.hold_queue.get(path)
            if now is not None and now.id == noticed.id:
                if now.position >= 0:
                    self._journal.release(now.position)
                self._journal.hold(position)
                now.position = position
            answer(Answer(Outcome.OK, noticed.id))

        record = {"event": State.NOTICED.value, "at": self._clock(), "id": noticed.id}
        record |= {"path": path, "source": notification.source.value, "reason": verdict.reason}
        record |= {"user": notification.user, "client": notification.client}
        record |= {"protocol": notification.protocol, "uid": notification.uid}
        record["seen"] = noticed.state.encode() if noticed.state else None
        record["overlapped"] = noticed.writing or noticed.overlapped
        if noticed.failure:
            record["failure"] = noticed.failure
        self._commit.stage(record, durable, lambda reason: answer(Answer(Outcome.ERROR, reason)))

    def scans_due(self) -> list[str]:
        """Return the watches that are to be scanned now; each once."""
        now = self._monotonic()
        due = [watch for watch, when in self._missed.items() if when <= now]
        for watch in due:
            del self._missed[watch]
        return due

    def search(self, path: str, state: FileState) -> None:
        """Take back what was decided about a file that went away before its turn, and look for it.

        It may lie in a directory that was renamed while nobody told us, where no scan would take it
        for new.
        """
        now = self._monotonic()
        for watch in self.retract(path, state):
            due = max(now, self._searched.get(watch, -SEARCH) + SEARCH)
            self._searched[watch] = self._missed.setdefault(watch, due)

    def retract(self, path: str, state: FileState) -> list[str]:
        """Forget what was decided about a file as it was then; return in which watches."""
        name = os.path.basename(path)
        return [watch for watch, ledger in self._ledgers.items() if ledger.retract(name, state)]

    def release(self, noticed: HeldFile, verdict: Ignore | PassOver | Fail) -> None:
        """Write down that a file, noticed durably, came to nothing."""
        reason = "decided about before" if isinstance(verdict, PassOver) else verdict.reason
        record = {"event": State.GONE.value, "at": self._clock(), "id": noticed.id}
        record["reason"] = reason
        self._commit.stage(record, lambda _: self._let_go(noticed), lasting=True)

    def pass_over(
        self, path: str, state: FileState | None, notification: Notification, answer: Respond
    ) -> None:
        """Answer that a write was decided about."""
        recent = self._judge.recent(path, state)
        if recent is not None:
            recent.sources.add(notification.source)
            recent.closed |= notification.closed
        logger.debug("Passed over %r from %s: it was decided about.", path, notification.source)
        # After what is staged: the upload that this one repeats may not be durable yet.
        self.answer_durably(answer, Outcome.DUPLICATE, recent.id if recent else "-")

    def accept(
        self,
        watch: WatchSettings,
        subpath: str,
        state: FileState,
        notification: Notification,
        answer: Respond,
        noticed: HeldFile | None = None,
        *,
        ownership: Ownership,
    ) -> None:
        """Make an upload of a file, and hand it on; `noticed` is how it was held."""
        path = os.path.join(watch.path, subpath)
        upload = self._upload(watch, path, state, notification, noticed)
        upload = replace(upload, owner=(ownership.user, ownership.group))
        ledger = self._ledgers[watch.name]
        before = ledger.get(subpath, state)
        ledger.put(subpath, state, sample=upload.sample, waiting=True)
        recent = self._judge.recent(path, None)
        self._judge.remember(upload, closed=notification.closed)
        self._pipeline.arriving[upload.id] = upload

        def durable(position: int) -> None:
            if noticed is not None:
                self._let_go(noticed)
            self._pipeline.failures.forgive(path)
            logger.info(
                "Accepted upload %s, noticed by %s: %r, %d bytes, for %s %s.",
                upload.id,
                upload.source,
                path,
                state.size,
                "task" if upload.task else "move",
                upload.task.name if upload.task else upload.move,
            )
            self._pipeline.wait(upload.at(position))
            del self._pipeline.arriving[upload.id]
            answer(Answer(Outcome.OK, upload.id))

        def failed(reason: str) -> None:
            del self._pipeline.arriving[upload.id]
            ledger.restore(subpath, state, before)
            self._judge.restore(path, recent)
            self._missed[watch.name] = 0.0
            if noticed is not None and noticed.id:
                self.hold_queue.put_back(noticed)
            answer(Answer(Outcome.ERROR, reason))

        self._commit.stage({"event": State.ACCEPTED.value, **upload.encode()}, durable, failed)

    def fail(
        self,
        watch: WatchSettings,
        subpath: str,
        state: FileState,
        notification: Notification,
        reason: str,
        noticed: HeldFile | None = None,
    ) -> None:
        """List an upload as failed; its file stays, and is an upload once it is written again.

        `noticed` is how it was held: whoever was answered with an id finds it by that.
        """
        path = os.path.join(watch.path, subpath)
        if not self._judge.matches(path):
            self._ledgers[watch.name].put(subpath, state)
            if noticed is not None and noticed.id:
                self.release(noticed, Fail(state, reason))
            return
        upload = self._upload(watch, path, state, notification, noticed)
        self._ledgers[watch.name].put(subpath, state, sample=upload.sample)
        self._judge.remember(upload, failed=True)
        self._pipeline.fail(upload, reason)
        if noticed is not None:
            self._commit.stage(None, lambda _: self._let_go(noticed), lasting=True)

    def _let_go(self, noticed: HeldFile) -> None:
        """Keep the record no longer that a file was noticed."""
        if noticed.position >= 0:
            self._journal.release(noticed.position)

    def _upload(
        self,
        watch: WatchSettings,
        path: str,
        state: FileState,
        notification: Notification,
        noticed: HeldFile | None,
    ) -> Upload:
        noticed_id = noticed.id if noticed is not None else ""
        upload = Upload(
            id=noticed_id or notification.old_id or str(uuid.uuid4()),
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
            root=beneath.identity(watch.path),
            sample=beneath.sample(watch.path, path[len(watch.path) :].lstrip("/"), state) or 0,
        )
        return self._pipeline.plan(upload)

    # At start.

    def replay(self, position: int, record: dict[str, Any]) -> None:
        """Take up what was noticed, by id, until it ends; forget decisions that came to nothing."""
        if "gone" in record:
            names = [[record["path"], record["gone"]], *record.get("names", ())]
            for path, state in names:
                self.retract(path, FileState.decode(state))
        if record["event"] == State.NOTICED.value:
            self._noticed_before[record["id"]] = position, record
        else:
            self._noticed_before.pop(record.get("id", ""), None)

    def restore(self) -> None:
        """Hold again what was held when the journal ended."""
        for position, record in self._noticed_before.values():
            failure = record.get("failure", "")
            notification = Notification(
                Kind.FAILED if failure else Kind.COMPLETED,
                record["path"],
                Source(record["source"]),
                user=record["user"],
                client=record["client"],
                protocol=record["protocol"],
                uid=record.get("uid"),
            )
            self._journal.hold(position)
            noticed = self.hold_queue.hold(
                record["path"],
                notification,
                None,
                state=FileState.decode(seen) if (seen := record.get("seen")) else None,
                reason=record["reason"],
                # A failure may still be outdone by what the transfer log holds.
                wait=LOG_LAG if failure else 0.0,
                overlapped=record["overlapped"],
                failure=failure,
            )
            noticed.id, noticed.position = record["id"], position
        self._noticed_before.clear()
