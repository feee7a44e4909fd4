"""A progress bar on a terminal: how much of what was asked for is done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol


class Progress(Protocol):
    """Shows how much is done, at each call. Closed before anything else is printed."""

    def __call__(self, done: int) -> None: ...

    def close(self) -> None: ...


class _Unseen:
    """A progress that is not shown, because there is no terminal."""

    def __call__(self, done: int) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A bar on standard error. `close` removes it, and the next call shows it again."""

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
        # Imported late: most commands end before anybody could read a bar.
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
            # Otherwise rich sends what we print to its console, which is on standard error.
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
    """Return a progress bar, or a progress that is not shown if standard error is no terminal.

    `total` returns the total, None if it is not known. It is called only for a bar.
    """
    return _Bar(what, total()) if sys.stderr.isatty() else UNSEEN
