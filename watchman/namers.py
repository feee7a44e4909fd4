"""Finds the one name of each path that a user says on the socket, a thread for each user.

The path is of a stranger's choice: it may lie on a mount that does not answer, as a FUSE mount of
his own. Then his words wait, and nobody else's.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from watchman.upload import Notification

logger = logging.getLogger(__name__)

#: Seconds after which a thread ends that has nothing to do.
IDLE = 10.0


@dataclass
class _Namer:
    words: deque[tuple[Notification, Callable[[Notification], None]]] = field(default_factory=deque)


class Namers:
    """Any thread may bring words; those of one user stay in order."""

    def __init__(self, name: Callable[[Notification], Notification]) -> None:
        """`name` returns what was said, of the names that the files have. It may hang."""
        self._name = name
        self._changed = threading.Condition()
        #: By uid.
        self._namers: dict[int, _Namer] = {}

    def bring(self, notification: Notification, pass_on: Callable[[Notification], None]) -> None:
        """Have `pass_on` called with the word once it has its names; never waits."""
        uid = notification.uid
        assert uid is not None
        with self._changed:
            namer = self._namers.get(uid)
            if namer is None:
                namer = self._namers[uid] = _Namer()
                threading.Thread(
                    target=self._run, args=(uid, namer), name=f"namer of uid {uid}", daemon=True
                ).start()
            namer.words.append((notification, pass_on))
            self._changed.notify_all()

    def _run(self, uid: int, namer: _Namer) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: namer.words, IDLE):
                    del self._namers[uid]
                    return
                notification, pass_on = namer.words.popleft()
            try:
                pass_on(self._name(notification))
            except Exception:
                logger.exception("Not heard: %r of uid %d.", notification.path, uid)
