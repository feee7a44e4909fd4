"""Moves several files together, so that they share directories, syncs and commits."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from watchman.config.moves import claim_name, destination_of
from watchman.config.settings import MoveSettings, WatchSettings
from watchman.errors import NotBelowWatch, Obstructed, WatchmanError
from watchman.sinks.moving.directories import Directories
from watchman.sinks.moving.move import Move
from watchman.uploads import mounts
from watchman.uploads.beneath import is_below, subpath_of
from watchman.uploads.upload import State, Upload

logger = logging.getLogger(__name__)

#: Seconds of moving after which the files moved so far are synced and written down.
SLICE = 0.2


class Batch:
    """Moves the files of uploads in order, in directories that stay open meanwhile.

    `write(state, uploads)` writes new records of uploads and waits until they are durable.
    `keep_on` is called now and then, and may raise Stopped.

    `settle(upload, error, place)` is called once for each upload. The error is None if its file was
    moved, else `place` is the directory in which it happened. A file of more than `largest` bytes
    is not copied; its error is TakesLong.
    """

    def __init__(
        self,
        settings: MoveSettings,
        watches: Mapping[str, WatchSettings],
        directories: Directories,
        *,
        largest: float,
        write: Callable[[State, Sequence[Upload]], list[Upload]],
        keep_on: Callable[[], None],
        settle: Callable[[Upload, Exception | None, str], None],
    ) -> None:
        self._settings = settings
        self._watches = watches
        self._directories = directories
        self._largest = largest
        self._write = write
        self._keep_on = keep_on
        self._settle = settle

    def move(self, uploads: Sequence[Upload]) -> None:
        """Move the files of uploads, and call `settle` for each soon after it was moved or not."""
        with contextlib.ExitStack() as stack:
            waiting = deque(self._find(uploads, stack))
            self._redirect([move for move in waiting if not move.arrived and move.is_taken()])
            while waiting:
                self._move_some(waiting)

    def _find(self, uploads: Sequence[Upload], stack: contextlib.ExitStack) -> Iterator[Move]:
        """Find out how far each file has come: an earlier run may have begun to move it."""
        for upload in uploads:
            move = Move(upload, self._settings, largest=self._largest)
            stack.callback(move.claim.close)
            with self._guarded(move):
                self._open_directories(move)
                if not move.arrived:
                    move.find()
                if not move.arrived and not self._leads_to_destination(upload):
                    self._redirect([move])
                    move.turn_back()
                yield move

    def _open_directories(self, move: Move) -> None:
        """Open the directories that a file is moved from and to; raises Obstructed."""
        upload = move.upload
        # By its path, since the section may have another name in the INI file by now.
        above = [w for w in self._watches.values() if is_below(upload.source_path, w.path)]
        watch = max(above, key=lambda watch: len(watch.path), default=None)
        if watch is None:
            raise Obstructed(f"[watch:{upload.watch}] is not in the INI file any more")
        if watch.mounted and not mounts.is_mount(self._directories.find(watch.path, "")):
            raise Obstructed(f"{watch.path} is not mounted")
        move.claim.source = self._find_directory(watch.path, upload.source_path)
        move.target = self._find_directory(self._settings.destination, upload.destination)

    def _find_directory(self, root: str, path: str) -> int | None:
        """Return the descriptor of a path's directory, None if that is not there."""
        directory = os.path.dirname(path)
        subpath = subpath_of(directory, root)
        with contextlib.suppress(FileNotFoundError, NotBelowWatch):
            if subpath is None:  # the INI file had another path when the upload was accepted
                return self._directories.find(directory, "")
            return self._directories.find(root, subpath)
        return None

    def _leads_to_destination(self, upload: Upload) -> bool:
        return subpath_of(upload.destination, self._settings.destination) is not None

    def _redirect(self, moves: Sequence[Move]) -> None:
        """Give files another destination. It is written down before the files are touched."""
        uploads = []
        for move in moves:
            upload = move.upload
            destination = move.another_name()
            if not self._leads_to_destination(upload):
                milliseconds = int(upload.accepted * 1000)
                destination = destination_of(self._settings, upload.path, milliseconds)
            uploads.append(upload._replace(destination=destination))
        if uploads:
            written = self._write(State.RENAMED, uploads)
            for move, upload in zip(moves, written, strict=True):
                move.upload = upload

    def _move_some(self, waiting: deque[Move]) -> None:
        """Move files for SLICE seconds; then make that durable, and settle them."""
        moved = []
        began = time.monotonic()
        while waiting and time.monotonic() - began < SLICE:
            move = waiting.popleft()
            with self._guarded(move):
                self._keep_on()
                if not move.arrived:
                    self._advance(move)
                moved.append(move)
        self._write_down(moved)

    def _advance(self, move: Move) -> None:
        """Move one file to its destination, under another name if its own is taken there."""
        move.place = os.path.dirname(move.upload.destination)
        subpath = subpath_of(move.place, self._settings.destination)
        assert subpath is not None
        move.target = self._directories.make(subpath)
        self._directories.make_folders(subpath)
        source = move.claim.source
        if source is not None and os.path.samestat(os.fstat(source), os.fstat(move.target)):
            raise Obstructed("the destination is the source")
        while True:
            try:
                move.hand_over(self._keep_on)
            except FileExistsError:
                self._redirect([move])
            else:
                return

    def _write_down(self, moves: Sequence[Move]) -> None:
        """Make moves durable and write them down. Then remove the sources of copied files."""
        fresh, finished = [], []
        for move in self._synced(moves):
            with self._guarded(move):
                if move.upload.source_state is None:
                    move.check_moved()
                    fresh.append(move)
                finished.append(move)
        if fresh:
            written = self._write(State.MOVED, [move.moved() for move in fresh])
            for move, upload in zip(fresh, written, strict=True):
                move.upload = upload
                logger.info("Moved upload %s: %r to %r.", upload.id, upload.moved_from, upload.path)
        removed = []
        for move in finished:
            if not move.upload.is_copied:
                self._settle(move.upload, None, "")
                continue
            with self._guarded(move):
                move.finish()
                removed.append(move)
        for move in self._synced(removed):
            self._settle(move.upload, None, "")

    def _synced(self, moves: Sequence[Move]) -> Sequence[Move]:
        """Sync the directories of moves. Return the moves, or none if that fails."""
        fds = {fd for move in moves for fd in (move.claim.source, move.target) if fd is not None}
        try:
            self._directories.sync(fds)
        except OSError as e:
            for move in moves:
                with self._guarded(move):
                    raise e
            return ()
        return moves

    @contextlib.contextmanager
    def _guarded(self, move: Move) -> Iterator[None]:
        """Settle an upload with the exception that its move raises, and give its file back.

        So one file cannot stop the others of the batch.
        """
        try:
            yield
        except Exception as e:
            if not isinstance(e, WatchmanError | OSError):
                logger.exception("Upload %s is stuck.", move.upload.id)
            try:
                move.put_back()
            except OSError as failure:
                logger.warning(
                    "File %r of upload %s stays %r for now: %s.",
                    move.upload.source_path,
                    move.upload.id,
                    claim_name(move.upload.id),
                    failure.strerror,
                )
            self._settle(move.upload, e, move.place)
