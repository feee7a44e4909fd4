"""What an operator has paused. A restart does not end a pause."""

from __future__ import annotations

import json
import logging
import os
import time

from watchman.config.files import replace_file
from watchman.errors import PausesUnwritable

logger = logging.getLogger(__name__)

#: The name that pauses everything.
ALL = "all"

#: Kinds of sections that can be paused, as in `watch:ftp`.
KINDS = ("watch", "task", "broker")


class Pauses:
    """What is paused (`watch:NAME`, `task:NAME`, `broker:NAME` or ALL), and since when (epoch).

    It is kept in a small file of its own, which is replaced as a whole. The journal would not do:
    it retires old records, and a pause may last longer. Only one thread may use it at a time.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._since: dict[str, float] = {}
        try:
            with open(path, "rb") as file:
                self._since = {str(name): float(at) for name, at in json.load(file).items()}
        except FileNotFoundError:
            pass
        except (ValueError, AttributeError, TypeError) as e:
            os.replace(path, path + ".bad")
            logger.error(
                "%r cannot be read: %s. Nothing is paused. The file is kept as %r.",
                path,
                e,
                path + ".bad",
            )

    def since(self) -> dict[str, float]:
        """Return what is paused and since when, oldest first."""
        return dict(self._since)

    def pause(self, name: str) -> None:
        """Pause something; durable on return. Raises PausesUnwritable.

        What is paused already keeps its time.
        """
        self._replace({name: time.time()} | self._since)

    def resume(self, name: str) -> None:
        """End a pause, or with ALL every pause; durable on return. Raises PausesUnwritable."""
        left = {} if name == ALL else {n: at for n, at in self._since.items() if n != name}
        self._replace(left)

    def _replace(self, since: dict[str, float]) -> None:
        ordered = dict(sorted(since.items(), key=lambda item: item[1]))
        try:
            replace_file(self._path, json.dumps(ordered).encode(), 0o600, durable=True)
        except OSError as e:
            raise PausesUnwritable(f"{self._path} cannot be written: {e.strerror}") from e
        self._since = ordered
