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
from watchman.sinks.moving.rights import MoveRights

logger = logging.getLogger(__name__)

#: Seconds of looking at directories, of all moves together; `watchman check` looks at all of them.
LOOKING = 2.0


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
    """Yield what keeps files from being moved, with the command that grants the right."""
    rules, until = Rules(settings), time.monotonic() + LOOKING
    for name, move in settings.moves.items():
        rights = MoveRights(move)
        for directory in _directories(name, rules, move.source, rights):
            with contextlib.suppress(FileNotFoundError):
                rights.look(directory, os.stat(directory), [])
            if time.monotonic() > until:
                break
        if os.path.isdir(move.destination):
            yield from (f"[move:{name}] {text}" for text in rights.problems())


def _directories(name: str, rules: Rules, source: str, rights: MoveRights) -> Iterator[str]:
    """Yield the directories below a source whose files are the move's."""

    def miss(error: OSError) -> None:
        if isinstance(error, PermissionError):
            rights.miss(error.filename)

    for top, below, _ in os.walk(source, onerror=miss):
        upload = os.path.join(top, "upload")
        watch, subpath = rules.locate(upload) or (None, "")
        above, move = os.path.dirname(subpath), rules.move_for(upload)
        if watch is None or (above and rules.excluded(watch, above)):
            below.clear()
        elif move is not None and move.name == name:
            yield top
