"""Decides whether a file is an upload now, by how it looks and what sources say of it."""

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

#: Seconds for which a file must be unchanged if the kernel does not tell whether it has a writer.
QUIET = 1.0

#: The same for a file that appeared and may still be open: its last change was a write, and no
#: close was heard. Files that OpenSSH's sftp-server renames need not wait so long: it does so by
#: link(2) and unlink(2), which set the ctime alone, so that the last change is no write.
UNCLOSED = 10.0

#: Seconds until we look again at a file that is being written: at first, and at most. inotify tells
#: when a file is closed, so this is for files in directories that cannot be watched.
WRITING, WRITING_MOST = 1.0, 60.0

#: Seconds for which close(2) may keep hold of a file after it has sent its event. If another writer
#: closes the file meanwhile, that is heard within this time as well.
CLOSING = 0.02

#: Seconds until we look again at a file that a broken disk, a missing right or mount keeps from us.
BARRED = 10.0

#: The reason to hold a file that somebody has open for writing.
WRITTEN = "it is being written"

#: The reason to hold a file whose transfer has failed and that somebody still has open.
STILL_OPEN = "failed, and still open"

#: The reason to hold a file of which ProFTPD may still speak.
UNCONFIRMED = "waiting for ProFTPD's word"


class Judge:
    """Looks at files and says what they are. Only the dispatcher's thread calls it.

    The class is long because each reason to wait is one more question about the same file.
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
        #: Up to which moment (monotonic) we have heard everything that the transfer log holds.
        self.log_read = -math.inf
        #: By watch, how many files no task matched, and how many were excluded.
        self.unmatched: Counter[str] = Counter()
        self.excluded: Counter[str] = Counter()

    def change(self, *, transfer_log: bool) -> None:
        """Use other settings from now on."""
        #: The source that decides whether ProFTPD has received a file. With a transfer log, what
        #: hooks say is only a hint.
        self.decisive = Source.LOG if transfer_log else Source.HOOK

    def heard_until(self) -> float:
        """Return up to which moment (monotonic) we have heard all from the source that decides.

        While we cannot read the transfer log, ProFTPD's silence means nothing.
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
        """Look at a file that a source calls complete, and return what it is.

        `held` is how it was held, None if it was not.
        """
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
            # If we decided about it, it was moved since, and the notification is late.
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
        """Return what a file is that is there and not excluded."""
        path = beneath.below(watch.path, subpath)
        if not self._rewrites.is_new(watch, subpath, look, notification):
            return PassOver(look.state)
        is_said_again = held is not None and notification is held.notification
        if held is not None and is_said_again and held.was_rewritten(look.state):
            # The notification was about what the file held then. Nobody has spoken of what it holds
            # now.
            notification = notification._replace(source=Source.INOTIFY)
        word, overlapped = self._word(notification, held, look.state)
        closed = notification.closed and not is_said_again
        closing = self._closing(path, closed, held, look)
        another = bool(held and held.closing and (closed or look.writing))
        unspoken = another + (held.unspoken if held is not None else 0)
        # ProFTPD speaks once of each writer, in the order in which they ended. Its word of the
        # first may be read when the last has closed the file as well, and tells nothing about the
        # last.
        is_word = self.is_decisive(notification) and notification.kind is Kind.COMPLETED
        speaks = is_word and not is_said_again
        is_of_several = speaks and (bool(look.writing) or unspoken > 0)
        # While a close may be under way, nobody knows yet if the word is that of one of several.
        spoken = is_of_several or (speaks and closing > 0)
        overlapped = overlapped or (another and unspoken >= spoken)
        overlapped = overlapped or (is_of_several and not look.writing)
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
                word=word, overlapped=overlapped, unspoken=another - spoken, closing=closing
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
        """Hold a hard link to somebody else's file, and refuse it if it stays one for a while."""
        reason = look.ownership.refusal() and look.ownership.refusal(uploader(word))
        if not reason:
            return None
        wait = LINKED - self._quiet(held, look.state)
        return Hold(reason, wait, look.state, word) if wait > 0 else Refuse(look.state, reason)

    def _word(
        self, notification: Notification, held: HeldFile | None, state: FileState
    ) -> tuple[Notification, bool]:
        """Return the notification to go by. What ProFTPD has said of a held file stands.

        Also return whether another writer had the file open when that was said. Then it still tells
        who uploaded, but what is there now may be the other's, of whom ProFTPD has yet to speak.
        """
        if held is None:
            return notification, False
        if notification is not held.notification and self.decides(notification, state):
            return notification, False
        if held.was_rewritten(state) or not self.decides(held.notification, state):
            return notification, False
        return held.notification, held.writing or held.overlapped

    def _closing(self, path: str, closed: bool, held: HeldFile | None, look: beneath.Look) -> float:
        """Return until when (monotonic) a close that was heard may be under way, 0 if none is.

        close(2) sends its event before it lets go of the file, see __fput() in fs/file_table.c of
        Linux. So if we look at once, we may find the writer still there: once in some 7,000 files.
        If there is a writer later, too, or if we hear a second close, the file has another writer.
        """
        now = self._monotonic()
        if not closed and held is not None and not look.writing:
            return held.closing if held.closing > now else 0.0
        if not (closed and look.writing):
            return 0.0
        recent = self._recent.get(path, look.state)
        if recent is not None and recent.source is self.decisive and not recent.closed:
            # It is the close of a write of which we heard ProFTPD speak before.
            recent.closed = True
            return 0.0
        return now + CLOSING

    def _still_closed(self, closing: float, look: beneath.Look) -> Verdict | None:
        """Hold a file whose close may still be under way."""
        wait = closing - self._monotonic() if closing else 0.0
        if wait <= 0:
            return None
        return Hold("it is being closed", wait, look.state, writing=bool(look.writing))

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
        # Not all of a long wait at once: chmod(2) makes it short, and we get no event of that.
        return Hold(reason, min(wait, 2 * QUIET), look.state) if wait > 0 else None

    def confirms(self, held: HeldFile, state: FileState) -> bool:
        """Whether ProFTPD has called a held file complete, and nobody has written it since."""
        if held.writing or held.overlapped or held.was_rewritten(state):
            return False
        return self.decides(held.notification, state)

    def decides(self, notification: Notification, state: FileState) -> bool:
        """Whether the source that decides says that ProFTPD has received the file as it is now."""
        return (
            notification.source is self.decisive
            and notification.kind is not Kind.FAILED
            and notification.size in (None, state.size)
            and not _is_newer(state, notification)
        )

    def _failed_before(
        self, decided: bool, held: HeldFile | None, state: FileState
    ) -> Verdict | None:
        """Fail a file whose transfer was said to have failed, unless ProFTPD calls it complete."""
        if held is None or not held.failure or decided:
            return None
        if held.is_of_another(state):
            return None  # the file whose transfer failed is not there any more
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
        """Hold a file of which ProFTPD may still speak, for at most the watch's `confirm`.

        Before that, its silence proves nothing. A chrooted session cannot run hooks. mod_exec does
        not know every name in time, such as that of a STOU. ProFTPD writes a line of the log after
        it has closed the file, and then we must still read it.
        """
        if decided:
            return None
        begun = self._transfers.of(beneath.below(watch.path, subpath))
        # Nobody may hold up a file of others by saying that its transfer has started.
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
        """Whether a notification is from the source that decides."""
        return word.source is self.decisive

    def _unsettled(
        self, watch: WatchSettings, held: HeldFile | None, look: beneath.Look
    ) -> Verdict | None:
        """Hold a file whose client may still look for it, rename it or set its times.

        For instance, rclone looks, WinSCP renames, and lftp and FileZilla set times.
        """
        wait = watch.settle - self._quiet(held, look.state)
        return Hold("settling", wait, look.state) if wait > 0 else None

    def _unchanged(self, held: HeldFile | None, state: FileState) -> float:
        """Return for how many seconds a held file had been unchanged at `heard_until`."""
        return self._seen_so(held, state, self.heard_until())

    def _quiet(self, held: HeldFile | None, state: FileState) -> float:
        """Return for how many seconds we have seen a held file unchanged and closed.

        Its own times do not count: a file server sets them by another clock, and anybody can set
        the mtime by utimensat(2).
        """
        return self._seen_so(held, state, self._monotonic())

    def _seen_so(self, held: HeldFile | None, state: FileState, until: float) -> float:
        if held is None or held.writing or held.state != state:
            return 0.0
        return max(0.0, until - held.unchanged_since)


def _too_fresh(
    notification: Notification, held: HeldFile | None, state: FileState
) -> Verdict | None:
    """Hold a file that a scan has just found: the watcher may be about to tell of its rename.

    Otherwise a renamed file would be another upload, and its task be sent twice.
    """
    if held is not None or not notification.patience:
        return None
    return Hold("found a moment ago", notification.patience, state)


def _is_newer(state: FileState, notification: Notification) -> bool:
    """Whether a file was written after the log's line that the notification is from.

    Lines may be read long after they were written. This is for lines without a size, such as those
    of renames; if there is a size, that is compared.
    """
    if notification.size is not None or not notification.at:
        return False
    # `at` is in whole seconds. An mtime later than the ctime was set by utimensat(2), and tells
    # nothing about a write.
    return (notification.at + 1) * 1e9 <= state.mtime <= state.ctime
