"""Whether a file is an upload now: what to make of what is seen of it and said of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from watchman.config.rules import Rules
from watchman.config.settings import WatchSettings
from watchman.dispatch.hold_queue import HeldFile
from watchman.dispatch.transfers import Transfers
from watchman.dispatch.verdicts import (
    Accept,
    Fail,
    Hold,
    Ignore,
    PassOver,
    RecentDecisions,
    Refuse,
    Rewrites,
    Verdict,
)
from watchman.errors import NotBelowWatch
from watchman.store.ledgers import Ledgers
from watchman.uploads import beneath, mounts
from watchman.uploads.access import may_speak
from watchman.uploads.ownership import LINKED, uploader
from watchman.uploads.upload import PROFTPD, FileState, Kind, Notification, Source

#: Seconds a file must be unchanged where the kernel does not tell of writers.
QUIET = 1.0

#: The same for one that appeared and may have been open for writing since then: its last change was
#: a write, and no close was heard. link(2) and unlink(2) set its ctime alone.
UNCLOSED = 10.0

#: Seconds until a file that is being written is looked at again unasked: at first, and at most.
#: Whoever closes it is heard, if it is watched; the rest is for files that are not.
WRITING, WRITING_MOST = 1.0, 60.0

#: Seconds that a close(2) may take from its event on until it has let go of the file, and within
#: which the close of another who had it open is heard as well.
CLOSING = 0.02

#: Seconds until a file is looked at again that a disk or a right keeps from being looked at.
BARRED = 10.0

#: Why a file is held that somebody has open for writing.
WRITTEN = "it is being written"

#: Why a file is held whose transfer has failed, until its writer is gone.
STILL_OPEN = "failed, and still open"

#: Why a file is held of which ProFTPD may have more to say.
UNCONFIRMED = "waiting for ProFTPD's word"


class Judge:
    """Looks at files and says what they are. For the dispatcher's thread.

    Long, for each reason to wait is one more question to the same file.
    """

    def __init__(
        self,
        *,
        rules: Rules,
        ledgers: Ledgers,
        recent: RecentDecisions,
        transfers: Transfers,
        monotonic: Callable[[], float],
        transfer_log: bool,
    ) -> None:
        self._rules = rules
        self._ledgers = ledgers
        self._recent = recent
        self._rewrites = Rewrites(ledgers=ledgers, recent=recent, decides=self.decides)
        self._transfers = transfers
        self._monotonic = monotonic
        self.change(transfer_log=transfer_log)
        #: When the transfer log held no more than what we have heard of it (monotonic).
        self.log_read = -math.inf
        #: By watch: files that no task matches, and those excluded.
        self.unmatched: Counter[str] = Counter()
        self.excluded: Counter[str] = Counter()

    def change(self, *, transfer_log: bool) -> None:
        """Judge by other settings from now on."""
        #: Whose word decides on what ProFTPD has received; with a log, hooks only give hints.
        self.decisive = Source.LOG if transfer_log else Source.HOOK

    def heard_until(self) -> float:
        """Return until when (monotonic) we have heard all that the word that decides may say.

        What ProFTPD wrote to its log while we could not read it is no silence.
        """
        if self.decisive is Source.LOG:
            return min(self._monotonic(), self.log_read)
        return self._monotonic()

    def judge(
        self,
        watch: WatchSettings,
        subpath: str,
        notification: Notification,
        held: HeldFile | None,
    ) -> Verdict:
        """Look at a file below a watch that its source says is complete, `held` if it was."""
        path = beneath.below(watch.path, subpath)
        pattern = self._rules.excluded(watch, subpath)
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
        with look:
            return self._judge(watch, subpath, look, notification, held)

    def _judge(
        self,
        watch: WatchSettings,
        subpath: str,
        look: beneath.Look,
        notification: Notification,
        held: HeldFile | None,
    ) -> Verdict:
        """Say what a file is that is there, and may be an upload."""
        path = beneath.below(watch.path, subpath)
        if not self._rewrites.is_new(watch, subpath, look, notification):
            return PassOver(look.state)
        is_said_again = held is not None and notification is held.notification
        if held is not None and is_said_again and held.was_rewritten(look.state):
            # It told of what was there before, and of what is there now nobody has spoken.
            notification = notification._replace(source=Source.INOTIFY)
        word, overlapped = self._word(notification, held, look.state)
        closed = notification.closed and not is_said_again
        closing = self._closing(path, closed, held, look)
        another = bool(held and held.closing and (closed or look.writing))
        unspoken = another + self._spoken(notification, held, another, look)
        overlapped = overlapped or another or (unspoken < 0 and not look.writing)
        decided = self.decides(word, look.state) and not overlapped
        verdict = (
            _too_fresh(notification, held, look.state)
            or self._still_closed(closing, look)
            or self._still_written(notification, held, look)
            or self._failed_before(decided, held, look.state)
            or self._unconfirmed(watch, subpath, word, decided, held, look.state)
            or self._unsettled(watch, held, look)
        )
        if isinstance(verdict, Hold):
            return verdict._replace(
                word=word, overlapped=overlapped, unspoken=unspoken, closing=closing
            )
        if verdict is None and not self._rules.matches(path):
            self._ledgers[watch.name].put(subpath, look.state)
            self.unmatched[watch.name] += 1
            return Ignore("no task matches")
        verdict = verdict or self._refused(word, held, look)
        if isinstance(verdict, Fail):
            return verdict._replace(sample=look.sample())
        return verdict or Accept(look.state, word, look.ownership, look.sample())

    def _refused(
        self, word: Notification, held: HeldFile | None, look: beneath.Look
    ) -> Verdict | None:
        """Refuse a hard link to a file of somebody else, once it has stayed one for a while."""
        reason = look.ownership.refusal() and look.ownership.refusal(uploader(word))
        if not reason:
            return None
        wait = LINKED - self._quiet(held, look.state)
        return Hold(reason, wait, look.state, word) if wait > 0 else Refuse(look.state, reason)

    def _word(
        self, notification: Notification, held: HeldFile | None, state: FileState
    ) -> tuple[Notification, bool]:
        """Return what to go by: what ProFTPD has said of a held file stands, whoever speaks of it.

        And whether another had the file open for writing when that was said: then it still tells
        who uploaded, but what is there now may be the other's, of whom nobody has spoken yet.
        """
        if held is None:
            return notification, False
        if notification is not held.notification and self.decides(notification, state):
            return notification, False
        if held.was_rewritten(state) or not self.decides(held.notification, state):
            return notification, False
        return held.notification, held.writing or held.overlapped

    def _closing(self, path: str, closed: bool, held: HeldFile | None, look: beneath.Look) -> float:
        """Return until when (monotonic) a close may be under way that was heard; 0 if none may.

        close(2) sends its event before it lets go of the file, so who reacts at once finds the
        writer still there. It is another one, who has the file open as well, if he is there later,
        too, or if a second close is heard.
        """
        now = self._monotonic()
        if not closed and held is not None and not look.writing:
            return held.closing if held.closing > now else 0.0
        if not (closed and look.writing):
            return 0.0
        recent = self._recent.get(path, look.state)
        if recent is not None and recent.source is self.decisive and not recent.closed:
            # Of this write ProFTPD has spoken, and was heard before the kernel.
            recent.closed = True
            return 0.0
        return now + CLOSING

    def _still_closed(self, closing: float, look: beneath.Look) -> Verdict | None:
        """Hold a file whose close may still be under way."""
        wait = closing - self._monotonic() if closing else 0.0
        if wait <= 0:
            return None
        return Hold("it is being closed", wait, look.state, writing=bool(look.writing))

    def _spoken(
        self, notification: Notification, held: HeldFile | None, another: bool, look: beneath.Look
    ) -> int:
        """Return -1 where ProFTPD speaks of one of several writers of a file, else 0; `another` if
        one more of them has just shown.

        The word that decides comes once for each, in the order in which they ended. That of the
        first may be read when the last has closed the file as well, and does not speak of him.
        """
        if held is not None and notification is held.notification:
            return 0
        if notification.source is not self.decisive or notification.kind is not Kind.COMPLETED:
            return 0
        return -1 if look.writing or (held is not None and held.unspoken + another > 0) else 0

    def _still_written(
        self, notification: Notification, held: HeldFile | None, look: beneath.Look
    ) -> Verdict | None:
        """Hold a file that may have a writer."""
        if look.writing:
            looks = held.looks if held else 0
            wait = min(WRITING * 2**looks, WRITING_MOST)
            return Hold(WRITTEN, wait, look.state, writing=True)
        if look.writing is False:
            return None
        unclosed = notification.appeared or (held is not None and held.unclosed)
        if notification.closed or notification.source in PROFTPD:
            unclosed = False
        is_written_last = look.state.mtime >= look.state.ctime
        patience = UNCLOSED if unclosed and is_written_last else QUIET
        wait = patience - self._quiet(held, look.state)
        reason = "the kernel does not say who writes it"
        # A change that comes without an event, as chmod(2), may end the longer wait.
        return Hold(reason, min(wait, 2 * QUIET), look.state) if wait > 0 else None

    def confirms(self, held: HeldFile, state: FileState) -> bool:
        """Whether ProFTPD has said of a held file that it is whole, and nobody wrote it since."""
        if held.writing or held.overlapped or held.was_rewritten(state):
            return False
        return self.decides(held.notification, state)

    def decides(self, notification: Notification, state: FileState) -> bool:
        """Whether ProFTPD says that it has received the file, as it is now."""
        return (
            notification.source is self.decisive
            and notification.kind is not Kind.FAILED
            and notification.size in (None, state.size)
            and not _is_newer(state, notification)
        )

    def _failed_before(
        self, decided: bool, held: HeldFile | None, state: FileState
    ) -> Verdict | None:
        """Fail a file whose transfer was said to have failed, unless there is a better word."""
        if held is None or not held.failure or decided:
            return None
        if held.is_of_another(state):
            return None  # which has left
        if held.fail_at > self.heard_until() and held.reason != STILL_OPEN:
            return Hold(held.reason, max(0.0, held.fail_at - self._monotonic()), state)
        return Fail(state, held.failure)

    def _unconfirmed(
        self,
        watch: WatchSettings,
        subpath: str,
        word: Notification,
        decided: bool,
        held: HeldFile | None,
        state: FileState,
    ) -> Verdict | None:
        """Hold what ProFTPD may have more to say of: its silence proves nothing before `confirm`.

        A session may not be able to run hooks, as a chrooted one, nor to name what it writes; the
        log's line comes after the file is closed, and when the log's reader gets to it.
        """
        if decided:
            return None
        begun = self._transfers.of(beneath.below(watch.path, subpath))
        if any(may_speak(one, watch.path, subpath) for one in begun):
            return Hold("ProFTPD is receiving it", WRITING_MOST, state)
        if not watch.proftpd and word.source not in PROFTPD:
            return None
        wait = watch.confirm - self._unchanged(held, state)
        if wait > 0:
            return Hold(UNCONFIRMED, wait, state)
        if watch.unconfirmed == "hold" and not (held is not None and held.hooked):
            return Fail(state, f"ProFTPD did not confirm it within {watch.confirm:g} seconds")
        return None

    def is_decisive(self, word: Notification) -> bool:
        """Whether it is of the source that says what ProFTPD has received whole."""
        return word.source is self.decisive

    def _unsettled(
        self, watch: WatchSettings, held: HeldFile | None, look: beneath.Look
    ) -> Verdict | None:
        """Hold a file whose client may still look for it, rename it or set its times."""
        wait = watch.settle - self._quiet(held, look.state)
        return Hold("settling", wait, look.state) if wait > 0 else None

    def _unchanged(self, held: HeldFile | None, state: FileState) -> float:
        """Return for how many seconds a held file has been as it is, with all heard that ProFTPD
        said until then.
        """
        return self._seen_so(held, state, self.heard_until())

    def _quiet(self, held: HeldFile | None, state: FileState) -> float:
        """Return for how many seconds we have seen a held file to be as it is, and closed.

        Only what was watched counts: a file's times are set by its server's clock, or by anybody.
        """
        return self._seen_so(held, state, self._monotonic())

    def _seen_so(self, held: HeldFile | None, state: FileState, until: float) -> float:
        if held is None or held.writing or held.state != state:
            return 0.0
        return max(0.0, until - held.unchanged_since)


def _too_fresh(
    notification: Notification, held: HeldFile | None, state: FileState
) -> Verdict | None:
    """Hold what was found before word of it can have come: it may be a rename's."""
    if held is not None or not notification.patience:
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
