"""Watches come and go above and below others: who owns a directory then knows what was done."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.inis import csv_tasks

INI = csv_tasks("""
[watch:other]
path = {tmp}/other
""")

OUTER = """
[watch:outer]
path = {tmp}/in
"""

INNER = """
[watch:inner]
path = {tmp}/in/deep/er
existing = yes
"""

Start = Callable[..., Daemon]


def sent(tmp_path: Path) -> Counter[str]:
    """How many uploads were sent, by the file's name."""
    uploads = {(task["id"], task["args"][0]) for task in published(tmp_path / "broker")}
    return Counter(os.path.basename(path) for _, path in uploads)


def change(daemon: Daemon, ini: str, way: str) -> None:
    """Go over to other watches, and wait until all are scanned and what they found is decided."""
    begun = daemon.status()["watches"]
    daemon.configure(INI + ini)
    if way == "reload":
        assert daemon.run("reload").returncode == 0
    else:
        daemon.stop()
        # As if it had happened so long ago that the ledgers alone know of it.
        for segment in (daemon.directory / "spool" / "journal").iterdir():
            segment.unlink()
        daemon.start()

    def is_scanned() -> bool:
        now = daemon.status()["watches"]
        return all(
            watch["last_scan"] not in (None, begun.get(name, {}).get("last_scan"))
            for name, watch in now.items()
        )

    eventually(is_scanned)
    eventually(lambda: daemon.queue() == [])


@pytest.mark.parametrize("way", ["reload", "restart"])
def test_what_was_done_is_not_done_again_by_a_watch_that_comes_or_goes(
    tmp_path: Path, start_watchman: Start, way: str
) -> None:
    inside = tmp_path / "in" / "deep" / "er"
    inside.mkdir(parents=True)
    (tmp_path / "other").mkdir()
    expected: Counter[str] = Counter()
    daemon = start_watchman(INI + OUTER)

    def write(name: str) -> None:
        (inside / name).write_text(f"for the {expected[name]}th time")
        expected[name] += 1
        eventually(lambda: sent(tmp_path) == expected)
        eventually(lambda: daemon.queue() == [])
        # Done, and another ctime since.
        (inside / name).chmod(0o600)

    write("a.csv")
    (inside / "unmatched.dat").write_text("no task matches it")
    change(daemon, OUTER + INNER, way)
    assert sent(tmp_path) == expected
    write("b.csv")
    write("a.csv")
    change(daemon, OUTER, way)
    assert sent(tmp_path) == expected
    write("b.csv")
    change(daemon, OUTER + INNER, way)
    assert sent(tmp_path) == expected
    write("a.csv")
    change(daemon, INNER, way)
    change(daemon, OUTER, way)
    write("c.csv")
    assert sent(tmp_path) == expected
