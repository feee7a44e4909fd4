"""What `make bench` makes of its figures; the measuring itself is too slow for a test."""

from pathlib import Path

import pytest
from docutils.core import publish_doctree
from docutils.nodes import entry

from tests.bench import rows
from tests.bench.report import table
from tests.bench.rows import Row

FASTER = Row(
    "burst", "files/s", [90, 300, 310], {"a": [100, 200, 90], "b": [150] * 3}, 1, 4, ["a", "b"]
)
SLOWER = Row("latency", "ms", [3.0], {"a": [1.0], "b": [2.0]}, 2, 1, ["a"])
ABSOLUTE = Row("memory", "MB", [55.0], {}, 100, 60)


def test_a_row_compares_medians_with_the_best_of_the_others() -> None:
    assert (FASTER.best, FASTER.reached, FASTER.verdict) == ("b", 2, "least")
    assert (SLOWER.best, SLOWER.reached, SLOWER.verdict) == ("a", 3, "missed")
    assert (ABSOLUTE.best, ABSOLUTE.reached, ABSOLUTE.verdict) == ("", 55, "aim")


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "KEPT", tmp_path / "kept")
    assert list(rows.kept("some")) == []
    rows.keep("some", [FASTER, ABSOLUTE])
    assert list(rows.kept("some")) == [FASTER, ABSOLUTE]


def test_a_table_is_one_in_restructuredtext_also_with_empty_cells() -> None:
    text = table(["what", "watchman", "b"], [["burst, files/s", "300", ""], ["memory", "55", "1"]])
    cells = [cell.astext() for cell in publish_doctree(text).findall(entry)]
    assert cells == ["what", "watchman", "b", "burst, files/s", "300", "", "memory", "55", "1"]
