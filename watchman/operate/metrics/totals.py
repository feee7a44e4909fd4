"""The totals: counters that go on after a restart. They are kept in a plain file in the spool."""

from __future__ import annotations

import json
import logging
import os

from watchman.config.files import replace_file

logger = logging.getLogger(__name__)

#: The version of the file's format.
VERSION = 1

#: Most sets of labels of a counter. All further ones are counted together, with OTHER in the place
#: of each label.
MOST = 1_000
OTHER = "(other)"

#: The values of a counter's labels.
Labels = tuple[str, ...]


class Totals:
    """What all parts of the daemon have counted since the first start. For use by one thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        #: The sums, by the counter's name and then by labels.
        self._sums: dict[str, dict[Labels, float]] = {}
        #: The last count of each part, by the counter's name and labels.
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
            what = "%r cannot be read: %s. Keeping it as %r. Counters begin anew."
            logger.error(what, path, e, path + ".bad")

    def follow(self, name: str, labels: Labels, count: float) -> None:
        """Add what a part has counted since the last call.

        A count that is less than the last one is that of a new part, which a reload has made.
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
        """Return the sums of a counter, by labels."""
        return self._sums.get(name, {})

    def store(self) -> None:
        """Write the totals to the file, if they have changed. Raises OSError.

        They outlive a kill, but not a power failure, which may leave an older file or none: that
        would take an fsync, which would slow the journal down.
        """
        if not self._changed:
            return
        totals = {name: list(sums.items()) for name, sums in self._sums.items()}
        content = json.dumps({"version": VERSION, "totals": totals}).encode("ascii")
        replace_file(self._path, content, 0o600)
        self._changed = False
