"""The watcher: inotify events become notifications."""

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

#: Seconds between two looks at the roots.
LOOK = 1.0

#: Seconds of setting watches before events are read again. The kernel's queue of 16,384 events
#: lasts longer even while files are made as fast as Python can read.
SLICE = 0.01

#: Seconds for which events are gathered that follow others within that time: what is read together
#: wakes the dispatcher once, is one commit, and one batch of a publisher.
GATHER = 0.005

#: Seconds for which a MOVED_FROM waits for its MOVED_TO. The kernel queues the two one right after
#: the other, but others' events and the end of a read may come between.
MOVE_WAIT = 0.2


_complete = partial(Notification, Kind.COMPLETED, source=Source.INOTIFY)

#: What nearly all events tell. link(2) sends CREATE alone, open(2) a CLOSE_WRITE later: the file
#: itself tells.
TOLD = {CREATE: partial(_complete, appeared=True), CLOSE_WRITE: partial(_complete, closed=True)}

#: The watch and sub-path of a directory, and its path, both as what a name is appended to.
Directory = tuple[WatchSettings, str, str]


@dataclass(frozen=True, slots=True)
class Move:
    """A MOVED_FROM that waits for its MOVED_TO. `node` is the directory, if it was watched."""

    path: str
    excluded: bool
    node: Node | None
    turn: int
    until: float


class Watcher:
    """A thread that reads events and submits notifications.

    `rescan(watch, subpath)` is called from it when that subtree has come under watch, and when
    events of it were lost: it must not wait. `submit` may wait, the kernel queues meanwhile.
    """

    def __init__(
        self,
        watches: Iterable[WatchSettings],
        *,
        submit: Callable[[Sequence[Notification]], None],
        rescan: Callable[[str, str], None],
        excluded: Callable[[WatchSettings, str], object],
        mounts_changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`mounts_changed` is called before any scan is asked for because mounts have changed."""
        self._clock = clock
        self._mounts = MountPoints()
        self._mounts_changed = mounts_changed
        self._submit = submit
        self._excluded = excluded
        self._inotify = Inotify()
        self._coverage = Coverage(watches, inotify=self._inotify, rescan=rescan, excluded=excluded)
        self._watched = self._coverage.watched
        #: What is to be submitted of the events that were read together.
        self._seen: list[Notification] = []
        self._moves: dict[int, Move] = {}
        #: Counts the reads: a move may only lapse after a read that could have brought its end.
        self._turn = 0
        self._next_look = 0.0
        #: When events were read last (monotonic).
        self._last_read = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Begin; returns before the watches are set. Raises InotifyUnavailable."""
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

    def status(self) -> dict[str, dict[str, Any]]:
        """Per watch: state, directories, unwatched, error; from any thread."""
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
                self._coverage.distrust()
                self._stopping.wait(LOOK)

    def _patience(self) -> float:
        """Seconds until there is something to do, event or not."""
        if self._coverage.busy:
            return 0.0
        if self._moves:
            return MOVE_WAIT
        return max(0.0, min(LOOK, self._next_look - self._clock()))

    def _gather(self) -> None:
        """Let the events of a burst come together."""
        if time.monotonic() < self._last_read + GATHER and not self._coverage.busy:
            self._stopping.wait(GATHER)

    def _take_turn(self) -> None:
        self._turn += 1
        read = self._inotify.read()
        if read:
            self._last_read = time.monotonic()
        self._handle(read)
        now = self._clock()
        self._let_moves_lapse(now)
        if now >= self._next_look:
            self._next_look = now + LOOK
            self._coverage.look()
        self._coverage.retry(now)
        self._coverage.work(time.monotonic() + SLICE)

    def _remount(self) -> None:
        """Have directories compared with the disk where something was mounted or unmounted."""
        points = self._mounts.changed()
        if points:
            self._mounts_changed()
            self._coverage.look()
        for root in self._coverage.roots:
            # As mounts have it, without the symlinks that the INI file's path may lead over.
            real = os.path.realpath(root.settings.path)
            for point in points:
                if root.node is not None and point != real and is_below(point, real):
                    parent, name = root.node.nearest(os.path.relpath(point, real))
                    self._coverage.appeared(parent, name, moved=True)

    def _let_moves_lapse(self, now: float) -> None:
        """What was moved, and not to where we watch, has left."""
        for cookie, move in list(self._moves.items()):
            if now < move.until or move.turn == self._turn:
                break
            del self._moves[cookie]
            if move.node is not None and move.node.is_adrift():
                self._watched.forget(move.node)

    def _handle(self, read: list[Event]) -> None:
        """Make notifications of events, and submit them together.

        What is told of a file twice before anything else is told once: most small files are closed
        by the time that they are seen, and cost one look instead of two.
        """
        files: dict[tuple[int, str], int] = {}
        try:
            for event in read:
                wd, mask, _, name = event
                if mask == CLOSE_WRITE:
                    files.pop((wd, name), None)  # it comes where it was told of last
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
        """Files were made or closed: by watch descriptor and name, what is to be told of it."""
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
            return None  # on the way to somewhere else; when it arrives it is listed anew
        watch, subpath = place[0].settings, place[1]
        return watch, join(subpath, ""), os.path.join(below(watch.path, subpath), "")

    def _handle_other(self, event: Event) -> None:
        """Handle what is rare: all but that a file was made or closed."""
        wd, mask, _, name = event
        if mask & events.OVERFLOW:
            logger.warning("inotify lost events: its queue overflowed. Rescanning every watch.")
            self._coverage.distrust()
            return
        node = self._watched.by_wd.get(wd)
        if node is None:
            return
        if not name:
            self._handle_self(node, mask)
            return
        place = node.locate()
        if place is None:
            return  # on the way to somewhere else; when it arrives it is listed anew
        root, subpath = place[0], join(place[1], name)
        if mask & events.MOVED_FROM:
            self._remember(event, node, root.settings, subpath)
        elif mask & events.ISDIR:
            self._handle_directory(event, node, root, subpath)
        else:
            self._handle_renamed(event, root.settings, subpath)

    def _handle_self(self, node: Node, mask: int) -> None:
        """An event of a watched directory itself; its parent tells the rest."""
        if mask & events.IGNORED:
            self._coverage.removed(node)
        elif mask & events.UNMOUNT and node.parent is not None:
            # Below the mount point there may be a directory again.
            self._coverage.appeared(node.parent, node.name, moved=True)
        elif mask & events.MOVE_SELF and node.root is not None:
            self._coverage.look()

    def _remember(self, event: Event, node: Node, watch: WatchSettings, subpath: str) -> None:
        """Half a rename, as it seems."""
        _, mask, cookie, name = event
        child = node.children.get(name) if mask & events.ISDIR else None
        if child is not None:
            child.detach()
        path, excluded = below(watch.path, subpath), bool(self._excluded(watch, subpath))
        until = self._clock() + MOVE_WAIT
        self._moves[cookie] = Move(path, excluded, child, self._turn, until)

    def _handle_renamed(self, event: Event, watch: WatchSettings, subpath: str) -> None:
        """A file was renamed to here."""
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
        """A directory was renamed within the watches: it goes on with its watches."""
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
