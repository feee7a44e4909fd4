"""Files that may not be whole yet, and what ProFTPD has said of them, which is durable."""

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


#: Files looked at again before others get their turn.
AT_ONCE = 100

#: Seconds until a file is looked at again that could not be accepted.
AGAIN = 1.0


@dataclass(slots=True)
class HeldFile:
    """A held file: why, since when (epoch), and what it has looked like since when (monotonic),
    which is anew once its writer is gone: `writing` if it had one, `overlapped` if it had one when
    the notification was made, `unspoken` how many have closed it while others had it open, and
    ProFTPD has not told how that ended. `closing` is as in `Hold`. `unclosed` if it appeared by a
    call that may have opened it for writing, and no end of that was heard.

    `failure` is why it has failed, should it only be waited for until it is closed, or for another
    word until `fail_at` (monotonic). `hooked` if a hook has called it complete. One that was
    answered OK has an `id`, and a record in the journal at `position`. `found_of` is the
    uid of its owner if a scan was the first to find it.
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
        """Whether a file was written since it was held; times and rights may be set anew."""
        before = self.state
        if before is None or state is None:
            return False
        return self.is_of_another(state) or state.rewritten_since(before.size, before.ctime)

    def is_of_another(self, state: FileState | None) -> bool:
        """Whether another file was held than is there now."""
        before = self.state
        return before is not None and state is not None and state.inode != before.inode


class HoldQueue:
    """The held files by path. Changed by the dispatcher's thread alone."""

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
        #: How many of them scans have found, by owner.
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
        """Hold a file as a verdict says, or until it is spoken of; `before` is how it was held."""
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
        """Hold a file as it was held, and look at it again soon; one held anew meanwhile stays."""
        if held.path not in self._held:
            held.due = self._monotonic() + AGAIN
            self._held[held.path] = held
            self._found[held.found_of] += 1
            heapq.heappush(self._due, (held.due, held.path))

    def pop(self, path: str) -> HeldFile | None:
        """Hold a file no longer; return how it was held."""
        held = self._held.pop(path, None)
        if held is not None:
            self._found[held.found_of] -= 1
        return held

    def make_due(self, path: str) -> None:
        """Look at a held file again at once: what it waited for may be over."""
        held = self._held.get(path)
        if held is not None:
            held.due = self._monotonic()
            heapq.heappush(self._due, (held.due, path))

    def get(self, path: str) -> HeldFile | None:
        """Return how a file is held."""
        return self._held.get(path)

    def remove(self, is_over: Callable[[str], bool]) -> list[HeldFile]:
        """Hold files no longer whose path is one that `is_over`; return how they were held."""
        over = [path for path in self._held if is_over(path)]
        return [held for path in over if (held := self.pop(path))]

    def found(self, owner: int) -> int:
        """Return how many files of an owner's are held that scans have found; from any thread."""
        return self._found[owner]

    def below(self, directory: str) -> list[str]:
        """Return the paths of held files below a directory."""
        return [path for path in self._held if path.startswith(directory + "/")]

    def due(self, now: float) -> list[HeldFile]:
        """Return some of what is due; each once."""
        found: list[HeldFile] = []
        while self._due and self._due[0][0] <= now and len(found) < AT_ONCE:
            due, path = heapq.heappop(self._due)
            held = self._held.get(path)
            if held is not None and held.due == due:
                found.append(held)
        return found

    def patience(self, now: float) -> float:
        """Return the seconds until something is due, a second at most."""
        return max(0.0, min(self._due[0][0] - now, 1.0)) if self._due else 1.0

    def rows(self) -> list[dict[str, Any]]:
        """Return what is held as `watchman queue` shows it; for any thread."""
        ahead = self._clock() - self._monotonic()
        return [
            {
                "id": held.id or None,
                "state": State.NOTICED.value,
                "path": path,
                "original": path,
                "watch": None,
                "task": None,
                "broker": None,
                "since": held.since,
                "attempts": held.looks,
                "next_try": held.due + ahead,
                "reason": held.reason,
            }
            for path, held in list(self._held.items())
        ]


class Holding:
    """Holds files and lets them go, with a record of each that is answered OK.

    For the dispatcher's thread.
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
        #: While the journal is replayed: what is not over, with its position and record.
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
        """Hold a file; what ProFTPD says of it is durable, as nobody may say it again."""
        word = verdict.word or notification
        if verdict.word is None and before is not None and notification.source not in PROFTPD:
            # It could not be looked at.
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

        record = {"event": State.NOTICED.value, "at": self._clock(), "id": held.id}
        record |= {"path": path, "source": notification.source.value, "reason": verdict.reason}
        record |= {"user": notification.user, "client": notification.client}
        record |= {"protocol": notification.protocol, "uid": notification.uid}
        record["seen"] = held.state.encode() if held.state else None
        record["overlapped"] = held.writing or held.overlapped
        if held.failure:
            record["failure"] = held.failure
        self._commit.stage(record, durable, lambda reason: answer(Answer(Outcome.ERROR, reason)))

    def release(self, held: HeldFile, verdict: Ignore | PassOver | Fail) -> None:
        """Write down that a file, held durably, came to nothing."""
        reason = "decided about before" if isinstance(verdict, PassOver) else verdict.reason
        record = {"event": State.GONE.value, "at": self._clock(), "id": held.id}
        self._commit.stage({**record, "reason": reason}, lambda _: self.forget(held), lasting=True)

    def forget(self, held: HeldFile | None) -> None:
        """Keep the record no longer that a file was held, if there is one."""
        if held is not None and held.position >= 0:
            self._journal.release(held.position)

    def replay(self, position: int, record: dict[str, Any]) -> None:
        """Take up what was held, by id, until it ends."""
        if record["event"] == State.NOTICED.value:
            self._held_before[record["id"]] = position, record
        else:
            self._held_before.pop(record.get("id", ""), None)

    def restore(self) -> None:
        """Hold again what was held when the journal ended."""
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
            # A failure may still be outdone by what the transfer log holds.
            wait = LOG_LAG if failure else 0.0
            verdict = Hold(record["reason"], wait, state, overlapped=record["overlapped"])
            self._journal.hold(position)
            held = self.queue.hold(record["path"], notification, None, verdict, failure)
            held.id, held.position = record["id"], position
        self._held_before.clear()


def _is_hooks_word(notification: Notification) -> bool:
    return notification.source is Source.HOOK and notification.kind is Kind.COMPLETED
