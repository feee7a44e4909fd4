"""Carries out verdicts: a file becomes an upload, is passed over, or is listed as failed."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from watchman.config.rules import Rules
from watchman.config.settings import WatchSettings
from watchman.dispatch.hold_queue import HeldFile, Holding
from watchman.dispatch.verdicts import Accept, Fail, RecentDecisions
from watchman.sinks.pipeline import Pipeline
from watchman.store.groupcommit import GroupCommit
from watchman.store.ledger import Ledger
from watchman.uploads import beneath
from watchman.uploads.outcome import Outcome
from watchman.uploads.upload import (
    Answer,
    FileState,
    Notification,
    Respond,
    State,
    Upload,
)

logger = logging.getLogger(__name__)

#: Seconds between two scans of a watch in search of files that went away before their turn.
SEARCH = 300.0


@dataclass(kw_only=True, eq=False)
class Decisions:
    """Carries out verdicts, and answers once everything is durable.

    Only the dispatcher's thread calls it.
    """

    rules: Rules
    recent: RecentDecisions
    holding: Holding
    pipeline: Pipeline
    ledgers: Mapping[str, Ledger]
    commit: GroupCommit
    clock: Callable[[], float]
    monotonic: Callable[[], float]

    #: By watch that is to be scanned, when (monotonic). An upload of it could not be written down,
    #: or a file was not where it had been.
    _missed: dict[str, float] = field(default_factory=dict, init=False)
    #: By watch, for when (monotonic) the last scan in search of such a file was set.
    _searched: dict[str, float] = field(default_factory=dict, init=False)

    def answer_durably(self, answer: Respond, outcome: Outcome = Outcome.OK, of: str = "") -> None:
        """Answer once everything that is staged is durable. `of` is the answer's detail."""
        self.commit.stage(
            None,
            lambda _: answer(Answer(outcome, of)),
            lambda reason: answer(Answer(Outcome.ERROR, reason)),
        )

    def scans_due(self) -> list[str]:
        """Return the watches that are to be scanned now, each once."""
        now = self.monotonic()
        due = [watch for watch, when in self._missed.items() if when <= now]
        for watch in due:
            del self._missed[watch]
        return due

    def search(self, path: str, state: FileState) -> None:
        """Forget the decision about a file that went away before its turn, and scan for the file.

        Its directory may have been renamed while watchman was down or inotify lost events. There
        its name and inode are the same, so that without this each scan would pass it over.
        """
        now = self.monotonic()
        for watch in self.retract(path, state):
            due = max(now, self._searched.get(watch, -SEARCH) + SEARCH)
            self._searched[watch] = self._missed.setdefault(watch, due)

    def retract(self, path: str, state: FileState) -> list[str]:
        """Forget the decision about a file in this state; return the watches that had one."""
        name = os.path.basename(path)
        return [watch for watch, ledger in self.ledgers.items() if ledger.retract(name, state)]

    def pass_over(
        self, path: str, state: FileState | None, notification: Notification, answer: Respond
    ) -> None:
        """Answer DUPLICATE, and note that this source has spoken of the write as well."""
        recent = self.recent.get(path, state)
        if recent is not None:
            recent.sources.add(notification.source)
            recent.closed |= notification.closed
        logger.debug("Passed over %r from %s: it was decided about.", path, notification.source)
        # Not at once, for the upload that was made of the write may not be durable yet.
        self.answer_durably(answer, Outcome.DUPLICATE, recent.id if recent else "-")

    def accept(
        self,
        watch: WatchSettings,
        subpath: str,
        verdict: Accept,
        answer: Respond,
        held: HeldFile | None = None,
    ) -> None:
        """Make an upload of a file. It waits for its move or its broker once it is durable.

        `held` is how the file was held, None if it was not. If the record cannot be written, all is
        undone, the answer is ERROR, and the watch will be scanned.
        """
        path, state = beneath.below(watch.path, subpath), verdict.state
        upload = self._upload(watch, path, verdict, verdict.word, held)
        ledger = self.ledgers[watch.name]
        before = ledger.put(subpath, state, sample=upload.sample, waiting=True)
        recent = self.recent.get(path)
        self.recent.remember(upload, closed=verdict.word.closed)
        self.pipeline.arriving[upload.id] = upload

        def durable(position: int) -> None:
            self.holding.forget(held)
            self.pipeline.failures.forgive(path)
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
            self.pipeline.steps.count(State.ACCEPTED, upload, upload.accepted)
            del self.pipeline.arriving[upload.id]
            answer(Answer(Outcome.OK, upload.id))

        def failed(reason: str) -> None:
            del self.pipeline.arriving[upload.id]
            ledger.restore(subpath, state, before)
            self.recent.restore(path, recent)
            self._missed[watch.name] = 0.0
            if held is not None and held.id:
                self.holding.queue.put_back(held)
            answer(Answer(Outcome.ERROR, reason))

        self.commit.stage({"event": State.ACCEPTED, **upload.encode()}, durable, failed)

    def fail(
        self,
        watch: WatchSettings,
        subpath: str,
        verdict: Fail,
        notification: Notification,
        held: HeldFile | None = None,
    ) -> None:
        """List an upload as failed. Its file stays, and becomes an upload once it is written again.

        `held` is how the file was held. If a source was answered with an id, the upload has that.
        """
        path = beneath.below(watch.path, subpath)
        if not self.rules.matches(path):
            self.ledgers[watch.name].put(subpath, verdict.state)
            if held is not None and held.id:
                self.holding.release(held, verdict)
            return
        upload = self._upload(watch, path, verdict, notification, held)
        self.ledgers[watch.name].put(subpath, upload.state, sample=upload.sample)
        self.recent.remember(upload, failed=True)
        self.pipeline.fail(upload, verdict.reason)
        if held is not None:
            self.commit.stage(None, lambda _: self.holding.forget(held), lasting=True)

    def _upload(
        self,
        watch: WatchSettings,
        path: str,
        verdict: Accept | Fail,
        notification: Notification,
        held: HeldFile | None,
    ) -> Upload:
        held_id = held.id if held is not None else ""
        owner = verdict.ownership if isinstance(verdict, Accept) else None
        upload = Upload(
            id=held_id or notification.old_id or str(uuid.uuid4()),
            watch=watch.name,
            path=path,
            original=notification.resubmit_as or path,
            state=verdict.state,
            source=notification.source,
            accepted=self.clock(),
            task=None,
            user=notification.user,
            client=notification.client,
            protocol=notification.protocol,
            root=beneath.identity(watch.path),
            sample=verdict.sample,
            owner=(owner.user, owner.group) if owner is not None else None,
        )
        return self.pipeline.plan(upload)

    def replay(self, record: dict[str, Any]) -> None:
        """Replay a record, which may say that a file was gone and its decisions were forgotten."""
        if "gone" in record:
            for path, state in [[record["path"], record["gone"]], *record.get("names", ())]:
                self.retract(path, FileState.decode(state))
