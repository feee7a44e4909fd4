"""What moves the daemon has not the rights for: said at a reload, before a file waits for it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

from watchman.config.rules import Rules
from watchman.config.settings import Settings
from watchman.sinks.moving.rights import File, MoveRights, regular
from watchman.uploads.rights import complaint

logger = logging.getLogger(__name__)

#: Seconds of looking at directories, of all moves together; `watchman check` looks at all of them.
LOOKING = 2.0

#: Files of each directory that are looked at.
FILES = 20


def look_soon(settings: Settings) -> Future[list[str]]:
    """Look in a thread of its own, as a filesystem may hang, and log what is forbidden."""
    found: Future[list[str]] = Future()

    def look() -> None:
        try:
            told = list(forbidden(settings))
        except Exception as e:
            found.set_exception(e)
            raise
        for text in told:
            logger.warning("%s.", text)
        found.set_result(told)

    threading.Thread(target=look, name="rights", daemon=True).start()
    return found


def forbidden(settings: Settings) -> Iterator[str]:
    """Yield what keeps files from being moved, with the command that cures it."""
    rules, until = Rules(settings), time.monotonic() + LOOKING
    for name, move in settings.moves.items():
        rights = MoveRights(move)
        for directory, files in _directories(name, rules, move.source, rights):
            with contextlib.suppress(FileNotFoundError):
                rights.look(directory, os.stat(directory), files)
            if time.monotonic() > until:
                break
        barred = complaint(move.destination, 0) or rights.absent()
        found = [barred] if barred else rights.problems()
        yield from (f"[move:{name}] {text}" for text in found)


def _directories(
    name: str, rules: Rules, source: str, rights: MoveRights
) -> Iterator[tuple[str, list[File]]]:
    """Yield the directories below a source whose files are the move's, and some of these."""

    def miss(error: OSError) -> None:
        if isinstance(error, PermissionError):
            rights.miss(error.filename)

    for top, below, names in os.walk(source, onerror=miss):
        upload = os.path.join(top, "upload")
        watch, subpath = rules.locate(upload) or (None, "")
        above, move = os.path.dirname(subpath), rules.move_for(upload)
        if watch is None:
            continue  # above all watches, or beside them
        if above and rules.excluded(watch, above):
            below.clear()
        elif move is not None and move.name == name:
            some = [
                one for one in names[:FILES] if not rules.excluded(watch, os.path.join(above, one))
            ]
            yield top, [file for one in some for file in regular(os.path.join(top, one))]
