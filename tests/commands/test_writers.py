"""Who has a file open for writing, as `queue` and `explain` say it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.inis import INI
from watchman.commands.shared.writers import writers

Start = Callable[..., Daemon]


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/known.csv").write_text("1")
    return tmp_path / "in"


def test_a_file_that_is_known_and_open_again_is_in_the_queue_with_who_writes_it(
    incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
    by = f"{Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()}, "
    with (
        (incoming / "known.csv").open("a"),
        (incoming / "new.csv").open("w"),
        (incoming / "none.txt").open("w"),
        (incoming / ".hidden.csv").open("w"),
    ):
        eventually(lambda: len(daemon.queue()) == 2)
        rows = [json.loads(line) for line in daemon.run("queue", "--json").stdout.splitlines()]
        of_csv = {row["path"]: row for row in rows if row["path"].endswith(".csv")}
        assert set(of_csv) == {f"{incoming}/known.csv", f"{incoming}/new.csv"}
        for row in of_csv.values():
            assert (row["state"], row["reason"]) == ("noticed", "it is being written")
            assert [writer["pid"] for writer in row["writers"]] == [os.getpid()]
        assert of_csv[f"{incoming}/new.csv"]["since"]
        assert of_csv[f"{incoming}/known.csv"]["since"] is None
        shown = daemon.run("queue").stdout
        assert "noticed: " in shown
        assert "it is being written" in shown
        assert f"open for writing by {by}" in shown
        every = daemon.run("queue", "--all").stdout
        assert every.count(f"    open for writing by {by}") == len(rows)
        assert len(daemon.run("queue", "--json", "--limit", "1").stdout.splitlines()) == 1
        known, new = (
            daemon.run("explain", f"{incoming}/{name}.csv").stdout for name in ("known", "new")
        )
        for story in (known, new):
            assert "Once it is written and nobody has it open for writing, task" in story
            assert f"open for writing by {by}" in story
        assert "The daemon knows of no upload of it." in known
        assert "The daemon knows of no upload of it." not in new
        assert "  Now it is noticed since " in new
    assert "The next time it is written" in daemon.run("explain", f"{incoming}/known.csv").stdout


def test_who_only_reads_a_file_is_none_of_its_writers(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("1")
    with (tmp_path / "f").open():
        assert writers([str(tmp_path)]) == {}
    (tmp_path / "link").symlink_to(tmp_path)
    with (tmp_path / "f").open("r+"):
        assert list(writers([f"{tmp_path}/link/", f"{tmp_path}x"])) == [f"{tmp_path}/link/f"]
        assert list(writers([f"{tmp_path}/f"])) == [f"{tmp_path}/f"]
        (tmp_path / "f").unlink()
        assert writers([str(tmp_path)]) == {}


@pytest.mark.root
def test_a_writer_is_named_with_the_user_that_it_has_changed_to(tmp_path: Path) -> None:
    path = tmp_path / "f"
    program = "import os, sys; os.setresuid(*3 * [65534]); print(flush=True); sys.stdin.read()"
    with (
        path.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-c", program],
            pass_fds=[file.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        users = {writer["pid"]: writer["user"] for writer in writers([str(path)])[str(path)]}
        process.stdin.close()
    assert users[process.pid] == "nobody"
