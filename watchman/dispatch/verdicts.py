"""What can be made of a file, what was made of it before, and whether it was written since."""

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

#: Decisions that are remembered.
RECENT = 10_000


class Ignore(NamedTuple):
    """The file is none of ours."""

    reason: str


class PassOver(NamedTuple):
    """The file was decided about and not written since; without a state it has left."""

    state: FileState | None


class Hold(NamedTuple):
    """The file may not be whole: look again in `wait` seconds, or when it is spoken of.

    `word` is what to go by then: what the source that decides has said of the file as it is, else
    what was said now; `overlapped` if it was said while another had the file open for writing.
    `writing` if it has a writer. `unspoken` is by how many there are more of its writers, or fewer,
    who have closed it and of whom ProFTPD has yet to speak. Until `closing` (monotonic) a close
    that was heard may be under way, see `Judge._closing`.
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
    """The file is what a failed transfer left."""

    state: FileState
    reason: str
    sample: int = 0


class Refuse(Fail):
    """The file is somebody else's."""

    __slots__ = ()


Verdict = Ignore | PassOver | Hold | Accept | Fail


@dataclass(slots=True)
class Recent:
    """The upload that a decision made: its id, when it was decided (epoch), and who spoke.

    `sources` are all that spoke of it, `source` is the first. `failed` if it was decided that its
    transfer has failed; `begun` if a session has begun to write the file again since. `closed` if
    it was heard of since that somebody closed it who had it open for writing.
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
    """The latest, by path. For the dispatcher's thread."""

    def __init__(self) -> None:
        self._by_path: OrderedDict[str, Recent] = OrderedDict()

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def get(self, path: str, state: FileState | None = None) -> Recent | None:
        """Return the last decision about a file, one that left as well; of that inode, if given."""
        recent = self._by_path.get(path)
        if recent is None or (state is not None and state.inode != recent.inode):
            return None
        return recent

    def remember(self, upload: Upload, *, failed: bool = False, closed: bool = False) -> None:
        """Remember a decision in place of the one before about the same path."""
        state, path = upload.source_state or upload.state, upload.source_path
        recent = Recent(upload.id, state.inode, upload.accepted, upload.source, failed, closed)
        recent.sources.add(upload.source)
        self.restore(path, recent)
        if len(self._by_path) > RECENT:
            self._by_path.popitem(last=False)

    def restore(self, path: str, recent: Recent | None) -> None:
        """Undo a `remember`: what it replaced is the last decision again."""
        self._by_path.pop(path, None)
        if recent is not None:
            self._by_path[path] = recent

    def begin(self, path: str) -> None:
        """Remember that a session begins to write a file again."""
        if path in self._by_path:
            self._by_path[path].begun = True


class Rewrites:
    """Compares files with what was decided about them. For the dispatcher's thread.

    `decides` tells whether ProFTPD says that it has received a file as it is now.
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
        """Whether a file holds a write that nobody has decided about yet."""
        source, state = notification.source, look.state
        decision = self._ledgers[watch.name].get(subpath, state)
        if decision is None or state.rewritten_since(decision.size, decision.ctime):
            return not self._came_with_its_directory(watch, subpath, state)
        if source is Source.SCAN or notification.appeared:
            return self._is_rewritten(watch, subpath, look)
        if decision.existing:
            # Open for writing since before the watch began, and closed now.
            return True
        recent = self._recent.get(beneath.below(watch.path, subpath), state)
        if recent is not None and self._is_better(notification, recent, state):
            return True
        if state.ctime == decision.ctime:
            return False
        # Only ctime differs: MFMT or chmod after it, a rename, or a write that kept the mtime.
        if source in PROFTPD:
            return recent is None or source in recent.sources
        if not notification.closed or (recent is not None and not recent.closed):
            # Nobody wrote it, or it may be the end of that very write, heard of late.
            return self._is_rewritten(watch, subpath, look)
        return True

    def _is_rewritten(self, watch: WatchSettings, subpath: str, look: beneath.Look) -> bool:
        """Whether a file whose ctime alone differs holds something else than was decided about."""
        if not self._ledgers[watch.name].doubts(subpath, look.state):
            return False
        sample = look.sample()
        if not sample:
            return False  # changed since, of which there will be word; or not ours to read
        return not self._ledgers[watch.name].holds(subpath, look.state, sample)

    def _is_better(self, notification: Notification, recent: Recent, state: FileState) -> bool:
        """Whether it tells of a whole file that was taken for what a failed transfer has left.

        It is that of the next transfer then, which was over when word came of the one before. The
        log tells of them in turn; hooks mix up what one SFTP session writes at the same time.
        """
        if not recent.failed or not self._decides(notification, state):
            return False
        unsure = recent.source is not notification.source
        return unsure or recent.begun or notification.source is Source.LOG

    def _came_with_its_directory(
        self, watch: WatchSettings, subpath: str, state: FileState
    ) -> bool:
        """Whether another watch decided about a file, and its directory was renamed into this one.

        That leaves its ctime alone, to the nanosecond.
        """
        others = (self._ledgers[name] for name in self._ledgers if name != watch.name)
        if not any(ledger.has_decision_of(subpath, state) for ledger in others):
            return False
        self._ledgers[watch.name].put(subpath, state)
        return True
