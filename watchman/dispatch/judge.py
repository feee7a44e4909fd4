"""Whether a file is an upload now: what to make of what is seen of it and said of it."""

from __future__ import annotations

import math
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from watchman.config.rules import Rules
from watchman.config.settings import WatchSettings
from watchman.dispatch.hold_queue import HeldFile
from watchman.dispatch.transfers import Transfers
from watchman.errors import NotBelowWatch
from watchman.store.ledger import Ledger
from watchman.uploads import beneath, mounts
from watchman.uploads.access import may_speak
from watchman.uploads.ownership import LINKED, Ownership, uploader
from watchman.uploads.upload import FileState, Kind, Notification, Source, Upload

#: Latest decisions whose upload id, time and sources are remembered.
RECENT = 10_000

#: Seconds a file must be unchanged where the kernel does not tell of writers.
QUIET = 1.0

#: The same for one that appeared and may have been open for writing since then: its last change was
#: a write, and no close was heard. link(2) and unlink(2) set its ctime alone.
UNCLOSED = 10.0

#: Seconds until a file that is being written is looked at again unasked: at first, and at most.
#: Whoever closes it is heard, if it is watched; the rest is for files that are not.
WRITING, WRITING_MOST = 1.0, 60.0

#: Seconds until a file is looked at again that a disk or a right keeps from being looked at.
BARRED = 10.0

#: Why a file is held whose transfer has failed, until its writer is gone.
STILL_OPEN = "failed, and still open"

#: Why a file is held of which ProFTPD may have more to say.
UNCONFIRMED = "waiting for ProFTPD's word"

#: Sources that tell whether ProFTPD has received a file whole.
PROFTPD = frozenset({Source.HOOK, Source.LOG})


@dataclass(slots=True)
class Recent:
    """What a ledger has no room for: the upload's id, when it was decided (epoch), who spoke.

    `closed` if it was heard of since that somebody closed it who had it open for writing.
    `failed` by the word that decides, or `unsure` without it; `begun` if a session has begun to
    write the file again since.
    """

    id: str
    inode: int
    decided: float
    sources: set[Source]
    failed: bool = False
    unsure: bool = False
    begun: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Ignore:
    """The file is none of ours."""

    reason: str


@dataclass(frozen=True, slots=True)
class PassOver:
    """The file was decided about and not written since; without a state it has left."""

    state: FileState | None


@dataclass(frozen=True, slots=True)
class Hold:
    """The file may not be whole: look again in `wait` seconds, or when it is spoken of.

    `word` is what to go by then: what the source that decides has said of the file as it is, else
    what was said now; `overlapped` if it was said while another had the file open for writing.
    `writing` if it has a writer. `unspoken` is by how many there are more of its writers, or fewer,
    who have closed it and of whom ProFTPD has yet to speak.
    """

    reason: str
    wait: float
    state: FileState | None = None
    word: Notification | None = None
    writing: bool = False
    overlapped: bool = False
    unspoken: int = 0


@dataclass(frozen=True, slots=True)
class Accept:
    """The file is an upload."""

    state: FileState
    word: Notification
    ownership: Ownership


@dataclass(frozen=True, slots=True)
class Fail:
    """The file is what a failed transfer left."""

    state: FileState
    reason: str


class Refuse(Fail):
    """The file is somebody else's."""


Verdict = Ignore | PassOver | Hold | Accept | Fail


