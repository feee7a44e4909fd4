"""How far each transfer log was read. That is written in one commit with what its lines decided."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from watchman.store.groupcommit import GroupCommit
from watchman.store.journal import Journal

#: The event in the record of a checkpoint.
READ = "read"


class Checkpoints:
    """The last mark of each transfer log, with the journal position of its record.

    A mark says how far a log was read. Only the reader of the log knows what is in it. Only the
    dispatcher's thread changes the marks.
    """

    def __init__(self, *, journal: Journal, commit: GroupCommit) -> None:
        self._journal = journal
        self._commit = commit
        self._marked: dict[str, tuple[Any, int]] = {}

    def values(self) -> dict[str, Any]:
        """Return the last mark by log. Any thread may call it."""
        return {log: mark for log, (mark, _) in list(self._marked.items())}

    def stage(
        self, log: str, mark: Any, durable: Callable[[], None], failed: Callable[[str], None]
    ) -> None:
        """Stage a mark for the same commit as the changes that are staged already.

        `durable` is called once it is durable, or `failed` with the reason if it cannot be written.
        """

        def written(position: int) -> None:
            self.keep(log, mark, position)
            durable()

        self._commit.stage(_record(log, mark), written, failed)

    def keep(self, log: str, mark: Any, position: int) -> None:
        """Remember a mark that the journal has at `position`.

        None says that the log has left the INI file. If it comes back later, it counts as new.
        """
        if log in self._marked:
            self._journal.release(self._marked.pop(log)[1])
        if mark is not None:
            self._journal.hold(position)
            self._marked[log] = mark, position

    def renew(self) -> None:
        """Stage old marks again, so that their records do not keep old segments from retiring."""
        for log, (mark, position) in self._marked.items():
            if not self._journal.is_current(position):
                self._stage_lasting(log, mark)

    def forget(self, kept: Collection[str]) -> None:
        """Drop the marks of logs that are not `kept`, because they have left the INI file."""
        for log in self._marked.keys() - set(kept):
            self._stage_lasting(log, None)

    def _stage_lasting(self, log: str, mark: Any) -> None:
        def written(position: int) -> None:
            self.keep(log, mark, position)

        self._commit.stage(_record(log, mark), written, lasting=True)


def _record(log: str, mark: Any) -> dict[str, Any]:
    return {"event": READ, "log": log, "mark": mark}
