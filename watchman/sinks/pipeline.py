"""What becomes of an upload after it was accepted, until it is settled."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from watchman.config.moves import destination_of
from watchman.config.rules import Rules, fill
from watchman.config.settings import Settings, TaskSettings
from watchman.errors import JournalCorrupt, Stopped
from watchman.sinks.backlog import Backlog
from watchman.sinks.failures import NEVER_WAITED, Failures
from watchman.sinks.file_tracker import RETRY, FileTracker
from watchman.sinks.pauses import ALL
from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.uploads.upload import FileState, Report, State, Task, Upload

logger = logging.getLogger(__name__)

#: Uploads whose records are kept for a moment while the journal is replayed, for those that it says
#: are settled: most are, soon after they were accepted.
RECENT = 1_000

#: Seconds between two looks of who waits for the journal at whether it will be written at all.
WRITTEN_POLL = 0.5

#: What an upload is settled as whose file is not where it was, or is another one.
AWAY = frozenset({State.GONE, State.SUPERSEDED, State.RENAMED})

#: Where uploads wait whose record could not be read back, and what is shown of them.
UNREADABLE = "journal"
CANNOT_BE_READ = "its record cannot be read"


@dataclass(frozen=True, slots=True)
class Group:
    """Uploads that stand alike: failed, or in one lane of the backlog of `place`.

    `next_try` in epoch seconds; `paused` names what an operator has paused.
    """

    place: str
    state: str
    positions: list[int]
    lane: str = ""
    attempts: int = 0
    next_try: float | None = None
    reason: str = ""
    paused: str = ""


class Pipeline:
    """The uploads that wait, are taken by a mover, then by a publisher, and are settled.

    In memory an upload is its journal position in a backlog; all else is read when it is taken.
    Publishers call `take` and `report`, movers their own of these and `write`; all else
    happens in the dispatcher's thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        rules: Rules,
        journal: Journal,
        ledgers: Mapping[str, Ledger],
        commit: GroupCommit,
        settled: Callable[[Upload], None],
        superseded: Callable[[Upload], None],
        gone: Callable[[str, FileState, bool], None],
        renamed: Callable[[Upload], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._journal = journal
        self._ledgers = ledgers
        self._commit = commit
        self._settled = settled
        self._superseded = superseded
        self._gone = gone
        self._renamed = renamed
        self._monotonic = monotonic
        self.backlogs = {name: Backlog(monotonic) for name in settings.brokers}
        #: By `[move:NAME]`, what is to be moved.
        self.moves = {name: Backlog(monotonic) for name in settings.moves}
        #: Uploads whose record is on its way to the disk, by id, so that `queue` misses none.
        self.arriving: dict[str, Upload] = {}
        #: What an operator has paused; replaced as a whole.
        self._pauses: frozenset[str] = frozenset()
        #: Journal positions that could not be read back.
        self._unreadable: set[int] = set()
        self._closed = threading.Event()
        self.settled: Counter[str] = Counter()
        self.failures = Failures(journal=journal, commit=commit, settled=self._count)
        self.file_tracker = FileTracker(
            rules=rules, ledgers=ledgers, journal=journal, commit=commit, monotonic=monotonic
        )

    def close(self) -> None:
        """Give movers and publishers nothing any more."""
        self._closed.set()
        for backlog in self._all_backlogs():
            backlog.close()

    def waiting(self) -> int:
        """Return how many uploads are not settled, but for failed ones."""
        return sum(map(len, self._all_backlogs()))

    # In the publishers' threads.

    def take(self, broker: str, limit: int, timeout: float) -> list[Upload]:
        """Return uploads that wait for a broker, each looked at just now."""
        uploads = []
        for upload in self._take(self.backlogs[broker], limit, timeout):
            # What was moved lies where nobody uploads, and perhaps on a server that hangs.
            report = self.file_tracker.look(upload) if upload.source_state is None else None
            if report is None:
                uploads.append(upload)
            else:
                self.report(report)
        return uploads

    def report(self, report: Report) -> None:
        """Take back an upload that a publisher took, once."""
        assert report.upload.task is not None
        self._take_back(report, self._backlog("broker", report.upload.task.broker))

    # In the movers' threads.

    def take_moves(
        self, move: str, limit: int, timeout: float, *, aside: bool = False
    ) -> list[Upload]:
        """Return uploads that are to be moved, or were and have left something behind.

        Those `aside` were put there, as they take long.
        """
        return list(self._take(self.moves[move], limit, timeout, aside=aside))

    def report_move(self, report: Report) -> None:
        """Take back an upload that a mover took, once; what was MOVED has its task sent."""
        upload = report.upload
        if report.state is State.MOVED and upload.task is not None:
            self._backlog("broker", upload.task.broker).add(upload.position, upload.owned_by)
            self._backlog("move", upload.move).settle(upload.position)
        elif report.state is State.MOVED:
            self._take_back(Report(upload, State.DONE), self._backlog("move", upload.move))
        else:
            self._take_back(report, self._backlog("move", upload.move))

    def write(self, state: State, uploads: Sequence[Upload]) -> list[Upload]:
        """Write down anew what a mover has in hand, and wait until it is durable.

        Raises Stopped where it cannot be, and watchman stops.
        """
        written: list[Upload] = []
        done = threading.Event()

        def stage() -> None:
            for upload in uploads:
                self._stage_anew(state, upload, written.append)
            self._commit.stage(None, lambda _: done.set(), lasting=True)

        self._commit.bring_first(stage)
        while not done.wait(WRITTEN_POLL):
            if self._closed.is_set() and self._commit.unwritable_since:
                raise Stopped
        return written

    def refill(self, upload: Upload) -> Upload:
        """Return an upload with its task's arguments filled for its destination."""
        if upload.task is None:
            return upload
        section = next((t for t in self._settings.tasks if t.name == upload.task.section), None)
        if section is None:
            section = next(iter(self._rules.tasks_for(upload.original)), None)
        return replace(upload, task=task_of(upload, section) if section else None)

    # In all of these.

    def _take(
        self, backlog: Backlog, limit: int, timeout: float, *, aside: bool = False
    ) -> Iterator[Upload]:
        if self._commit.unwritable_since:
            # What is done now could not be written down, and would be done again after a restart.
            self._closed.wait(timeout)
            return
        for position in backlog.take(limit, timeout, aside=aside):
            try:
                upload = Upload.decode(self._journal.read(position), position)
            except (JournalCorrupt, OSError) as e:
                if not self._unreadable:
                    logger.error(
                        "Upload at journal position %d cannot be read: %s. Trying it again, and"
                        " others of which this is not said.",
                        position,
                        e,
                    )
                self._unreadable.add(position)
                backlog.put_back(position, UNREADABLE, RETRY, CANNOT_BE_READ)
                continue
            self._unreadable.discard(position)
            pause = self._pause_of(upload)
            if pause:
                backlog.hold_back(position, pause)
            else:
                yield upload

    def _take_back(self, report: Report, backlog: Backlog) -> None:
        if report.state is State.DEFERRED:
            backlog.put_back(report.upload.position, report.lane, report.delay, report.reason)
        elif report.state is State.RENAMED:
            self._commit.bring_first(lambda: self._rename(report, backlog))
        else:
            self._commit.bring_first(lambda: self._settle(report, backlog))

    def _pause_of(self, upload: Upload) -> str:
        """Return what is paused that holds an upload back, or ""."""
        names = [f"watch:{upload.watch}", f"task:{upload.task.section}" if upload.task else ""]
        return next((name for name in names if name in self._pauses), "")

    # In the dispatcher's thread.

    def plan(self, upload: Upload) -> Upload:
        """Fill in what the rules say is to become of an upload: a move, a task, or both."""
        move = self._rules.move_for(upload.path)
        destination = ""
        if move is not None:
            destination = destination_of(move, upload.path, int(upload.accepted * 1000))
        upload = replace(upload, move=move.name if move else "", destination=destination)
        tasks = self._rules.tasks_for(upload.original)
        return replace(upload, task=task_of(upload, tasks[0]) if tasks else None)

    def wait(self, upload: Upload) -> None:
        """Let an upload wait for its move or its broker; its record is durable."""
        self._journal.hold(upload.position)
        self._backlog_of(upload).add(upload.position, upload.owned_by)

    def change(self, settings: Settings) -> None:
        """Go over to other settings; what waits goes on as it was accepted."""
        self._settings = settings
        for name in settings.brokers:
            self._backlog("broker", name)
        for name in settings.moves:
            self._backlog("move", name)

    def pause(self, pauses: Collection[str]) -> None:
        """Hold back what waits for what is in `pauses`, and nothing else."""
        self._pauses = frozenset(pauses)
        for place, backlog in self._places():
            backlog.pause(self._pauses, whole=self._is_paused(place))

    def _is_paused(self, name: str) -> bool:
        return name in self._pauses or ALL in self._pauses

    def retry_failed(self, upload: Upload) -> str:
        """Let a failed upload wait again under its id, for the task that the rules give it now.

        Return why it cannot, "" if it can.
        """
        section = next(iter(self._rules.tasks_for(upload.original)), None)
        task = task_of(upload, section) if section else upload.task
        if not self.failures.holds(upload) or (task is None and not upload.move):
            return "no task matches it"
        if reason := self.file_tracker.refusal(upload):
            return reason
        again = replace(upload, task=task)

        self.arriving[upload.id] = again

        def durable(position: int) -> None:
            self.wait(again.at(position))
            del self.arriving[upload.id]
            logger.info("Upload %s is tried again: %r.", upload.id, upload.path)

        record = {"event": "retried", "at": time.time(), **again.encode()}
        self.failures.leave(upload.id, record, durable)
        return ""

    def drop(self, upload: Upload) -> None:
        """Settle for good an upload that was withdrawn from its backlog."""
        # One that was copied waits for its mover, and then for its broker.
        mine = [backlog for backlog in self._all_backlogs() if backlog.has_taken(upload.position)]
        backlog = mine[0] if mine else self._backlog_of(upload)
        self._settle(Report(upload, State.DROPPED, "dropped"), backlog)

    def fail(self, upload: Upload, reason: str) -> None:
        """List an upload as failed that never waited, in place of older ones of its path."""
        self.arriving[upload.id] = upload

        def durable(_: int) -> None:
            self._count(State.FAILED)
            del self.arriving[upload.id]
            logger.warning("Upload %s failed: %r: %s.", upload.id, upload.path, reason)

        self.failures.add(upload, reason, durable, never_waited=True)
        self.failures.forgive(upload.source_path, but=upload.id)

    def _count(self, state: State) -> None:
        self.settled[state.value] += 1

    def _backlog_of(self, upload: Upload) -> Backlog:
        """Return where an upload waits that nobody has in hand."""
        return self._backlog(*self._place_of(upload))

    def _place_of(self, upload: Upload) -> tuple[str, str]:
        is_moved = upload.source_state is not None
        if upload.move and (not is_moved or upload.is_copied or upload.task is None):
            return "move", upload.move
        assert upload.task is not None
        return "broker", upload.task.broker

    def _backlog(self, kind: str, name: str) -> Backlog:
        # What waits for a section that left the INI file goes on waiting.
        backlogs = self.moves if kind == "move" else self.backlogs
        backlog = backlogs.get(name)
        if backlog is None:
            backlog = backlogs[name] = Backlog(self._monotonic)
            backlog.pause(self._pauses, whole=self._is_paused(f"{kind}:{name}"))
        return backlog

    def _all_backlogs(self) -> list[Backlog]:
        return [*self.moves.values(), *self.backlogs.values()]

    def _stage_anew(self, state: State, upload: Upload, written: Callable[[Upload], None]) -> None:
        def durable(position: int) -> None:
            self._journal.hold(position)
            self._journal.release(upload.position)
            self._backlog("move", upload.move).replace(upload.position, position)
            if upload.source_state is not None:
                self._forget(upload, upload.source_state)
            written(upload.at(position))

        record = {"event": state.value, "at": time.time(), **upload.encode()}
        self._commit.stage(record, durable, lasting=True)

    def _forget(self, upload: Upload, state: FileState) -> None:
        located = self._rules.locate(upload.source_path)
        if located is not None:
            self._ledgers[located[0].name].forget(located[1], state)

    def _settle(self, report: Report, backlog: Backlog, renamed: Upload | None = None) -> None:
        """Write down what became of an upload; its file may be `renamed`."""
        upload, state = report.upload, report.state
        record: dict[str, Any] = {"event": state.value, "at": time.time(), "id": upload.id}
        if report.reason:
            record["reason"] = report.reason
        if state in AWAY and upload.source_state is None:
            record |= {"path": upload.path, "gone": upload.state.encode()}
            is_away = state is not State.SUPERSEDED or self.file_tracker.is_replaced(upload)
            names = self.file_tracker.forget_file(upload) if is_away else []
            if renamed is not None:
                names.append((renamed.path, renamed.state))
            record["names"] = [[path, file.encode()] for path, file in names]
            for path, file in [(upload.path, upload.state), *names]:
                self._gone(path, file, renamed is None)

        def durable(_: int) -> None:
            self._count(state)
            self._journal.release(upload.position)
            backlog.settle(upload.position)
            self.file_tracker.settle(upload)
            self._settled(upload)
            if state is State.FAILED:
                logger.error("Upload %s failed: %r: %s.", upload.id, upload.path, report.reason)
            elif state is State.DONE:
                logger.debug("Upload %s is done.", upload.id)
            else:
                logger.info("Upload %s is %s: %r.", upload.id, report.reason, upload.path)
            if state is State.SUPERSEDED:
                self._superseded(upload)
            if renamed is not None:
                self._renamed(renamed)

        if state is State.FAILED:
            self.failures.add(upload, report.reason, durable)
        else:
            self._commit.stage(record, durable, lasting=True)

    def _rename(self, report: Report, backlog: Backlog) -> None:
        """Settle an upload whose file has another name: it is an upload of its own under that."""
        renamed, before = report.upload, self._read(report.upload.position)
        if before.original == before.path:
            renamed = replace(renamed, original=renamed.path)
        over = Report(before, State.RENAMED, f"renamed to {renamed.path!r}")
        self._settle(over, backlog, renamed)

    # At start.

    def replay(
        self,
        decided: Callable[[Upload, bool, bool], None],
        other: Callable[[int, dict[str, Any]], None],
    ) -> None:
        """Take up what the journal says was not settled.

        Tell of each decision on the way, whether it was that the upload has failed, and whether as
        one that never waited; of each upload that was settled; and of each record, should it be
        more than an upload's.
        """
        recent: OrderedDict[int, Upload] = OrderedDict()
        # By where they wait and whose they are, so that no record need be read twice: there may be
        # a million.
        live: dict[tuple[str, str, int | None], dict[int, int]] = {}
        failed: dict[str, int] = {}
        failed_of: dict[str, list[tuple[str, int]]] = {}
        for position, record in self._journal.replay():
            other(position, record)
            if "id" in record:
                number = uuid.UUID(record["id"]).int
                failed.pop(record["id"], None)
                before = [positions.pop(number, -1) for positions in live.values()]
                if "state" not in record and max(before, default=-1) >= 0:
                    self._settled(recent.get(number) or self._read(max(before)))
            if "state" in record:
                upload = recent[number] = Upload.decode(record, position)
                if len(recent) > RECENT:
                    recent.popitem(last=False)
                has_failed = record["event"] == State.FAILED.value
                decided(upload, has_failed, NEVER_WAITED in record)
                if NEVER_WAITED in record or record["event"] == State.ACCEPTED.value:
                    # It settles older failures of its path, though that may not be written down.
                    for older, then in failed_of.pop(upload.source_path, ()):
                        if failed.get(older) == then:  # else it was renamed
                            del failed[older]
                if has_failed:
                    failed[upload.id] = position
                    failed_of.setdefault(upload.source_path, []).append((upload.id, position))
                elif upload.move or upload.task is not None:
                    place = *self._place_of(upload), upload.owned_by
                    live.setdefault(place, {})[number] = position
            elif "from" in record:
                self.file_tracker.replay(position, record)
        for position in failed.values():
            record = self._journal.read(position)
            self.failures.replay(Upload.decode(record, position), record)
        taken_up: Counter[tuple[str, str]] = Counter()
        for (kind, name, owner), positions in live.items():
            for position in positions.values():
                self._journal.hold(position)
                self._backlog(kind, name).add(position, owner)
            taken_up[kind, name] += len(positions)
        for (kind, name), number in (+taken_up).items():
            logger.info("Took up %d uploads that wait for %s %s.", number, kind, name)

    def _read(self, position: int) -> Upload:
        return Upload.decode(self._journal.read(position), position)

    # In any thread, for those who want to see and to lend a hand.

    def open(self, place: str, lane: str) -> None:
        """Have what is held up in a lane tried at once."""
        self._at(place).open(lane)

    def withdraw(self, place: str, positions: Collection[int], timeout: float) -> set[int]:
        """Take uploads out of a backlog, each of them to be reported once; see there."""
        return self._at(place).withdraw(positions, timeout)

    def _at(self, place: str) -> Backlog:
        kind, _, name = place.partition(":")
        return (self.moves if kind == "move" else self.backlogs)[name]

    def _places(self) -> list[tuple[str, Backlog]]:
        moves = [(f"move:{name}", backlog) for name, backlog in list(self.moves.items())]
        brokers = [(f"broker:{name}", backlog) for name, backlog in list(self.backlogs.items())]
        return moves + brokers

    def groups(self) -> list[Group]:
        """Return all uploads that are not settled, by where they stand."""
        groups = [Group("", State.FAILED.value, self.failures.positions())]
        for place, backlog in self._places():
            for lane_name, lane in backlog.lanes():
                state, next_try = "waiting", None
                pause = lane.paused or (place if place in self._pauses else "")
                if lane_name and not lane.paused:
                    state = State.DEFERRED.value
                    next_try = max(time.time(), time.time() + lane.until - self._monotonic())
                groups.append(
                    Group(
                        place,
                        state,
                        lane.positions,
                        lane=lane_name,
                        attempts=lane.attempts,
                        next_try=next_try,
                        reason=lane.reason,
                        paused=pause or (ALL if ALL in self._pauses else ""),
                    )
                )
        return [group for group in groups if group.positions]


def task_of(upload: Upload, section: TaskSettings) -> Task:
    """Return the task that a `[task:...]` section makes of an upload."""
    return fill(
        section,
        path=upload.destination or upload.path,
        original=upload.original,
        watch=upload.watch,
        user=upload.user,
        client=upload.client,
        protocol=upload.protocol,
        size=upload.state.size,
    )