class Judge:
    """Looks at files, and remembers what was decided about them. For the dispatcher's thread."""

    def __init__(
        self,
        *,
        rules: Rules,
        ledgers: Mapping[str, Ledger],
        transfers: Transfers,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        transfer_log: bool = False,
    ) -> None:
        self.change(rules=rules, ledgers=ledgers, transfer_log=transfer_log)
        self._transfers = transfers
        self._clock = clock
        self._monotonic = monotonic
        #: By path.
        self._recent: OrderedDict[str, Recent] = OrderedDict()
        #: When the transfer log held no more than what we have heard of it (monotonic).
        self.log_read = -math.inf
        #: By watch: files that no task matches, and those excluded.
        self.unmatched: Counter[str] = Counter()
        self.excluded: Counter[str] = Counter()

    def change(self, *, rules: Rules, ledgers: Mapping[str, Ledger], transfer_log: bool) -> None:
        """Judge by other settings from now on."""
        #: Whose word decides on what ProFTPD has received; with a log, hooks only give hints.
        self.decisive = Source.LOG if transfer_log else Source.HOOK
        self._rules = rules
        self._ledgers = ledgers

    def heard_until(self) -> float:
        """Return until when (monotonic) we have heard all that the word that decides may say.

        What ProFTPD wrote to its log while we could not read it is no silence.
        """
        if self.decisive is Source.LOG:
            return min(self._monotonic(), self.log_read)
        return self._monotonic()

    def remember(self, upload: Upload, *, failed: bool = False, closed: bool = False) -> None:
        """Remember a decision beyond what its ledger holds, among the latest.

        `failed` if it was that a transfer has failed, `closed` if the file's closing led to it.
        """
        inode = (upload.source_state or upload.state).inode
        unsure = failed and upload.source is not self.decisive
        recent = Recent(
            upload.id, inode, upload.accepted, {upload.source}, failed, unsure, closed=closed
        )
        self._recent.pop(upload.source_path, None)
        self._recent[upload.source_path] = recent
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def restore(self, path: str, recent: Recent | None) -> None:
        """Undo a `remember`: what it replaced is the last decision again."""
        self._recent.pop(path)
        if recent is not None:
            self._recent[path] = recent

    def begin(self, path: str) -> None:
        """Remember that a session begins to write a file."""
        if path in self._recent:
            self._recent[path].begun = True

    def recent(self, path: str, state: FileState | None) -> Recent | None:
        """Return what is remembered of the last decision about a file, one that left as well."""
        recent = self._recent.get(path)
        if recent is None or (state is not None and state.inode != recent.inode):
            return None
        return recent

    def excludes(self, watch: WatchSettings, subpath: str) -> str | None:
        """Return what keeps a file from being an upload by its name, if anything."""
        return self._rules.excluded(watch, subpath)

    def matches(self, path: str) -> bool:
        """Whether a move or a task wants the file at a path."""
        return self._rules.matches(path)

    def was_decided(self, watch: WatchSettings, subpath: str, state: FileState) -> bool:
        """Whether a file has not been written since it was decided about under that name."""
        decision = self._ledgers[watch.name].get(subpath, state)
        return decision is not None and not state.rewritten_since(decision.size, decision.ctime)

    def judge(
        self,
        watch: WatchSettings,
        subpath: str,
        notification: Notification,
        noticed: HeldFile | None,
    ) -> Verdict:
        """Look at a file below a watch that its source says is complete; `noticed` if held."""
        path = os.path.join(watch.path, subpath)
        pattern = self.excludes(watch, subpath)
        if pattern is not None:
            self.excluded[watch.name] += 1
            return Ignore(f"excluded by {pattern}")
        if watch.mounted and not mounts.is_mounted(watch.path):
            return Hold(f"{watch.path} is not mounted", BARRED)
        try:
            look = beneath.look(watch.path, subpath)
        except FileNotFoundError:
            # It may be a late word of a file that was moved meanwhile.
            return PassOver(None) if path in self._recent else Ignore("no such file")
        except NotBelowWatch as e:
            return Ignore(str(e))
        except OSError as e:
            return Hold(e.strerror or str(e), BARRED)
        if not self._is_new(watch, subpath, look.state, notification):
            return PassOver(look.state)
        if (
            noticed is not None
            and notification is noticed.notification
            and noticed.was_rewritten(look.state)
        ):
            # It told of what was there before, and of what is there now nobody has spoken.
            notification = replace(notification, source=Source.INOTIFY)
        word, overlapped = self._word(notification, noticed, look.state)
        unspoken = self._counted(notification, noticed, writing=look.writing)
        overlapped = overlapped or (unspoken < 0 and not look.writing)
        decided = self._decides(word, look.state) and not overlapped
        verdict = (
            _too_fresh(notification, noticed, look.state)
            or self._still_written(notification, noticed, look)
            or self._failed_before(decided, noticed, look.state)
            or self._unconfirmed(watch, subpath, word, decided, noticed, look.state)
            or self._unsettled(watch, noticed, look)
        )
        if isinstance(verdict, Hold):
            return replace(verdict, word=word, overlapped=overlapped, unspoken=unspoken)
        if verdict is not None:
            return verdict
        if not self.matches(path):
            self._ledgers[watch.name].put(subpath, look.state)
            self.unmatched[watch.name] += 1
            return Ignore("no task matches")
        return self._refused(word, noticed, look) or Accept(look.state, word, look.ownership)

    def _refused(
        self, word: Notification, noticed: HeldFile | None, look: beneath.Look
    ) -> Verdict | None:
        """Refuse a hard link to a file of somebody else, once it has stayed one for a while."""
        reason = look.ownership.refusal() and look.ownership.refusal(uploader(word))
        if not reason:
            return None
        wait = LINKED - self._quiet(noticed, look.state)
        return Hold(reason, wait, look.state, word) if wait > 0 else Refuse(look.state, reason)

    def _word(
        self, notification: Notification, noticed: HeldFile | None, state: FileState
    ) -> tuple[Notification, bool]:
        """Return what to go by: what ProFTPD has said of a held file stands, whoever speaks of it.

        And whether another had the file open for writing when that was said: then it still tells
        who uploaded, but what is there now may be the other's, of whom nobody has spoken yet.
        """
        if noticed is None:
            return notification, False
        if notification is not noticed.notification and self._decides(notification, state):
            return notification, False
        if noticed.was_rewritten(state) or not self._decides(noticed.notification, state):
            return notification, False
        return noticed.notification, noticed.writing or noticed.overlapped

    def _counted(
        self, notification: Notification, noticed: HeldFile | None, *, writing: bool | None
    ) -> int:
        """Return 1 where one of several writers has closed a file, -1 where ProFTPD speaks of one.

        The word that decides comes once for each, in the order in which they ended. That of the
        first may be read when the last has closed the file as well, and does not speak of him.
        """
        if noticed is not None and notification is noticed.notification:
            return 0
        if notification.closed:
            return 1 if writing else 0
        if notification.source is not self.decisive or notification.kind is not Kind.COMPLETED:
            return 0
        return -1 if writing or (noticed is not None and noticed.unspoken > 0) else 0

    def _still_written(
        self, notification: Notification, noticed: HeldFile | None, look: beneath.Look
    ) -> Verdict | None:
        """Hold a file that may have a writer."""
        if look.writing:
            looks = noticed.looks if noticed else 0
            wait = min(WRITING * 2**looks, WRITING_MOST)
            return Hold("it is being written", wait, look.state, writing=True)
        if look.writing is False:
            return None
        unclosed = notification.appeared or (noticed is not None and noticed.unclosed)
        if notification.closed or notification.source in PROFTPD:
            unclosed = False
        is_written_last = look.state.mtime >= look.state.ctime
        patience = UNCLOSED if unclosed and is_written_last else QUIET
        wait = patience - self._quiet(noticed, look.state)
        reason = "the kernel does not say who writes it"
        # A change that comes without an event, as chmod(2), may end the longer wait.
        return Hold(reason, min(wait, 2 * QUIET), look.state) if wait > 0 else None

    def confirms(self, noticed: HeldFile, state: FileState) -> bool:
        """Whether ProFTPD has said of a held file that it is whole, and nobody wrote it since."""
        if noticed.writing or noticed.overlapped or noticed.was_rewritten(state):
            return False
        return self._decides(noticed.notification, state)

    def _decides(self, notification: Notification, state: FileState) -> bool:
        """Whether ProFTPD says that it has received the file, as it is now."""
        return (
            notification.source is self.decisive
            and notification.kind is not Kind.FAILED
            and notification.size in (None, state.size)
            and not _is_newer(state, notification)
        )

    def _failed_before(
        self, decided: bool, noticed: HeldFile | None, state: FileState
    ) -> Verdict | None:
        """Fail a file whose transfer was said to have failed, unless there is a better word."""
        if noticed is None or not noticed.failure or decided:
            return None
        if noticed.is_of_another(state):
            return None  # which has left
        if noticed.fail_at > self.heard_until() and noticed.reason != STILL_OPEN:
            return Hold(noticed.reason, max(0.0, noticed.fail_at - self._monotonic()), state)
        return Fail(state, noticed.failure)

    def _unconfirmed(
        self,
        watch: WatchSettings,
        subpath: str,
        word: Notification,
        decided: bool,
        noticed: HeldFile | None,
        state: FileState,
    ) -> Verdict | None:
        """Hold what ProFTPD may have more to say of: its silence proves nothing before `confirm`.

        A session may not be able to run hooks, as a chrooted one, nor to name what it writes; the
        log's line comes after the file is closed, and when the log's reader gets to it.
        """
        if decided:
            return None
        begun = self._transfers.of(os.path.join(watch.path, subpath))
        if any(may_speak(one, watch.path, subpath) for one in begun):
            return Hold("ProFTPD is receiving it", WRITING_MOST, state)
        if not watch.proftpd and word.source not in PROFTPD:
            return None
        wait = watch.confirm - self._unchanged(noticed, state)
        if wait > 0:
            return Hold(UNCONFIRMED, wait, state)
        if watch.unconfirmed == "hold" and not (noticed is not None and noticed.hooked):
            return Fail(state, f"ProFTPD did not confirm it within {watch.confirm:g} seconds")
        return None

    def is_decisive(self, word: Notification) -> bool:
        """Whether it is of the source that says what ProFTPD has received whole."""
        return word.source is self.decisive

    def _unsettled(
        self, watch: WatchSettings, noticed: HeldFile | None, look: beneath.Look
    ) -> Verdict | None:
        """Hold a file whose client may still look for it, rename it or set its times."""
        wait = watch.settle - self._quiet(noticed, look.state)
        return Hold("settling", wait, look.state) if wait > 0 else None

    def _unchanged(self, noticed: HeldFile | None, state: FileState) -> float:
        """Return for how many seconds a held file has been as it is, with all heard that ProFTPD
        said until then.
        """
        return self._seen_so(noticed, state, self.heard_until())

    def _quiet(self, noticed: HeldFile | None, state: FileState) -> float:
        """Return for how many seconds we have seen a held file to be as it is, and closed.

        Only what was watched counts: a file's times are set by its server's clock, or by anybody.
        """
        return self._seen_so(noticed, state, self._monotonic())

    def _seen_so(self, noticed: HeldFile | None, state: FileState, until: float) -> float:
        if noticed is None or noticed.writing or noticed.state != state:
            return 0.0
        return max(0.0, until - noticed.unchanged_since)

    def _is_new(
        self, watch: WatchSettings, subpath: str, state: FileState, notification: Notification
    ) -> bool:
        """Whether a file holds a write that nobody has decided about yet."""
        source = notification.source
        decision = self._ledgers[watch.name].get(subpath, state)
        if decision is None or state.rewritten_since(decision.size, decision.ctime):
            return not self._came_with_its_directory(watch, subpath, state)
        if source is Source.SCAN or notification.appeared:
            return self._is_rewritten(watch, subpath, state)
        if decision.existing:
            # Open for writing since before the watch began, and closed now.
            return True
        recent = self.recent(os.path.join(watch.path, subpath), state)
        if recent is not None and self._is_better(notification, recent, state):
            return True
        if state.ctime == decision.ctime:
            return False
        # Only ctime differs: MFMT or chmod after it, a rename, or a write that kept the mtime.
        if source in PROFTPD:
            return recent is None or source in recent.sources
        if not notification.closed or (recent is not None and not recent.closed):
            # Nobody wrote it, or it may be the end of that very write, heard of late.
            return self._is_rewritten(watch, subpath, state)
        return True

    def _is_rewritten(self, watch: WatchSettings, subpath: str, state: FileState) -> bool:
        """Whether a file whose ctime alone differs holds something else than was decided about."""
        if not self._ledgers[watch.name].doubts(subpath, state):
            return False
        sample = beneath.sample(watch.path, subpath, state)
        if sample is None:
            return False  # changed since, of which there will be word; or not ours to read
        return not self._ledgers[watch.name].holds(subpath, state, sample)

    def _is_better(self, notification: Notification, recent: Recent, state: FileState) -> bool:
        """Whether it tells of a whole file that was taken for what a failed transfer has left.

        It is that of the next transfer then, which was over when word came of the one before. The
        log tells of them in turn; hooks mix up what one SFTP session writes at the same time.
        """
        if not recent.failed or not self._decides(notification, state):
            return False
        return recent.unsure or recent.begun or notification.source is Source.LOG

    def _came_with_its_directory(
        self, watch: WatchSettings, subpath: str, state: FileState
    ) -> bool:
        """Whether another watch decided about a file, and its directory was renamed into this one.

        That leaves its ctime alone, to the nanosecond.
        """
        decisions = [ledger.get(subpath, state) for ledger in self._ledgers.values()]
        if not any(decision is not None and decision.is_of(state) for decision in decisions):
            return False
        self._ledgers[watch.name].put(subpath, state)
        return True


def _too_fresh(
    notification: Notification, noticed: HeldFile | None, state: FileState
) -> Verdict | None:
    """Hold what was found before word of it can have come: it may be a rename's."""
    if noticed is not None or not notification.patience:
        return None
    return Hold("found a moment ago", notification.patience, state)


def _is_newer(state: FileState, notification: Notification) -> bool:
    """Whether a file was written since a line of the log that does not tell of its size, as that
    of a rename: lines may be read long after they were written.
    """
    if notification.size is not None or not notification.at:
        return False
    # An mtime beyond the ctime was set by utimensat(2) and says nothing of a write.
    return (notification.at + 1) * 1e9 <= state.mtime <= state.ctime
