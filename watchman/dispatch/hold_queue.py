"""The hold queue: files that may not be whole yet. What ProFTPD has said of them is durable."""

from __future__ import annotations

import heapq
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from watchman.dispatch.transfers import LOG_LAG
from watchman.dispatch.verdicts import Fail, Hold, Ignore, PassOver
from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal
from watchman.uploads.outcome import Outcome
from watchman.uploads.upload import (
    PROFTPD,
    Answer,
    FileState,
    Kind,
    Notification,
    Respond,
    Source,
    State,
)

logger = logging.getLogger(__name__)


#: Held files that are looked at again before other work gets its turn.
AT_ONCE = 100

#: Seconds until we look again at a file whose acceptance could not be written down.
AGAIN = 1.0

#: Seconds for which the dispatcher may sleep while no file is held.
IDLE = 5.0


@dataclass(slots=True)
class HeldFile:
    """A file that is held, and what was seen and said of it.

    `notification` is the one to go by when it is looked at again.
    `since` is when it was first held (epoch), `due` when it is looked at again (monotonic).
    `state` is how it looked last, `unchanged_since` since when (monotonic) it has looked so. That
    begins anew when a writer is gone.
    `looks` is how many times it was looked at.
    `writing` says that it had a writer then, `overlapped` that it had another one when
    `notification` was made.
    `unspoken` is how many writers have closed it while others had it open, and ProFTPD has not
    spoken of them yet; below 0 if it spoke of one before we knew that there are others.
    `closing` is as in `Hold`.
    `unclosed` says that it appeared, perhaps by a call that opened it for writing, and that no
    close was heard since.
    `failure` is why its transfer has failed. Then it is held only until its writer has closed it,
    or until `fail_at` (monotonic), for ProFTPD may call it complete before that.
    `hooked` says that a hook has called it complete.
    `id` is what a source of ProFTPD's was answered with OK, "" if none was. The record of that is
    at `position` in the journal, -1 before it is written.
    `found_of` is the uid of its owner if a scan was the first to find it.
    """

    notification: Notification
    path: str
    reason: str
    since: float
    due: float
    state: FileState | None
    unchanged_since: float
    looks: int
    writing: bool = False
    overlapped: bool = False
    unspoken: int = 0
    closing: float = 0.0
    unclosed: bool = False
    failure: str = ""
    fail_at: float = 0.0
    hooked: bool = False
    id: str = ""
    position: int = -1
    found_of: int | None = None

    def was_rewritten(self, state: FileState | None) -> bool:
        """Whether the file was written since it was held, not only its times or rights set."""
        before = self.state
        if before is None or state is None:
            return False
        return self.is_of_another(state) or state.rewritten_since(before.size, before.ctime)

    def is_of_another(self, state: FileState | None) -> bool:
        """Whether there is now another file than the one that was held."""
        before = self.state
        return before is not None and state is not None and state.inode != before.inode


