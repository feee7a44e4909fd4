"""The pipeline: what happens to an upload from when it is accepted until it is settled."""

from __future__ import annotations

import logging
import sys
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from watchman.config.moves import destination_of
from watchman.config.rules import Rules, fill
from watchman.config.settings import Settings, TaskSettings
from watchman.errors import JournalCorrupt, Stopped
from watchman.sinks.alarms import ALARM_OF, Alarms
from watchman.sinks.backlog import Backlog
from watchman.sinks.backlogs import Backlogs, Group
from watchman.sinks.failures import NEVER_WAITED, Failures
from watchman.sinks.file_tracker import RETRY, FileTracker
from watchman.sinks.steps import RETRIED, Steps
from watchman.sinks.tries import Tries
from watchman.store.groupcommit import GroupCommit, outlive
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.uploads.upload import FileState, Report, State, Task, Upload

logger = logging.getLogger(__name__)

#: Uploads that a replay keeps in memory. Most uploads are settled soon after they were accepted, so
#: that their records need not be read a second time.
RECENT = 1_000

#: Uploads of one broker that may be sent and not yet written down as done. After a kill these are
#: sent again. It is twice what is sent together: one half is sent while the other is written down.
SENT = 128

#: Uploads of one place that are kept in memory until they are taken, some 1,500 bytes each. The
#: records of all others are read from the journal.
KEPT = 2_000

#: Seconds after which a thread that waits for the journal checks whether it can be written.
WRITTEN_POLL = 0.5

#: States of uploads that are settled because their file is not there, or is another one.
AWAY = frozenset({State.GONE, State.SUPERSEDED, State.RENAMED})

#: The lane of uploads whose record could not be read, and the reason that is shown for them.
UNREADABLE = "journal"
CANNOT_BE_READ = "its record cannot be read"


