"""The thread that writes the metrics, every few seconds."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from watchman.config.files import replace_file
from watchman.operate.metrics.totals import Totals
from watchman.sinks.steps import Steps

logger = logging.getLogger(__name__)

#: Seconds between two writes. After a kill, the last seconds are not counted.
INTERVAL = 5.0

#: The mode of the textfile. node_exporter runs as another user, and must be able to read it.
MODE = 0o644

#: The file in the spool from which counting goes on after a restart.
TOTALS = "metrics.json"


class Exporter:
    """Writes the textfile that `[watchman] metrics` names, if it names one.

    If no figure has changed, the file only gets a new mtime. So an old mtime means a dead daemon,
    and not one that has nothing to do. At a stop, a last file says that the daemon is not up.
    """

    def __init__(
        self, path: str, *, spool: str, steps: Steps, status: Callable[[], dict[str, Any]]
    ) -> None:
        """`path` may be "" for no metrics. `status` is called in the exporter's thread."""
        self._path = path
        self._totals_path = os.path.join(spool, TOTALS)
        self._steps = steps
        self._status = status
        self._totals: Totals | None = None
        #: What was written last, and where.
        self._written = b""
        self._written_to = ""
        #: Why the file cannot be written, "" if it can; `status` shows it.
        self.problem = ""
        self._begun = False
        self._stopping = False
        self._roused = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Start the thread, which writes nothing yet."""
        self._thread.start()

    def begin(self) -> None:
        """Write from now on. Called when all parts of the daemon have started."""
        self._begun = True
        self._roused.set()

    def change(self, path: str) -> None:
        """Write to another file from now on, or with "" to none. Any thread may call it."""
        self._path = path
        self._roused.set()

    def stop(self) -> None:
        """Have a last file written, which says that the daemon is not up."""
        self._stopping = True
        self._roused.set()

    def join(self) -> None:
        self._thread.join()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._roused.wait(INTERVAL if self._path else None)
            self._roused.clear()
            is_last = self._stopping
            if self._begun:
                self._export()

    def _export(self) -> None:
        path, problem = self._path, ""
        try:
            self._write(path)
        except OSError as e:
            problem = f"{e.strerror or e}: {e.filename or path}"
        except Exception as e:
            problem = f"{type(e).__name__}: {e}"
            if problem != self.problem:
                logger.exception("Metrics could not be put together.")
        if problem and problem != self.problem:
            logger.warning("Metrics are not written: %s. Trying again.", problem)
        elif self.problem and not problem and path:
            logger.info("Metrics are written again.")
        self.problem = problem

    def _write(self, path: str) -> None:
        if self._written_to and self._written_to != path:
            # Otherwise Prometheus would go on reading its old figures.
            with contextlib.suppress(OSError):
                os.unlink(self._written_to)
            self._written, self._written_to = b"", ""
        if not path:
            return
        # Imported only here: the import takes a while, and most daemons write no metrics.
        families = importlib.import_module("watchman.operate.metrics.families")
        if self._totals is None:
            self._totals = Totals(self._totals_path)
        found = self._status()
        families.count(self._totals, found, self._steps)
        text = families.text(self._totals, found, up=not self._stopping)
        # Before the textfile: after a kill no counter may be lower than the textfile has shown it.
        self._totals.store()
        if text == self._written:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
                return
        replace_file(path, text, MODE)  # so that node_exporter never reads half a file
        self._written, self._written_to = text, path
