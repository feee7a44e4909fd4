"""The ledgers of all watches, and what the journal's replay makes of them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping

from watchman.config.rules import Rules
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.uploads.upload import FileState, Upload

logger = logging.getLogger(__name__)


class Ledgers(Mapping[str, Ledger]):
    """The ledgers by watch. All parts go by the same object; the dispatcher's thread changes it."""

    def __init__(self, by_watch: Mapping[str, Ledger], rules: Rules) -> None:
        self._by_watch = by_watch
        self._rules = rules

    def __getitem__(self, watch: str) -> Ledger:
        return self._by_watch[watch]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_watch)

    def __len__(self) -> int:
        return len(self._by_watch)

    def change(self, by_watch: Mapping[str, Ledger]) -> list[Ledger]:
        """Go over to others; return those that are not among them, for them to be closed."""
        before, self._by_watch = self._by_watch, by_watch
        return [ledger for ledger in before.values() if ledger not in by_watch.values()]

    def replay(self, upload: Upload, *, has_failed: bool) -> None:
        """Take up a decision from the journal, unless it is known."""
        located = self._rules.locate(upload.source_path)
        if located is not None:
            watch, subpath = located
            ledger, state = self[watch.name], upload.state
            if ledger.decided_since(subpath, upload.source_state or state):
                pass  # of an older write, written down later, as that its task has failed
            elif upload.source_state is not None:
                ledger.forget(subpath, upload.source_state)
            else:
                decision = ledger.get(subpath, state)
                if decision is None or not decision.is_of(state):
                    ledger.put(subpath, state, sample=upload.sample, waiting=not has_failed)
                elif has_failed:
                    ledger.settle(subpath, state)
            if ledger.full():
                _flush_early(ledger)

    def replay_rename(self, path: str, state: FileState) -> None:
        """Take up from the journal that a decision has followed a file to its new name."""
        located = self._rules.locate(path)
        if located is not None:
            watch, subpath = located
            decision = self[watch.name].get(subpath, state)
            if decision is None or decision.ctime < state.ctime:
                self[watch.name].put(subpath, state)

    def settle(self, upload: Upload) -> None:
        """Have the ledger know that it alone need know of an upload's file."""
        located = self._rules.locate(upload.source_path)
        if located is not None:
            self[located[0].name].settle(located[1], upload.state)

    def forget_lost(self, journal: Journal) -> None:
        """Have the scans that begin with every start find the files again whose record is lost.

        A ledger may know of the decision, which would have them passed over.
        """
        recorded = set()
        for upload in map(Upload.decode, journal.decisions()):
            if upload.alarm_of:
                continue
            if located := self._rules.locate(upload.source_path):
                ledger, state = self[located[0].name], upload.source_state or upload.state
                recorded.add(ledger.key(located[1], state))
        for ledger in self.values():
            if lost := ledger.doubt(recorded.__contains__):
                logger.warning(
                    "%d files had been accepted, and no record of it is left. Scanning for them.",
                    lost,
                )

    def flush(self, *, all_of_them: bool) -> None:
        """Have them hold what is decided: those that ask for it, or all. Durable, or OSError."""
        for ledger in self.values():
            if all_of_them or ledger.full():
                ledger.flush()


def close(ledgers: Collection[Ledger]) -> None:
    """Close ledgers as far as they can be written: all that they lack stands in the journal."""
    for ledger in ledgers:
        try:
            ledger.close()
        except OSError as e:
            logger.warning("Ledger closed as it was, it cannot be written: %s.", e)


def _flush_early(ledger: Ledger) -> None:
    """While the journal is replayed, which may hold a million decisions."""
    try:
        ledger.flush()
    except OSError as e:
        logger.warning("Ledger kept in memory, it cannot be written: %s.", e.strerror)
