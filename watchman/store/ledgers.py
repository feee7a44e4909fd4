"""The ledgers of all watches, and how a replay of the journal completes them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping

from watchman.config.rules import Rules
from watchman.store.journal import Journal
from watchman.store.ledger import Ledger
from watchman.uploads.upload import FileState, Upload

logger = logging.getLogger(__name__)


class Ledgers(Mapping[str, Ledger]):
    """The ledgers by watch. All parts share this object; the dispatcher's thread changes it."""

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
        """Replace the ledgers; return those that are not used any more, to be closed."""
        before, self._by_watch = self._by_watch, by_watch
        return [ledger for ledger in before.values() if ledger not in by_watch.values()]

    def replay(self, upload: Upload, *, has_failed: bool) -> None:
        """Put a decision from the journal into the ledger of its watch, unless it is there."""
        located = self._rules.locate(upload.source_path)
        if located is not None:
            watch, subpath = located
            ledger, state = self[watch.name], upload.state
            if ledger.decided_since(subpath, upload.source_state or state):
                pass  # about an older write, but recorded later, as when its task failed
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
        """Put a decision that followed a renamed file from the journal into its ledger."""
        located = self._rules.locate(path)
        if located is not None:
            watch, subpath = located
            decision = self[watch.name].get(subpath, state)
            if decision is None or decision.ctime < state.ctime:
                self[watch.name].put(subpath, state)

    def settle(self, upload: Upload) -> None:
        """Note in the ledger that an upload is settled, so the journal need not have its record."""
        located = self._rules.locate(upload.source_path)
        if located is not None:
            self[located[0].name].settle(located[1], upload.state)

    def forget_lost(self, journal: Journal) -> None:
        """Forget the decisions whose uploads have lost their records, so that scans find the files.

        Every start scans all watches. If a ledger kept such a decision, its file would be passed
        over, and its upload would be lost.
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
        """Flush the ledgers that are full, or all of them. Durable on return; raises OSError."""
        for ledger in self.values():
            if all_of_them or ledger.full():
                ledger.flush()


def close(ledgers: Collection[Ledger]) -> None:
    """Close ledgers. One that cannot be written stays as it was: the journal has what it lacks."""
    for ledger in ledgers:
        try:
            ledger.close()
        except OSError as e:
            logger.warning("Ledger closed as it was, it cannot be written: %s.", e)


def _flush_early(ledger: Ledger) -> None:
    """Flush a ledger during a replay, because the journal may hold a million decisions."""
    try:
        ledger.flush()
    except OSError as e:
        logger.warning("Ledger kept in memory, it cannot be written: %s.", e.strerror)
