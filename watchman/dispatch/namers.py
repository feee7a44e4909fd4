"""Finds the one name of each path that a user says on the socket, a thread for each user.

The path is of a stranger's choice: it may lie on a mount that does not answer, as a FUSE mount of
his own. Then his words wait, and nobody else's.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from watchman.uploads.upload import Notification

logger = logging.getLogger(__name__)

#: Seconds after which a thread ends that has nothing to do.
IDLE = 10.0


Words = deque[tuple[Notification, Callable[[Notification], None]]]


class Namers:
    """Any thread may bring words; those of one user stay in order."""

    def __init__(self, name: Callable[[Notification], Notification]) -> None:
        """`name` returns what was said, of the names that the files have. It may hang."""
        self._name = name
        self._changed = threading.Condition()
        #: By uid, what its thread has yet to do; who has no thread is not there.
        self._words: dict[int, Words] = {}

    def bring(self, notification: Notification, pass_on: Callable[[Notification], None]) -> None:
        """Have `pass_on` called with the word once it has its names; never waits."""
        uid = notification.uid
        assert uid is not None
        with self._changed:
            words = self._words.get(uid)
            if words is None:
                words = self._words[uid] = deque()
                threading.Thread(
                    target=self._run, args=(uid, words), name=f"namer of uid {uid}", daemon=True
                ).start()
            words.append((notification, pass_on))
            self._changed.notify_all()

    def _run(self, uid: int, words: Words) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: words, IDLE):
                    del self._words[uid]
                    return
                notification, pass_on = words.popleft()
            try:
                pass_on(self._name(notification))
            except Exception:
                logger.exception("Not heard: %r of uid %d.", notification.path, uid)
