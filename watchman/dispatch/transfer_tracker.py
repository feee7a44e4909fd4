"""Follows transfers from start to end, as sources tell of them, or as sessions die."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from watchman.config.rules import Rules
from watchman.config.settings import WatchSettings
from watchman.dispatch.decisions import Decisions
from watchman.dispatch.hold_queue import Holding
from watchman.dispatch.judge import STILL_OPEN, WRITING, Judge
from watchman.dispatch.transfers import LOG_LAG, Transfer, Transfers
from watchman.dispatch.verdicts import RECENT, Fail, Hold, RecentDecisions
from watchman.errors import NotBelowWatch
from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.uploads import beneath
from watchman.uploads.access import may_speak
from watchman.uploads.outcome import Outcome
from watchman.uploads.session import is_alive, waits
from watchman.uploads.upload import (
    Answer,
    FileState,
    Kind,
    Notification,
    Respond,
    Source,
    nobody,
)

logger = logging.getLogger(__name__)

#: Seconds between two looks for dead sessions, while any session is known. What a dead one has left
#: must be listed within two seconds, and LOG_LAG of these are for the transfer log.
LOOK = 0.5

#: Seconds for which we wait for what a dead session's hooks have sent: a busy daemon may see the
#: session die before it has read that. Without this, a whole file was listed as failed.
HOOK_LAG = 0.5


@dataclass(kw_only=True, eq=False)
class TransferTracker:
    """Knows which transfers are open, and fails those that end badly.

    Only the dispatcher's thread calls it.
    """

    rules: Rules
    ledgers: Mapping[str, Ledger]
    recent: RecentDecisions
    judge: Judge
    transfers: Transfers
    holding: Holding
    decisions: Decisions
    journal: Journal
    commit: GroupCommit
    clock: Callable[[], float]

    #: By path, why the log says that a transfer has failed, if its file was not there any more: a
    #: line about its rename may follow. The log has things in order, hooks have not.
    _left: dict[str, str] = field(default_factory=dict, init=False)
    #: Whether the transfer log was read to its end since we began.
    _caught_up: bool = field(default=False, init=False)
    #: During a replay, by session and path, position and record of the transfers that are open.
    _begun_before: dict[tuple[str, str], tuple[int, dict[str, Any]]] = field(
        default_factory=dict, init=False
    )

    def begin(self, notification: Notification, answer: Respond) -> None:
        """Remember that a session begins to write a file, and what is there now; then answer."""
        located = self.rules.locate(notification.path) if notification.path else None
        if located is None or not notification.session:
            answer(Answer(Outcome.OK))
            return
        watch, subpath = located
        path = beneath.below(watch.path, subpath)
        self.recent.begin(path)
        self._left.pop(path, None)
        before = None
        try:
            before = beneath.state(watch.path, subpath)
        except (OSError, NotBelowWatch):
            logger.debug("Nothing is at %r before its transfer.", path)
        if not waits(notification.session):
            before = None  # we hear of it late, so what is there may be what it wrote

        who = notification.uid, notification.groups

        def durable(position: int) -> None:
            self._open(Transfer(path, notification.session, before, position, *who))
            answer(Answer(Outcome.OK))

        def failed(reason: str) -> None:
            # It is not on disk, but it is known for as long as we run.
            self._open(Transfer(path, notification.session, before, -1, *who))
            answer(Answer(Outcome.ERROR, reason))

        record = {"event": Kind.STARTED, "at": self.clock(), "path": path}
        record |= {"session": notification.session, "user": notification.user}
        record["before"] = before.encode() if before else None
        if notification.groups is not None:
            record |= {"uid": notification.uid, "groups": sorted(notification.groups)}
        self.commit.stage(record, durable, failed)

    def complete(self, notification: Notification) -> str:
        """Close the transfer that a source calls complete; return its path.

        mod_exec tells no path if the SFTP session did something else meanwhile. Then it is that of
        the session's only open transfer; "" if there is none, or more than one.
        """
        if not notification.path:
            path = self.transfers.only(notification.session)
            notification = notification._replace(path=path)
            if not path:
                return ""
        self._left.pop(notification.path, None)
        self._close(notification.session, notification.path)
        return notification.path

    def fail(self, notification: Notification) -> None:
        """Fail the transfer that a source says has failed; without a path, all of its session's."""
        reason = notification.reason or "ProFTPD says that its transfer failed"
        notification = notification._replace(reason=reason)
        over = self._close(notification.session, notification.path)
        for transfer in over:
            failed = notification._replace(path=transfer.path)
            self._fail(failed, transfer.before, self._patience_of(transfer.path))
        if not over and notification.path:
            self._fail(notification, None, self._patience_of(notification.path))

    def rename(self, notification: Notification) -> str:
        """Fail a file under its new name if it was renamed before we heard that it has failed.

        Return why it has failed, "" if we have not heard so.
        """
        self._left.pop(notification.path, None)  # this is another file's name by now
        reason = self._left.get(notification.old_path, "")
        if reason and notification.source is Source.LOG:
            del self._left[notification.old_path]
            failed = notification._replace(kind=Kind.FAILED, reason=reason)
            self._fail(failed, None, self._patience_of(notification.path))
            return reason
        return ""

    def end(self, session: str, reason: str) -> None:
        """End a session: its open transfers have failed."""
        for transfer in self._closed(self.transfers.end(session)):
            failed = Notification(
                Kind.FAILED,
                transfer.path,
                Source.HOOK,
                reason=reason,
                uid=transfer.uid,
                groups=transfer.groups,
            )
            self._fail(failed, transfer.before, LOG_LAG)

    def end_dead_sessions(self) -> float:
        """End the sessions that have died. At a start, first the log must be read to its end.

        Return in how many seconds to look again.
        """
        if self._caught_up or self.judge.decisive is Source.HOOK:
            # Without a log, what its hooks have sent may still be in the socket or our inbox.
            lag = HOOK_LAG if self.judge.decisive is Source.HOOK else 0.0
            for session in self.transfers.dead(lag):
                self.end(session, "its session died")
        return LOOK if self.transfers else math.inf

    def _open(self, transfer: Transfer) -> None:
        if transfer.position >= 0:
            self.journal.hold(transfer.position)
        for over in self.transfers.open(transfer):
            if over.position >= 0:
                self.journal.release(over.position)

    def _close(self, session: str, path: str = "") -> list[Transfer]:
        """Close a session's transfer of a path, or with "" all of them; return them."""
        return self._closed(self.transfers.close(session, path))

    def _closed(self, over: list[Transfer]) -> list[Transfer]:
        """Write down that transfers are over; have files looked at again that waited for them."""
        for transfer in over:
            self.holding.queue.make_due(transfer.path)
            record = {"event": Kind.ENDED, "at": self.clock(), "path": transfer.path}

            def durable(_: int, position: int = transfer.position) -> None:
                self.journal.release(position)

            if transfer.position < 0:
                continue  # its start was not written down
            self.commit.stage({**record, "session": transfer.session}, durable, lasting=True)
        return over

    def _patience_of(self, path: str) -> float:
        """Return for how many seconds a failure that a hook tells of waits for the log's word."""
        located = self.rules.locate(path)
        return located[0].confirm if located is not None else 0.0

    def _fail(self, notification: Notification, before: FileState | None, patience: float) -> None:
        """Fail a file, unless the transfer that failed has not touched it.

        If another source decides, wait `patience` seconds for its word. `before` is what was there
        before the transfer, None if nothing was or if that is not known.
        """
        located = self.rules.locate(notification.path)
        if located is None or self.rules.excluded(*located) is not None:
            return
        watch, subpath = located
        path = beneath.below(watch.path, subpath)
        try:
            look = beneath.look(watch.path, subpath)
        except (OSError, NotBelowWatch) as e:
            logger.debug("A failed transfer left nothing at %r: %s.", path, e)
            if notification.source is Source.LOG:
                if len(self._left) >= RECENT:
                    self._left.clear()
                self._left[path] = notification.reason
            return
        with look:
            self._fail_file(watch, subpath, look, notification, before, patience)

    def _fail_file(
        self,
        watch: WatchSettings,
        subpath: str,
        look: beneath.Look,
        notification: Notification,
        before: FileState | None,
        patience: float,
    ) -> None:
        """Fail a file that is there, as `_fail` does."""
        path = beneath.below(watch.path, subpath)
        if not may_speak(notification, watch.path, subpath):
            return  # another user's file, which came there after the rights were checked
        held = self.holding.queue.get(path)
        touched = not self.ledgers[watch.name].was_decided(subpath, look.state)
        if held is not None and self.judge.confirms(held, look.state):
            # ProFTPD has called the file complete. That still holds if this later transfer was
            # refused, or left the file as it was. But lines of the log may be read together, and
            # then the file is as the last transfer has left it.
            touched = touched and not notification.refused and notification.source is Source.LOG
        # An SFTP session may tell of the failure before it closes the file, and write until then.
        if not look.writing and (look.state == before or not touched):
            return
        if look.writing or notification.source is not self.judge.decisive:
            hold = Hold("waiting for ProFTPD's transfer log", patience, look.state)
            if look.writing:
                spoken = int(notification.source is self.judge.decisive)
                hold = Hold(STILL_OPEN, WRITING, look.state, unspoken=-spoken)
            reason = notification.reason
            self.holding.hold(path, notification, held, hold, nobody, reason)
            return
        held, reason = self.holding.queue.pop(path), notification.reason
        failed = Fail(look.state, reason, look.sample())
        self.decisions.fail(watch, subpath, failed, notification, held)

    # At start.

    def catch_up(self) -> None:
        """Note that the transfer log was read to its end: it tells no more of what ended before."""
        self._caught_up = True

    def replay(self, position: int, record: dict[str, Any]) -> None:
        """Replay a record, which may begin or end a transfer."""
        match record["event"]:
            case Kind.STARTED:
                # If a session began it several times, the first one has what was there before.
                self._begun_before.setdefault(
                    (record["session"], record["path"]), (position, record)
                )
            case Kind.ENDED:
                self._begun_before.pop((record["session"], record["path"]), None)

    def restore(self, *, logged: bool) -> None:
        """Open the transfers again that were open when the journal ended.

        `logged` says that logs are read on from where they were read to, so that they tell of all
        that ended since.
        """
        for (session, path), (position, record) in self._begun_before.items():
            before = FileState.decode(record["before"]) if record["before"] else None
            groups = frozenset(record["groups"]) if "groups" in record else None
            transfer = Transfer(path, session, before, position, record.get("uid"), groups)
            if logged or is_alive(session):
                self._open(transfer)
            else:
                # It ended while watchman was down, and nobody can say how.
                self._closed([transfer])
        self._begun_before.clear()
