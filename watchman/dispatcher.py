"""What a notification means: hold the file, accept it as an upload, or pass it over."""

from __future__ import annotations

import heapq
import logging
import os
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from watchman import beneath
from watchman.errors import NotBelowWatch
from watchman.groupcommit import GroupCommit
from watchman.journal import Journal
from watchman.ledger import Decision, Ledger
from watchman.pipeline import Pipeline, task_of
from watchman.rules import Rules
from watchman.settings import CONFIRM, Settings, TaskSettings, WatchSettings
from watchman.upload import Answer, FileState, Kind, Notification, Outcome, Source, State, Upload

logger = logging.getLogger(__name__)

#: Latest decisions whose upload id, time and sources are remembered.
RECENT = 10_000

#: Seconds a file must be unchanged where the kernel does not tell of writers.
QUIET = 1.0

#: Seconds until a file that is being written is looked at again unasked: at first, and at most.
#: Whoever closes it is heard, if it is watched; the rest is for files that are not.
WRITING, WRITING_MOST = 1.0, 60.0

#: Seconds until a file is looked at again that a disk or a right keeps from being looked at.
BARRED = 10.0

#: Of a file that could not be looked at.
UNSEEN = FileState(0, 0, 0, 0, 0)

Respond = Callable[[Answer], None]


@dataclass(slots=True)
class Noticed:
    """A file that is not accepted yet, and why; `since` in epoch seconds, the rest monotonic."""

    notification: Notification
    reason: str
    since: float
    due: float
    state: FileState
    unchanged_since: float
    looks: int