class HoldQueue:
    """The held files by path. Only the dispatcher's thread changes it."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._held: dict[str, HeldFile] = {}
        self._due: list[tuple[float, str]] = []
        #: By owner, how many of them scans have found.
        self._found: Counter[int | None] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def hold(
        self,
        path: str,
        notification: Notification,
        before: HeldFile | None,
        verdict: Hold,
        failure: str = "",
    ) -> HeldFile:
        """Hold a file as a verdict says, or until a source speaks of it.

        `before` is how it was held, None if it was not. `failure` is why its transfer has failed.
        """
        state = verdict.state
        now = self._monotonic()
        same = before is not None and before.state == state and not before.writing
        another = before is not None and before.is_of_another(state)
        hooked = before is not None and before.hooked and not before.was_rewritten(state)
        unclosed = before is not None and before.unclosed and notification.source is Source.SCAN
        self.pop(path)
        held = self._held[path] = HeldFile(
            notification=notification,
            path=path,
            reason=verdict.reason,
            since=before.since if before else self._clock(),
            due=now + verdict.wait,
            state=state or (before.state if before else None),
            unchanged_since=before.unchanged_since if before and same else now,
            looks=before.looks + 1 if before else 1,
            writing=verdict.writing,
            overlapped=verdict.overlapped,
            closing=verdict.closing,
            unspoken=verdict.unspoken + (before.unspoken if before and not another else 0),
            unclosed=unclosed or notification.appeared,
            failure=failure or (before.failure if before and not another else ""),
            fail_at=now + verdict.wait if failure else before.fail_at if before else 0.0,
            hooked=hooked or _is_hooks_word(notification),
            id=before.id if before else "",
            position=before.position if before else -1,
            found_of=before.found_of if before else notification.owner,
        )
        self._found[held.found_of] += 1
        heapq.heappush(self._due, (held.due, path))
        return held

    def put_back(self, held: HeldFile) -> None:
        """Hold a file again as it was held, and look at it soon; unless it is held anew already."""
        if held.path not in self._held:
            held.due = self._monotonic() + AGAIN
            self._held[held.path] = held
            self._found[held.found_of] += 1
            heapq.heappush(self._due, (held.due, held.path))

    def pop(self, path: str) -> HeldFile | None:
        """Hold a file no longer; return how it was held, None if it was not."""
        held = self._held.pop(path, None)
        if held is not None:
            self._found[held.found_of] -= 1
        return held

    def make_due(self, path: str) -> None:
        """Have a held file looked at again at once, because what it waits for may be over."""
        held = self._held.get(path)
        if held is not None:
            held.due = self._monotonic()
            heapq.heappush(self._due, (held.due, path))

    def get(self, path: str) -> HeldFile | None:
        """Return how a file is held, None if it is not."""
        return self._held.get(path)

    def remove(self, is_over: Callable[[str], bool]) -> list[HeldFile]:
        """Hold files no longer if `is_over` is true of their path; return how they were held."""
        over = [path for path in self._held if is_over(path)]
        return [held for path in over if (held := self.pop(path))]

    def found(self, owner: int) -> int:
        """Return how many held files of an owner scans have found. Any thread may call it."""
        return self._found[owner]

    def below(self, directory: str) -> list[str]:
        """Return the paths of held files below a directory."""
        return [path for path in self._held if path.startswith(directory + "/")]

    def due(self, now: float) -> list[HeldFile]:
        """Return at most AT_ONCE files that are due, each once."""
        found: list[HeldFile] = []
        while self._due and self._due[0][0] <= now and len(found) < AT_ONCE:
            due, path = heapq.heappop(self._due)
            held = self._held.get(path)
            if held is not None and held.due == due:
                found.append(held)
        return found

    def patience(self, now: float) -> float:
        """Return in how many seconds the next file is due, 1.0 at most; IDLE if none is held."""
        return max(0.0, min(self._due[0][0] - now, 1.0)) if self._due else IDLE

    def rows(self) -> list[dict[str, Any]]:
        """Return the held files as `watchman queue` shows them. Any thread may call it."""
        ahead = self._clock() - self._monotonic()
        return [
            {
                "id": held.id or None,
                "state": State.NOTICED,
                "path": path,
                "original": path,
                "watch": None,
                "task": None,
                "broker": None,
                "place": "",
                "since": held.since,
                "attempts": held.looks,
                "next_try": held.due + ahead,
                "reason": held.reason,
            }
            for path, held in list(self._held.items())
        ]


class Holding:
    """Holds files and lets them go, with a record of each that was answered OK.

    Only the dispatcher's thread calls it.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        commit: GroupCommit,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._commit = commit
        self._clock = clock
        self.queue = HoldQueue(clock=clock, monotonic=monotonic)
        #: During a replay, by id, position and record of the files that are still held.
        self._held_before: dict[str, tuple[int, dict[str, Any]]] = {}

    def hold(
        self,
        path: str,
        notification: Notification,
        before: HeldFile | None,
        verdict: Hold,
        answer: Respond,
        failure: str = "",
    ) -> None:
        """Hold a file, and answer.

        What ProFTPD says is answered OK once it is durable, because nobody will say it again. Other
        sources are answered IGNORED at once.
        """
        word = verdict.word or notification
        if verdict.word is None and before is not None and notification.source not in PROFTPD:
            # The file could not be looked at, so what was said of it before still counts.
            word = before.notification
            verdict = verdict._replace(overlapped=before.writing or before.overlapped)
        held = self.queue.hold(path, word, before, verdict, failure)
        logger.debug("Holding %r: %s. Looking in %.1f seconds.", path, held.reason, verdict.wait)
        if notification.source not in PROFTPD:
            answer(Answer(Outcome.IGNORED, verdict.reason))
            return
        if held.position >= 0 and held.failure == (before.failure if before else ""):
            answer(Answer(Outcome.OK, held.id))
            return
        if not held.id:
            held.id = str(uuid.uuid4())

        def durable(position: int) -> None:
            now = self.queue.get(path)
            if now is not None and now.id == held.id:
                if now.position >= 0:
                    self._journal.release(now.position)
                self._journal.hold(position)
                now.position = position
            answer(Answer(Outcome.OK, held.id))

        record = {"event": State.NOTICED, "at": self._clock(), "id": held.id}
        record |= {"path": path, "source": notification.source, "reason": verdict.reason}
        record |= {"user": notification.user, "client": notification.client}
        record |= {"protocol": notification.protocol, "uid": notification.uid}
        record["seen"] = held.state.encode() if held.state else None
        record["overlapped"] = held.writing or held.overlapped
        if held.failure:
            record["failure"] = held.failure
        self._commit.stage(record, durable, lambda reason: answer(Answer(Outcome.ERROR, reason)))

    def release(self, held: HeldFile, verdict: Ignore | PassOver | Fail) -> None:
        """Write down that a held file with an `id` does not become an upload."""
        reason = "decided about before" if isinstance(verdict, PassOver) else verdict.reason
        record = {"event": State.GONE, "at": self._clock(), "id": held.id}
        self._commit.stage({**record, "reason": reason}, lambda _: self.forget(held), lasting=True)

    def forget(self, held: HeldFile | None) -> None:
        """Let go of the record that a file was held, if there is one."""
        if held is not None and held.position >= 0:
            self._journal.release(held.position)

    def replay(self, position: int, record: dict[str, Any]) -> None:
        """Replay a record, which may begin or end a hold."""
        if record["event"] == State.NOTICED:
            self._held_before[record["id"]] = position, record
        else:
            self._held_before.pop(record.get("id", ""), None)

    def restore(self) -> None:
        """Hold the files again that were held when the journal ended."""
        for position, record in self._held_before.values():
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
            state = FileState.decode(seen) if (seen := record.get("seen")) else None
            # The transfer log may hold a better word than that of the failure.
            wait = LOG_LAG if failure else 0.0
            verdict = Hold(record["reason"], wait, state, overlapped=record["overlapped"])
            self._journal.hold(position)
            held = self.queue.hold(record["path"], notification, None, verdict, failure)
            held.id, held.position = record["id"], position
        self._held_before.clear()


def _is_hooks_word(notification: Notification) -> bool:
    return notification.source is Source.HOOK and notification.kind is Kind.COMPLETED
