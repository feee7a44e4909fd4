"""The watcher: turns inotify events into notifications."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from watchman.config.settings import WatchSettings
from watchman.sources.inotify import events
from watchman.sources.inotify.coverage import Coverage
from watchman.sources.inotify.events import CLOSE_WRITE, CREATE, Event, Inotify
from watchman.sources.inotify.mountpoints import MountPoints
from watchman.sources.inotify.tree import Node, Root
from watchman.sources.scan.walk import join
from watchman.uploads.beneath import below, is_below
from watchman.uploads.upload import Kind, Notification, Source

logger = logging.getLogger(__name__)

#: Seconds between two checks that the roots of the watches are there.
LOOK = 1.0

#: Seconds of setting watches before events are read again. That is short enough: even while files
#: are made as fast as Python can read events, the kernel's queue of 16,384 takes longer to fill.
SLICE = 0.01

#: Reads, each within a few GATHERs of the one before, that make a burst. A file alone
#: makes two, when it appears and when it is closed.
BURST = 4

#: Seconds for which the events of a burst are gathered. All events of one read wake the dispatcher
#: once, and make one commit and one batch of a publisher.
GATHER = 0.005

#: Seconds for which a MOVED_FROM waits for its MOVED_TO. The kernel usually queues the two next to
#: each other, but other events or the end of a read may come between them, see inotify(7).
MOVE_WAIT = 0.2


_complete = partial(Notification, Kind.COMPLETED, source=Source.INOTIFY)

#: The notification that each of the two common events becomes. link(2) sends CREATE alone, so
#: CREATE must count too. After open(2) a CLOSE_WRITE follows: whether the file is complete, the
#: judge sees by the file itself.
TOLD = {CREATE: partial(_complete, appeared=True), CLOSE_WRITE: partial(_complete, closed=True)}

#: A directory's watch, its sub-path and its path; both end in "/", so that a name can be appended.
Directory = tuple[WatchSettings, str, str]


@dataclass(frozen=True, slots=True)
class Move:
    """A MOVED_FROM that waits for its MOVED_TO until `until`.

    `node` is the directory that was renamed, None for a file or an unwatched directory. `turn` is
    the number of the read that brought the event.
    """

    path: str
    excluded: bool
    node: Node | None
    turn: int
    until: float


class Watcher:
    """A thread that reads events and submits notifications.

    It calls `rescan(watch, subpath)` when it has begun to watch that subtree, and when events of it
    were lost; `rescan` must not block. `submit` may block: the kernel queues events meanwhile. The
    class is long because it has every kind of event.
    """

    def __init__(
        self,
        watches: Iterable[WatchSettings],
        *,
        submit: Callable[[Sequence[Notification]], None],
        rescan: Callable[[str, str], None],
        excluded: Callable[[WatchSettings, str], object],
        mounts_changed: Callable[[], None] = lambda: None,
        overflowed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`mounts_changed` is called when mounts have changed, before scans are asked for;
        `overflowed` when events were lost.
        """
        self._clock = clock
        self._mounts = MountPoints()
        self._mounts_changed = mounts_changed
        self._overflowed = overflowed
        self._submit = submit
        self._excluded = excluded
        self._inotify = Inotify()
        self._coverage = Coverage(watches, inotify=self._inotify, rescan=rescan, excluded=excluded)
        self._watched = self._coverage.watched
        #: Notifications of the events that were read together, not submitted yet.
        self._seen: list[Notification] = []
        #: By cookie, which a MOVED_FROM and its MOVED_TO have in common.
        self._moves: dict[int, Move] = {}
        #: The number of reads so far. A move may lapse only after one more read than the one that
        #: brought it, for that one could have brought its MOVED_TO.
        self._turn = 0
        self._next_look = 0.0
        #: When events were read last (monotonic).
        self._last_read = 0.0
        #: How many reads have followed one another quickly.
        self._quick_reads = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Start the thread. Returns before the watches are set; raises InotifyUnavailable."""
        self._inotify.open(self._mounts.open())
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._inotify.wake()

    def join(self) -> None:
        """Wait for the end, after stop()."""
        if self._thread.ident is not None:
            self._thread.join()
        self._coverage.close()
        self._inotify.close()
        self._mounts.close()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def status(self) -> dict[str, dict[str, Any]]:
        """Return by watch: state, directories, unwatched, error. Any thread may call it."""
        return self._coverage.status()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._inotify.wait(self._patience()):
                    self._remount()
                self._gather()
                self._take_turn()
            except Exception:
                logger.exception("Reading events failed. Every watch is compared with the disk.")
                self._coverage.recheck_all()
                self._stopping.wait(LOOK)

    def _patience(self) -> float:
        """Return after how many seconds there is work even if no event comes."""
        if self._coverage.busy:
            return 0.0
        if self._moves:
            return MOVE_WAIT
        return max(0.0, min(LOOK, self._next_look - self._clock()))

    def _gather(self) -> None:
        """In a burst, wait a moment so that more events are read together."""
        if self._quick_reads >= BURST and not self._coverage.busy:
            self._stopping.wait(GATHER)

    def _take_turn(self) -> None:
        """Handle the events that wait, then set watches for SLICE seconds."""
        self._turn += 1
        read = self._inotify.read()
        if read:
            before, self._last_read = self._last_read, time.monotonic()
            # While it gathers, it waits for GATHER seconds before each read.
            is_quick = self._last_read < before + 3 * GATHER
            self._quick_reads = self._quick_reads + 1 if is_quick else 0
        self._handle(read)
        now = self._clock()
        self._let_moves_lapse(now)
        if now >= self._next_look:
            self._next_look = now + LOOK
            self._coverage.look()
        self._coverage.retry(now)
        self._coverage.work(time.monotonic() + SLICE)

    def _remount(self) -> None:
        """Have the directories where something was mounted or unmounted compared with the disk."""
        points = self._mounts.changed()
        if points:
            self._mounts_changed()
            self._coverage.look()
        for root in self._coverage.roots:
            # The INI file's path may lead over symlinks; the kernel's mount points do not.
            real = os.path.realpath(root.settings.path)
            for point in points:
                if root.node is not None and point != real and is_below(point, real):
                    parent, name = root.node.nearest(os.path.relpath(point, real))
                    self._coverage.appeared(parent, name, moved=True)

    def _let_moves_lapse(self, now: float) -> None:
        """Give up moves without a MOVED_TO: what was renamed has left the watched directories."""
        for cookie, move in list(self._moves.items()):
            if now < move.until or move.turn == self._turn:
                break
            del self._moves[cookie]
            if move.node is not None and move.node.is_adrift():
                self._watched.forget(move.node)

    def _handle(self, read: list[Event]) -> None:
        """Turn events into notifications, and submit them together.

        Several events of one file become one notification, if no other kind of event comes between.
        Most small files are closed by the time that we read their CREATE, so that the judge looks
        once instead of twice.
        """
        files: dict[tuple[int, str], int] = {}
        try:
            for event in read:
                wd, mask, _, name = event
                if mask == CLOSE_WRITE:
                    files.pop((wd, name), None)  # to be last in order, as its latest event is
                    files[wd, name] = mask
                elif mask == CREATE:
                    files.setdefault((wd, name), mask)
                else:
                    self._handle_files(files)
                    files.clear()
                    self._handle_other(event)
            self._handle_files(files)
        finally:
            seen, self._seen = self._seen, []
            if seen:
                self._submit(seen)

    def _handle_files(self, files: Mapping[tuple[int, str], int]) -> None:
        """Handle files that were made or closed: the event by watch descriptor and name."""
        places: dict[int, Directory | None] = {}
        for (wd, name), mask in files.items():
            if wd not in places:
                places[wd] = self._locate(wd)
            directory = places[wd]
            if directory is not None:
                watch, subpath, path = directory
                if not self._excluded(watch, subpath + name):
                    self._seen.append(TOLD[mask](path + name))

    def _locate(self, wd: int) -> Directory | None:
        node = self._watched.by_wd.get(wd)
        place = node.locate() if node is not None else None
        if place is None:
            return None  # being renamed: it will be listed when it appears at its new place
        watch, subpath = place[0].settings, place[1]
        return watch, join(subpath, ""), os.path.join(below(watch.path, subpath), "")

    def _handle_other(self, event: Event) -> None:
        """Handle the rare events: all but those of a file that was made or closed."""
        wd, mask, _, name = event
        if mask & events.OVERFLOW:
            logger.warning("inotify lost events: its queue overflowed. Rescanning every watch.")
            self._overflowed()
            self._coverage.recheck_all()
            return
        node = self._watched.by_wd.get(wd)
        if node is None:
            return
        if not name:
            self._handle_self(node, mask)
            return
        place = node.locate()
        if place is None:
            return  # being renamed: it will be listed when it appears at its new place
        root, subpath = place[0], join(place[1], name)
        if mask & events.MOVED_FROM:
            self._remember(event, node, root.settings, subpath)
        elif mask & events.ISDIR:
            self._handle_directory(event, node, root, subpath)
        else:
            self._handle_renamed(event, root.settings, subpath)

    def _handle_self(self, node: Node, mask: int) -> None:
        """Handle an event of a watched directory itself; its parent has events for the rest."""
        if mask & events.IGNORED:
            self._coverage.removed(node)
        elif mask & events.UNMOUNT and node.parent is not None:
            # The directory under the mount point is visible again.
            self._coverage.appeared(node.parent, node.name, moved=True)
        elif mask & events.MOVE_SELF and node.root is not None:
            self._coverage.look()

    def _remember(self, event: Event, node: Node, watch: WatchSettings, subpath: str) -> None:
        """Remember a MOVED_FROM until its MOVED_TO comes."""
        _, mask, cookie, name = event
        child = node.children.get(name) if mask & events.ISDIR else None
        if child is not None:
            self._watched.detach(child)
        path, excluded = below(watch.path, subpath), bool(self._excluded(watch, subpath))
        until = self._clock() + MOVE_WAIT
        self._moves[cookie] = Move(path, excluded, child, self._turn, until)

    def _handle_renamed(self, event: Event, watch: WatchSettings, subpath: str) -> None:
        """Handle a file that was renamed to here."""
        move = self._moves.pop(event[2], None)
        if self._excluded(watch, subpath):
            return
        path = below(watch.path, subpath)
        if move is None or move.excluded:
            self._seen.append(_complete(path=path))
        else:
            self._seen.append(Notification(Kind.RENAMED, path, Source.INOTIFY, old_path=move.path))

    def _handle_directory(self, event: Event, node: Node, root: Root, subpath: str) -> None:
        _, mask, cookie, name = event
        if mask & events.CREATE:
            self._coverage.appeared(node, name, moved=False)
        elif mask & events.MOVED_TO:
            move = self._moves.pop(cookie, None)
            if move is not None:
                self._move_directory(move, node, name, root, subpath)
            self._coverage.appeared(node, name, moved=True)

    def _move_directory(
        self, move: Move, parent: Node, name: str, root: Root, subpath: str
    ) -> None:
        """Handle a directory that was renamed within our watches: it keeps the watches it has."""
        if not move.excluded and not self._excluded(root.settings, subpath):
            path = below(root.settings.path, subpath)
            self._seen.append(
                Notification(
                    Kind.RENAMED, path, Source.INOTIFY, old_path=move.path, is_directory=True
                )
            )
        if move.node is None or not move.node.is_adrift():
            return
        if self._coverage.takes(root, subpath):
            self._watched.place(move.node, parent, name)
        else:
            self._watched.forget(move.node)