class Pipeline:
    """The accepted uploads: each waits, is taken by a mover, then by a publisher, and is settled.

    In memory an upload is only its journal position in a backlog. Its record is read when it is
    taken, except for the latest uploads, which are kept (KEPT).

    Publishers call `take` and `report`; movers call `take_at`, `report_move` and `write`. The
    dispatcher's thread does all else. The class is long because it has everything that can happen
    to an accepted upload.
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
        self.backlogs = Backlogs(monotonic)
        #: By id, uploads whose record is being written; so `watchman queue` shows them, too.
        self.arriving: dict[str, Upload] = {}
        #: Journal positions whose record could not be read.
        self._unreadable: set[int] = set()
        self._closed = threading.Event()
        self.steps = Steps()
        #: How many uploads had each outcome since the start.
        self.settled = self.steps.sums
        self._tries = Tries(commit)
        self.failures = Failures(journal=journal, commit=commit, steps=self.steps)
        self.alarms = Alarms(
            settings.on_failed,
            journal=journal,
            commit=commit,
            failures=self.failures,
            steps=self.steps,
            wait=self.wait,
        )
        self.file_tracker = FileTracker(
            rules=rules, ledgers=ledgers, journal=journal, commit=commit, monotonic=monotonic
        )

    def close(self) -> None:
        """Give movers and publishers no more uploads."""
        self._closed.set()
        self.backlogs.close()

    def waiting(self) -> int:
        """Return how many uploads are not settled, without the failed ones."""
        return sum(len(backlog) for _, backlog in self.backlogs.places())

    # In the publishers' threads.

    def take(
        self, broker: str, limit: int, timeout: float, ended: Callable[[], bool] = lambda: False
    ) -> list[Upload]:
        """Take uploads that wait for a broker. Each one's file was looked at just now."""
        uploads = []
        for upload in self.take_at(f"broker:{broker}", limit, timeout, ended, most=SENT):
            # Not after a move: nobody uploads to its destination, which may be on a file server
            # that hangs.
            report = self.file_tracker.look(upload) if upload.source_state is None else None
            if report is None:
                uploads.append(upload)
            else:
                self.report([report])
        return uploads

    def report(self, reports: Sequence[Report]) -> None:
        """Take back uploads that one publisher took. It reports each upload once."""
        for report in reports[:1]:
            assert report.upload.task is not None
            self._take_back(reports, f"broker:{report.upload.task.broker}")

    # In the movers' threads.

    def report_move(self, report: Report) -> None:
        """Take back an upload that a mover took. If it was MOVED, its task is sent next."""
        upload, place = report.upload, f"move:{report.upload.move}"
        if report.state is not State.MOVED:
            self._take_back([report], place)
        elif upload.task is None:
            self._take_back([Report(upload, State.DONE)], place)
        else:
            self.steps.tell(State.MOVED, upload, time.time())
            self._add(upload, f"broker:{upload.task.broker}").offer()
            self.backlogs[place].settle(upload.position)

    def write(self, state: State, uploads: Sequence[Upload]) -> list[Upload]:
        """Write new records of uploads that a mover has taken, and wait until they are durable.

        For RENAMED, the arguments of their tasks are filled in for the new destination. Raises
        Stopped if the records cannot be made durable and watchman stops.
        """
        if state is State.RENAMED:
            uploads = [self._refilled(upload) for upload in uploads]
        written: list[Upload] = []
        done = threading.Event()

        def durable(upload: Upload, position: int) -> None:
            self._journal.hold(position)
            self._journal.release(upload.position)
            self.backlogs[f"move:{upload.move}"].replace(upload.position, position)
            located = self._rules.locate(upload.source_path)
            if located is not None and upload.source_state is not None:
                self._ledgers[located[0].name].forget(located[1], upload.source_state)
            written.append(upload.at(position))

        def stage() -> None:
            for upload in uploads:
                record = {"event": state, "at": time.time(), **upload.encode()}
                self._commit.stage(record, partial(durable, upload), lasting=True)
            self._commit.stage(None, lambda _: done.set(), lasting=True)

        self._commit.bring_first(stage)
        while not done.wait(WRITTEN_POLL):
            if self._closed.is_set() and self._commit.unwritable_since:
                raise Stopped
        return written

    def _refilled(self, upload: Upload) -> Upload:
        """Return an upload with its task's arguments filled in for its destination."""
        if upload.task is None:
            return upload
        for section in self._settings.tasks:
            if section.name == upload.task.section:
                return upload._replace(task=task_of(upload, section))
        return upload._replace(task=self._task_now(upload))

    # In the publishers', the movers' or the dispatcher's threads.

    def take_at(
        self,
        place: str,
        limit: int,
        timeout: float,
        ended: Callable[[], bool] = lambda: False,
        *,
        most: int = sys.maxsize,
        aside: bool = False,
    ) -> list[Upload]:
        """Take uploads that wait at a place, see `Backlog.take`; with `aside` those that take long.

        For a move, their files are to be moved, or were copied and the source must still be
        removed. At any time no more than `most` uploads of a place are taken and not settled.
        """
        backlog, uploads = self.backlogs[place], []
        if self._commit.unwritable_since:
            # While the journal cannot be written, nothing is taken: what is done could not be
            # written down, and would be done again after a restart.
            self._closed.wait(min(timeout, WRITTEN_POLL))
            return []
        for position in backlog.take(limit, timeout, most=most, aside=aside, ended=ended):
            try:
                upload = backlog.kept.pop(position, None) or self._read(position)
            except (JournalCorrupt, OSError) as e:
                if not self._unreadable:
                    logger.error(
                        "Upload at journal position %d cannot be read: %s. Trying it again. Further"
                        " ones like it are tried again too, without a line here.",
                        position,
                        e,
                    )
                self._unreadable.add(position)
                backlog.put_back(position, UNREADABLE, RETRY, CANNOT_BE_READ)
                continue
            self._unreadable.discard(position)
            if pause := self._pause_of(upload):
                backlog.hold_back(position, pause)
            else:
                uploads.append(upload)
        return uploads

    def _pause_of(self, upload: Upload) -> str:
        """Return the pause that concerns an upload, by its watch or its task; "" if none."""
        if upload.alarm_of or not self.backlogs.pauses:
            return ""
        names = (f"watch:{upload.watch}", f"task:{upload.task.section}" if upload.task else "")
        return next((name for name in names if name in self.backlogs.pauses), "")

    def _take_back(self, reports: Sequence[Report], place: str) -> None:
        """Let deferred uploads wait again, and settle all others."""
        backlog, over = self.backlogs[place], []
        for report in reports:
            if report.state is State.DEFERRED:
                if report.tried:
                    self._tries.failed(report, place)
                backlog.put_back(report.upload.position, report.lane, report.delay, report.reason)
                if self.steps.lookers and report.reason:
                    self.steps.tell(report.state, report.upload, time.time(), report.reason)
            else:
                over.append(report)

        def settle() -> None:
            for report in over:
                work = self._rename if report.state is State.RENAMED else self._settle
                outlive(partial(work, report, backlog))

        if over:
            self._commit.bring_first(settle)

    def _add(self, upload: Upload, place: str) -> Backlog:
        """Add an upload to the backlog of a place, which `offer` must still tell; return that."""
        backlog = self.backlogs[place]
        if len(backlog.kept) < KEPT:
            backlog.kept[upload.position] = upload
        backlog.add(upload.position, upload.owned_by)
        return backlog

    # In the dispatcher's thread.

    def plan(self, upload: Upload) -> Upload:
        """Fill in the move and the task that the rules give an upload; it may have one or both."""
        move = self._rules.move_for(upload.path)
        if move is not None:
            destination = destination_of(move, upload.path, int(upload.accepted * 1000))
            upload = upload._replace(move=move.name, destination=destination)
        return upload._replace(task=self._task_now(upload))

    def _task_now(self, upload: Upload) -> Task | None:
        """Return the task that the rules give an upload now, None if none matches."""
        section = self._rules.task_for(upload.original)
        return task_of(upload, section) if section is not None else None

    def wait(self, upload: Upload) -> None:
        """Let an upload wait for its move or its broker. Its record must be durable."""
        self._journal.hold(upload.position)
        self._add(upload, _place_of(upload))

    def change(self, settings: Settings) -> None:
        """Use other settings from now on. Uploads that wait keep their task and their move."""
        self._settings = settings
        self.alarms.change(settings.on_failed)

    def retry_failed(self, upload: Upload) -> str:
        """Let a failed upload wait again under its id, with the task that the rules give it now.

        Return why that is not possible, "" if it is.
        """
        if reason := self.refusal_to_retry(upload):
            return reason
        again = upload._replace(task=self._task_now(upload) or upload.task)
        self.arriving[upload.id] = again

        def durable(position: int) -> None:
            self.wait(again.at(position))
            del self.arriving[upload.id]
            self.steps.tell(RETRIED, again, record["at"])
            logger.info("Upload %s is tried again: %r.", upload.id, upload.path)

        record = {"event": "retried", "at": time.time(), **again.encode()}
        self.failures.leave(upload.id, record, durable)
        return ""

    def refusal_to_retry(self, upload: Upload) -> str:
        """Return why a failed upload cannot be tried again as it is now, "" if it can."""
        has_work = upload.move or upload.task is not None or self._task_now(upload) is not None
        if not self.failures.holds(upload) or not has_work:
            return "no task matches it"
        return self.file_tracker.refusal(upload)

    def drop(self, upload: Upload) -> None:
        """Settle an upload that an operator drops. It was withdrawn from its backlog before."""
        # A copied upload may be in either of two backlogs: its move's or its broker's.
        mine = [b for _, b in self.backlogs.places() if b.has_taken(upload.position)]
        backlog = mine[0] if mine else self.backlogs[_place_of(upload)]
        self._settle(Report(upload, State.DROPPED, "dropped"), backlog)

    def fail(self, upload: Upload, reason: str) -> None:
        """List an upload as failed before it has waited, for instance because its transfer failed.

        Older failures of its path are settled.
        """
        self.arriving[upload.id] = upload

        def durable(_: int) -> None:
            self.steps.count(State.FAILED, upload, time.time(), reason)
            del self.arriving[upload.id]
            logger.warning("Upload %s failed: %r: %s.", upload.id, upload.path, reason)

        self.failures.add(upload, reason, durable, never_waited=True)
        self.failures.forgive(upload.source_path, but=upload.id)

    def _settle(self, report: Report, backlog: Backlog, renamed: Upload | None = None) -> None:
        """Write down what an upload is settled as.

        If its file was renamed, `renamed` is the upload that it becomes under the new name.
        """
        upload, state = report.upload, report.state
        record = self._tries.settlement(report)
        if upload.alarm_of:
            self.alarms.settle(report, record, backlog)
            return
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
            self.steps.count(state, upload, record["at"], report.reason)
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
        """Settle an upload whose file was renamed. Under the new name it becomes another upload."""
        renamed, before = report.upload, self._read(report.upload.position)
        if before.original == before.path:
            renamed = renamed._replace(original=renamed.path)
        over = Report(before, State.RENAMED, f"renamed to {renamed.path!r}")
        self._settle(over, backlog, renamed)

    # At start.

    def replay(
        self,
        decided: Callable[[Upload, bool, bool], None],
        other: Callable[[int, dict[str, Any]], None],
    ) -> None:
        """Replay the journal, and let all uploads wait again that were not settled.

        `other(position, record)` is called for every record. `decided(upload, failed,
        never_waited)` is called for every decision: whether the upload failed, and whether before
        it had waited at all. `settled` of `__init__` is called for each upload that was settled.
        """
        recent: OrderedDict[int, Upload] = OrderedDict()
        # The journal positions of uploads that wait, by place and owner. There may be a million, so
        # nothing else is kept, and no record is read twice.
        live: dict[tuple[str, int | None], dict[int, int]] = {}
        for position, record in self._journal.replay():
            other(position, record)
            if "id" in record:
                number = uuid.UUID(record["id"]).int
                self.failures.unlist(record["id"])
                before = [positions.pop(number, -1) for positions in live.values()]
                if ALARM_OF in record and "state" not in record:
                    self.alarms.replay_settled(position, record)
                elif "state" not in record and max(before, default=-1) >= 0:
                    self._settled(recent.get(number) or self._read(max(before)))
            if record.get(ALARM_OF) and "state" in record:
                alarm = Upload.decode(record, position)
                self.alarms.replay(alarm)
                live.setdefault((_place_of(alarm), alarm.owned_by), {})[number] = position
            elif "state" in record:
                upload = recent[number] = Upload.decode(record, position)
                if len(recent) > RECENT:
                    recent.popitem(last=False)
                has_failed = record["event"] == State.FAILED
                decided(upload, has_failed, NEVER_WAITED in record)
                if NEVER_WAITED in record or record["event"] == State.ACCEPTED:
                    # It settles older failures of its path. A kill may have come before that was
                    # written down.
                    self.failures.unlist_path(upload.source_path)
                if has_failed:
                    self.failures.replay(upload, record)
                elif upload.move or upload.task is not None:
                    place = _place_of(upload), upload.owned_by
                    live.setdefault(place, {})[number] = position
            elif "from" in record:
                self.file_tracker.replay(position, record)
        taken_up: Counter[str] = Counter()
        for (where, owner), positions in live.items():
            for position in positions.values():
                self._journal.hold(position)
                self.backlogs[where].add(position, owner)
            taken_up[where] += len(positions)
        for where, count in (+taken_up).items():
            kind, _, name = where.partition(":")
            logger.info("Took up %d uploads that wait for %s %s.", count, kind, name)

    def _read(self, position: int) -> Upload:
        return Upload.decode(self._journal.read(position), position)

    # In any thread.

    def groups(self) -> list[Group]:
        """Return all uploads that are not settled, in groups."""
        positions = self.failures.positions()
        failed = Group("", State.FAILED, positions, count=len(positions))
        return [group for group in (failed, *self.backlogs.groups()) if group.count]

    def sizes(self) -> list[Group]:
        """Return what `groups` does, without positions."""
        failed = Group("", State.FAILED, [], count=len(self.failures))
        return [group for group in (failed, *self.backlogs.sizes()) if group.count]


def _place_of(upload: Upload) -> str:
    """Return the place where an upload waits while nobody has taken it."""
    is_moved = upload.source_state is not None
    if upload.move and (not is_moved or upload.is_copied or upload.task is None):
        return f"move:{upload.move}"
    assert upload.task is not None
    return f"broker:{upload.task.broker}"


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
