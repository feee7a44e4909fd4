"""Progress on a terminal: how much of what was asked for is done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol


class Progress(Protocol):
    """Is called with how much is done so far, and closed before anything else is printed."""

    def __call__(self, done: int) -> None: ...

    def close(self) -> None: ...


class _Unseen:
    """For whom there is no terminal."""

    def __call__(self, done: int) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A bar on standard error, which is gone once it is closed; the next call shows it again."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._total = total
        self._shown: Any = None
        self._task: Any = None

    def __call__(self, done: int) -> None:
        if self._shown is None:
            self._show()
        self._shown.update(self._task, completed=done)

    def _show(self) -> None:
        # Imported late: most commands end before anybody could read how far they are.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        self._shown = Progress(
            *columns,
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            # What goes to standard output is for whoever reads that.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._shown.add_task(self._what, total=self._total)
        self._shown.start()

    def close(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None


UNSEEN = _Unseen()


def progress(what: str, total: Callable[[], int | None]) -> Progress:
    """Return what shows the progress to a total, None if that is not known.

    `total` is called only if the progress would be seen.
    """
    return _Bar(what, total()) if sys.stderr.isatty() else UNSEEN