@dataclass(slots=True)
class Recent:
    """What a ledger has no room for: the upload's id, when it was decided (epoch), who spoke."""

    id: str
    decided: float
    sources: set[Source]


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
        self._noticed: dict[str, Noticed] = {}
        self._due: list[tuple[float, str]] = []
        self._recent: OrderedDict[tuple[str, int], Recent] = OrderedDict()
        #: Watches with uploads that could not be written down: to be scanned when they can.
        self._missed: set[str] = set()
        #: By source: how often it spoke, and when last (epoch).
        self.heard: Counter[str] = Counter()
        self.last_heard: dict[str, float] = {}
        #: By watch: files that no task matches, and those excluded.
        self.unmatched: Counter[str] = Counter()
        self.excluded: Counter[str] = Counter()

    def start(self) -> None:
        """Replay the journal, then begin to decide."""
        self.pipeline.replay(self._replay_decision)
        self._commit.start()

    def stop(self) -> None:
        """Decide about what was submitted, then end."""
        self._commit.stop()

    def join(self) -> None:
        """Wait for the end: all is committed."""
        self._commit.join()

    def submit(self, notification: Notification, answer: Respond | None = None) -> None:
        """Take a notification from a source's thread, which waits while there are too many.

        `answer` is called in the dispatcher's thread once the decision is durable.
        """
        self._commit.bring(partial(self._hear, notification, answer or _nobody))

    def unwritable(self) -> bool:
        """Whether the journal cannot be written at present."""
        return bool(self._commit.unwritable_since)

    def noticed(self) -> list[dict[str, Any]]:
        """Return the files that are not accepted yet, as `watchman queue` shows them."""
        now = time.monotonic()
        return [
            {"id": None, "state": State.NOTICED.value, "path": path, "original": path}
            | {"watch": None, "task": None, "broker": None, "since": noticed.since}
            | {"attempts": noticed.looks, "next_try": time.time() + noticed.due - now}
            | {"reason": noticed.reason}
            for path, noticed in list(self._noticed.items())
        ]

    # The dispatcher's thread.

    def _look_again(self) -> float:
        """Look at noticed files that are due; return the seconds until the next one is."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due, path = heapq.heappop(self._due)
            noticed = self._noticed.get(path)
            if noticed is not None and noticed.due == due:
                self._complete(noticed.notification, _nobody)
        return min(self._due[0][0] - now, 1.0) if self._due else 1.0

    def _keep_house(self) -> None:
        """Do what need not be done at once."""
        if self._commit.unwritable_since:
            return
        while self._missed:
            self._rescan(self._missed.pop(), "")
        self.pipeline.forget_renames()
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
        if notification.source is Source.RESUBMIT:
            self._resubmit(notification, answer)
        elif notification.kind is Kind.RENAMED:
            self._rename(notification, answer)
        else:
            self._complete(notification, answer)

    def _complete(self, notification: Notification, answer: Respond) -> None:
        """Decide about a file that its source says is complete."""
        located = self._locate(notification.path)
        if located is None:
            answer(Answer(Outcome.IGNORED, "below no watch"))
            return
        watch, subpath = located
        path = os.path.join(watch.path, subpath)
        noticed = self._noticed.pop(path, None)
        pattern = self.rules.excluded(watch, subpath)
        if pattern is not None:
            self.excluded[watch.name] += 1
            answer(Answer(Outcome.IGNORED, f"excluded by {pattern}"))
            return
        try:
            look = beneath.look(watch.path, subpath)
        except FileNotFoundError:
            answer(Answer(Outcome.IGNORED, "no such file"))
            return
        except NotBelowWatch as e:
            answer(Answer(Outcome.IGNORED, str(e)))
            return
        except OSError as e:
            reason = e.strerror or str(e)
            self._hold(path, notification, noticed, UNSEEN, reason, BARRED)
            answer(Answer(Outcome.IGNORED, reason))
            return
        if not self._is_new(watch, subpath, look.state, notification.source):
            self._pass_over(path, look.state, notification.source, answer)
            return
        reason, wait = self._must_wait(noticed, look)
        if reason:
            self._hold(path, notification, noticed, look.state, reason, wait)
            answer(Answer(Outcome.IGNORED, reason))
            return
        tasks = self.rules.tasks_for(path)
        if not tasks:
            self._ledgers[watch.name].put(subpath, look.state)
            self.unmatched[watch.name] += 1
            answer(Answer(Outcome.IGNORED, "no task matches"))
            return
        self._accept(watch, subpath, look.state, tasks[0], notification, answer)

    def _locate(self, path: str) -> beneath.Place | None:
        return beneath.locate(self.rules, self._settings.watches.values(), path)

    def _is_new(self, watch: WatchSettings, subpath: str, state: FileState, source: Source) -> bool:
        """Whether a file holds a write that nobody has decided about yet."""
        decision = self._ledgers[watch.name].get(subpath, state)
        if decision is None:
            return not self._came_with_its_directory(watch, subpath, state)
        if state.rewritten_since(decision.size, decision.ctime):
            return True
        if source is Source.SCAN:
            return False
        if decision.existing:
            # Open for writing since before the watch began, and closed now.
            return True
        if state.ctime == decision.ctime:
            return False
        # Only ctime differs: MFMT or chmod after the write, or a write that kept the mtime.
        recent = self._recent.get((os.path.join(watch.path, subpath), state.inode))
        if recent is None:
            return True
        if source in (Source.HOOK, Source.LOG):
            return source in recent.sources
        return self._clock() - recent.decided > CONFIRM

    def _came_with_its_directory(
        self, watch: WatchSettings, subpath: str, state: FileState
    ) -> bool:
        """Whether another watch decided about a file, and its directory was renamed into this one.

        That leaves its ctime alone, to the nanosecond.
        """
        here = Decision(state.size, state.ctime)
        if not any(ledger.get(subpath, state) == here for ledger in self._ledgers.values()):
            return False
        self._ledgers[watch.name].put(subpath, state)
        return True

    def _must_wait(self, noticed: Noticed | None, look: beneath.Look) -> tuple[str, float]:
        """Return why a file may not be whole yet, and for how many seconds to wait; or ""."""
        if look.writing:
            looks = noticed.looks if noticed else 0
            return "it is being written", min(WRITING * 2**looks, WRITING_MOST)
        if look.writing is False or time.time() - look.state.ctime / 1e9 >= QUIET:
            return "", 0.0
        # The clock may be a file server's: what counts is that we saw no change for a while.
        wait = QUIET
        if noticed is not None and noticed.state == look.state:
            wait -= time.monotonic() - noticed.unchanged_since
        return "the kernel does not say who writes it" if wait > 0 else "", wait

    def _hold(
        self,
        path: str,
        notification: Notification,
        noticed: Noticed | None,
        state: FileState,
        reason: str,
        wait: float,
    ) -> None:
        """Look at a file again after `wait` seconds, or when it is spoken of again."""
        now = time.monotonic()
        self._noticed[path] = Noticed(
            notification,
            reason,
            since=noticed.since if noticed else time.time(),
            due=now + wait,
            state=state,
            unchanged_since=noticed.unchanged_since if noticed and noticed.state == state else now,
            looks=noticed.looks + 1 if noticed else 1,
        )
        heapq.heappush(self._due, (now + wait, path))
        logger.debug("Noticed %r: %s. Looking again in %.1f seconds.", path, reason, wait)

    def _pass_over(self, path: str, state: FileState, source: Source, answer: Respond) -> None:
        recent = self._recent.get((path, state.inode))
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
        task: TaskSettings,
        notification: Notification,
        answer: Respond,
    ) -> None:
        path = os.path.join(watch.path, subpath)
        upload = Upload(
            id=str(uuid.uuid4()),
            watch=watch.name,
            path=path,
            original=path,
            state=state,
            source=notification.source,
            accepted=self._clock(),
            task=None,
            user=notification.user,
            client=notification.client,
            protocol=notification.protocol,
        )
        upload = replace(upload, task=task_of(upload, task))
        ledger = self._ledgers[watch.name]
        before = ledger.get(subpath, state)
        ledger.put(subpath, state)
        self._remember(upload)

        def durable(position: int) -> None:
            logger.info(
                "Accepted upload %s, noticed by %s: %r, %d bytes, for task %s.",
                upload.id,
                upload.source,
                path,
                state.size,
                task.task,
            )
            self.pipeline.wait(upload.at(position))
            answer(Answer(Outcome.OK, upload.id))

        def failed(reason: str) -> None:
            ledger.restore(subpath, state.inode, before)
            self._missed.add(watch.name)
            answer(Answer(Outcome.ERROR, reason))

        self._commit.stage({"event": State.ACCEPTED.value, **upload.encode()}, durable, failed)

    def _remember(self, upload: Upload) -> None:
        recent = Recent(upload.id, upload.accepted, {upload.source})
        self._recent[upload.original, upload.state.inode] = recent
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def _rename(self, notification: Notification, answer: Respond) -> None:
        """Follow a file or a directory that was renamed within the watches."""
        old, new = self._locate(notification.old_path), self._locate(notification.path)
        if notification.is_directory:
            for located in (old, new):
                if located is not None:
                    self._ledgers[located[0].name].disturb()
            self.pipeline.follow(notification.old_path, notification.path)
        elif old is not None and new is not None and self._was_decided(*old, *new):
            self.pipeline.follow(notification.old_path, notification.path)
            answer(Answer(Outcome.DUPLICATE, "-"))
        else:
            self._complete(notification, answer)

    def _was_decided(
        self, old_watch: WatchSettings, old: str, new_watch: WatchSettings, new: str
    ) -> bool:
        """Whether a file was an upload under its old name; then the decision follows it."""
        if self.rules.excluded(old_watch, old) is not None:
            return False
        if not self.rules.tasks_for(os.path.join(old_watch.path, old)):
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
        if located is None:
            answer(Answer(Outcome.ERROR, "below no watch"))
            return
        watch, subpath = located
        path = os.path.join(watch.path, subpath)
        tasks = self.rules.tasks_for(path)
        if not tasks:
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
        self._noticed.pop(path, None)
        self._accept(watch, subpath, look.state, tasks[0], notification, answer)

    def _superseded(self, upload: Upload) -> None:
        """See to it that the newer write is decided about, should nobody have spoken of it."""
        self._complete(Notification(Kind.COMPLETED, upload.path, Source.SCAN), _nobody)

    def _replay_decision(self, upload: Upload) -> None:
        self._remember(upload)
        located = self.rules.locate(upload.original)
        if located is not None:
            watch, subpath = located
            ledger, state = self._ledgers[watch.name], upload.state
            if ledger.get(subpath, state) != Decision(state.size, state.ctime):
                ledger.put(subpath, state)


def _nobody(answer: Answer) -> None:
    """Answer a source that does not ask."""
