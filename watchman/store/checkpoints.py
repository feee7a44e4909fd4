"""How far each transfer log was read, written down together with the decisions of its lines."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal

#: The event of such a record.
READ = "read"


class Checkpoints:
    """The last mark by log, with the position of its record. Changed by the dispatcher's thread."""

    def __init__(self, *, journal: Journal, commit: GroupCommit) -> None:
        self._journal = journal
        self._commit = commit
        self._marked: dict[str, tuple[Any, int]] = {}

    def values(self) -> dict[str, Any]:
        """Return the last mark by log; for any thread."""
        return {log: mark for log, (mark, _) in list(self._marked.items())}

    def stage(
        self, log: str, mark: Any, durable: Callable[[], None], failed: Callable[[str], None]
    ) -> None:
        """Write a mark down with what is staged, and then call one of the two."""

        def written(position: int) -> None:
            self.keep(log, mark, position)
            durable()

        self._commit.stage(_record(log, mark), written, failed)

    def keep(self, log: str, mark: Any, position: int) -> None:
        """Keep a mark that stands in the journal.

        None: the log is none of ours any more, and new should it come again.
        """
        if log in self._marked:
            self._journal.release(self._marked.pop(log)[1])
        if mark is not None:
            self._journal.hold(position)
            self._marked[log] = mark, position

    def renew(self) -> None:
        """Write marks again that alone may keep old segments from being retired."""
        for log, (mark, position) in self._marked.items():
            if not self._journal.is_current(position):
                self._stage_lasting(log, mark)

    def forget(self, kept: Collection[str]) -> None:
        """Drop the marks of logs that left the INI file: decisions go on without their word."""
        for log in self._marked.keys() - set(kept):
            self._stage_lasting(log, None)

    def _stage_lasting(self, log: str, mark: Any) -> None:
        def written(position: int) -> None:
            self.keep(log, mark, position)

        self._commit.stage(_record(log, mark), written, lasting=True)


def _record(log: str, mark: Any) -> dict[str, Any]:
    return {"event": READ, "log": log, "mark": mark}
