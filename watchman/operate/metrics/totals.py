"""The totals: counters that go on after a restart, kept in a plain file of the spool."""

from __future__ import annotations

import json
import logging
import os

from watchman.config.files import replace_file

logger = logging.getLogger(__name__)

#: Of the file.
VERSION = 1

#: Sets of labels that a counter may have. What comes beyond them is counted together, with OTHER in
#: the place of each label.
MOST = 1_000
OTHER = "(other)"

#: The values of a counter's labels.
Labels = tuple[str, ...]


class Totals:
    """Sums of what parts of the daemon have counted since the first start; for one thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        #: By the counter's name.
        self._sums: dict[str, dict[Labels, float]] = {}
        #: What each part's count was when it was looked at last.
        self._last: dict[tuple[str, Labels], float] = {}
        self._changed = False
        try:
            with open(path, encoding="ascii") as file:
                stored = json.load(file)
            for name, sums in stored["totals"].items():
                self._sums[name] = {tuple(map(str, labels)): float(sum_) for labels, sum_ in sums}
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            os.replace(path, path + ".bad")
            self._sums = {}
            logger.error("Set aside as %r, it cannot be read: %s. Counters begin anew.", path, e)

    def follow(self, name: str, labels: Labels, count: float) -> None:
        """Add what a part has counted since this was called last.

        A count that is less than then is that of a part which was made anew, as by a reload.
        """
        last = self._last.get((name, labels), 0.0)
        self._last[name, labels] = count
        more = count - last if count >= last else count
        sums = self._sums.setdefault(name, {})
        if labels not in sums and len(sums) >= MOST:
            labels = (OTHER,) * len(labels)
        if more or labels not in sums:
            sums[labels] = sums.get(labels, 0.0) + more
            self._changed = True

    def sums(self, name: str) -> dict[Labels, float]:
        """Return what a counter has summed up, by labels."""
        return self._sums.get(name, {})

    def store(self) -> None:
        """Write them down if they have changed. Raises OSError.

        They outlive a kill. To have them outlive a power failure takes an fsync, which would slow
        the journal down; so that may leave an earlier file, or none.
        """
        if not self._changed:
            return
        totals = {name: list(sums.items()) for name, sums in self._sums.items()}
        content = json.dumps({"version": VERSION, "totals": totals}).encode("ascii")
        replace_file(self._path, content, 0o600)
        self._changed = False
