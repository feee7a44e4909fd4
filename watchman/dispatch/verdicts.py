"""The verdicts on files, the latest decisions, and whether a file was written since."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from watchman.config.settings import WatchSettings
from watchman.store.ledgers import Ledgers
from watchman.uploads import beneath
from watchman.uploads.ownership import Ownership
from watchman.uploads.upload import PROFTPD, FileState, Notification, Source, Upload

#: How many decisions are remembered.
RECENT = 10_000


class Ignore(NamedTuple):
    """The file is not an upload."""

    reason: str


class PassOver(NamedTuple):
    """The file was decided about and not written since. `state` is None if it is not there now."""

    state: FileState | None


class Hold(NamedTuple):
    """The file may not be whole: look again in `wait` seconds, or when a source speaks of it.

    `word` is the notification to go by then. If the source that decides has spoken of the file as
    it is now, that is its notification, else the latest one.
    `writing` says that somebody has the file open for writing, `overlapped` that somebody else had
    when `word` was said.
    `unspoken` is how many more writers than before, or fewer, have closed the file and were not
    spoken of by ProFTPD yet.
    `closing` is until when (monotonic) a close that was heard may still be under way, 0 if none is;
    see `Judge._closing`.
    """

    reason: str
    wait: float
    state: FileState | None = None
    word: Notification | None = None
    writing: bool = False
    overlapped: bool = False
    unspoken: int = 0
    closing: float = 0.0


class Accept(NamedTuple):
    """The file is an upload."""

    state: FileState
    word: Notification
    ownership: Ownership
    sample: int


class Fail(NamedTuple):
    """The file is what a failed transfer has left."""

    state: FileState
    reason: str
    sample: int = 0


class Refuse(Fail):
    """The file is a hard link to somebody else's file."""

    __slots__ = ()


Verdict = Ignore | PassOver | Hold | Accept | Fail


@dataclass(slots=True)
class Recent:
    """A decision about a file: the upload's id, the file's inode, and when it was made (epoch).

    `source` is who spoke of the file first, `sources` are all who have.
    `failed` says that the decision was that the transfer has failed.
    `closed` says that we have heard the writer close the file, before the decision or since.
    `begun` says that a session has begun to write the file again since.
    """

    id: str
    inode: int
    decided: float
    source: Source
    failed: bool = False
    closed: bool = False
    begun: bool = False
    sources: set[Source] = field(default_factory=set)


class RecentDecisions:
    """The latest decisions by path, at most RECENT. Only the dispatcher's thread uses them."""

    def __init__(self) -> None:
        self._by_path: OrderedDict[str, Recent] = OrderedDict()

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def get(self, path: str, state: FileState | None = None) -> Recent | None:
        """Return the last decision about a path, even if its file is gone.

        With `state`, return None if the decision was about another inode.
        """
        recent = self._by_path.get(path)
        if recent is None or (state is not None and state.inode != recent.inode):
            return None
        return recent

    def remember(self, upload: Upload, *, failed: bool = False, closed: bool = False) -> None:
        """Remember a decision. It replaces the one before about the same path."""
        state, path = upload.source_state or upload.state, upload.source_path
        recent = Recent(upload.id, state.inode, upload.accepted, upload.source, failed, closed)
        recent.sources.add(upload.source)
        self.restore(path, recent)
        if len(self._by_path) > RECENT:
            self._by_path.popitem(last=False)

    def restore(self, path: str, recent: Recent | None) -> None:
        """Undo a `remember`: `recent`, which it replaced, is the last decision again."""
        self._by_path.pop(path, None)
        if recent is not None:
            self._by_path[path] = recent

    def begin(self, path: str) -> None:
        """Remember that a session begins to write a file again."""
        if path in self._by_path:
            self._by_path[path].begun = True


class Rewrites:
    """Tells whether a file was written since it was decided about.

    Only the dispatcher's thread calls it. `decides` is `Judge.decides`.
    """

    def __init__(
        self,
        *,
        ledgers: Ledgers,
        recent: RecentDecisions,
        decides: Callable[[Notification, FileState], bool],
    ) -> None:
        self._ledgers = ledgers
        self._recent = recent
        self._decides = decides

    def is_new(
        self, watch: WatchSettings, subpath: str, look: beneath.Look, notification: Notification
    ) -> bool:
        """Whether a file was written since the last decision about it, or there is none."""
        source, state = notification.source, look.state
        decision = self._ledgers[watch.name].get(subpath, state)
        if decision is None or state.rewritten_since(decision.size, decision.ctime):
            return not self._came_with_its_directory(watch, subpath, state)
        if source is Source.SCAN or notification.appeared:
            return self._is_rewritten(watch, subpath, look)
        if decision.existing:
            # It was there before the watch began, and somebody had it open for writing until now.
            return True
        recent = self._recent.get(beneath.below(watch.path, subpath), state)
        if recent is not None and self._is_better(notification, recent, state):
            return True
        if state.ctime == decision.ctime:
            return False
        # Only ctime differs. After the write there was an MFMT, a chmod(2), a rename, or another
        # write that kept the mtime.
        if source in PROFTPD:
            # Each source speaks once of a write. If it speaks again, there was another write.
            return recent is None or source in recent.sources
        if not notification.closed or (recent is not None and not recent.closed):
            # No writer has closed it now, or this is the close of the write that was decided about.
            return self._is_rewritten(watch, subpath, look)
        return True

    def _is_rewritten(self, watch: WatchSettings, subpath: str, look: beneath.Look) -> bool:
        """Whether the ctime of a file has changed, and its content too. The sample tells."""
        if not self._ledgers[watch.name].doubts(subpath, look.state):
            return False
        sample = look.sample()
        if not sample:
            return False  # it has changed since, which a source will tell; or we may not read it
        return not self._ledgers[watch.name].holds(subpath, look.state, sample)

    def _is_better(self, notification: Notification, recent: Recent, state: FileState) -> bool:
        """Whether ProFTPD has received a file whole that was decided about as failed.

        Then the file is that of the next transfer, which was over when we heard that the one before
        had failed. The log has transfers in order, so its word counts. mod_exec mixes up files that
        an SFTP session writes at the same time. So a hook's word counts only if another source told
        of the failure, or if a session has begun to write the file again since.
        """
        if not recent.failed or not self._decides(notification, state):
            return False
        unsure = recent.source is not notification.source
        return unsure or recent.begun or notification.source is Source.LOG

    def _came_with_its_directory(
        self, watch: WatchSettings, subpath: str, state: FileState
    ) -> bool:
        """Whether a file came with its directory from another watch, which decided about it.

        A rename of a directory leaves the ctime of the files in it alone, to the nanosecond.
        """
        if len(self._ledgers) == 1:
            return False
        others = (self._ledgers[name] for name in self._ledgers if name != watch.name)
        if not any(ledger.has_decision_of(subpath, state) for ledger in others):
            return False
        self._ledgers[watch.name].put(subpath, state)
        return True
