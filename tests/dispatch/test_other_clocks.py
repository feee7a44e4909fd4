"""Files whose writer this kernel does not know, and clocks that are not its own."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.needs import need

INI = """
[broker:b]
url = filesystem://broker
[watch:in]
path = {tmp}/in
rescan = 1s
OPTIONS
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

#: A file that is written so many times with a pause (seconds) that is shorter than a quiet second.
PIECES, PIECE, PAUSE = 8, b"x" * 500, 0.4

#: What the command `faketime` loads; it would hide our signals from the daemon.
LIBRARY = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}/faketime/libfaketimeMT.so.1"

#: Times of a file, in seconds since 1970: then, in 2242, and now.
TIMES = {"1970": 1, "2242": 8_583_000_000, "now": None}

pytestmark = pytest.mark.root


def sizes(directory: Path) -> dict[str, list[int]]:
    """The sizes that were sent for each file, by its name."""
    found: dict[str, list[int]] = {}
    for task in published(directory / "broker"):
        found.setdefault(Path(task["args"][0]).name, []).append(task["watchman"]["size"])
    return found


def write_slowly(files: list[Path]) -> None:
    """Open and close each for every piece, and give it the times that its name says."""
    for _ in range(PIECES):
        for file in files:
            with file.open("ab") as writing:
                writing.write(PIECE)
            if (moment := TIMES[file.stem]) is not None:
                os.utime(file, (moment, moment))
        time.sleep(PAUSE)


def test_a_file_that_is_written_behind_fuse_is_sent_once_it_is_whole(
    tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    need("bindfs", "fusermount3")
    (tmp_path / "in").mkdir()
    (tmp_path / "backing").mkdir()
    subprocess.run(["bindfs", tmp_path / "backing", tmp_path / "in"], check=True)
    try:
        daemon = start_watchman(INI.replace("OPTIONS", ""))
        told = daemon.run("check", "--brokers").stdout
        assert "fuse" in told.lower()
        with (tmp_path / "backing/1970.csv").open("wb", buffering=0) as writing:
            for _ in range(PIECES):
                writing.write(PIECE)
                time.sleep(PAUSE)
        expected = {"1970.csv": [PIECES * len(PIECE)]}
        eventually(lambda: sizes(tmp_path) == expected, timeout=20)
        daemon.stop()
        assert sizes(tmp_path) == expected
    finally:
        subprocess.run(["fusermount3", "-uz", tmp_path / "in"], check=True)


@pytest.mark.parametrize("shift", ["-1d", "+1d"])
@pytest.mark.parametrize("options", ["settle = 1s", "proftpd = yes\nconfirm = 2s"])
def test_no_clock_ends_the_wait_for_a_file_that_is_written(
    options: str, shift: str, tmp_path: Path
) -> None:
    need("faketime")
    (tmp_path / "in").mkdir()
    # The wall clock alone: the monotonic one is the kernel's.
    fake = [f"LD_PRELOAD={LIBRARY}", f"FAKETIME={shift}", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
    daemon = Daemon(tmp_path, INI.replace("OPTIONS", options), prefix=["env", *fake])
    daemon.start()
    try:
        now = time.strftime("%Y-%m-%d %H", time.localtime())
        assert now not in daemon.log
        write_slowly([tmp_path / "in" / f"{name}.csv" for name in TIMES])
        expected = {f"{name}.csv": [PIECES * len(PIECE)] for name in TIMES}
        eventually(lambda: sizes(tmp_path).keys() == expected.keys(), timeout=20)
        assert sizes(tmp_path) == expected
        assert "Traceback" not in daemon.log
    finally:
        # Not stopped in order: libfaketime cannot sleep by the monotonic clock.
        daemon.kill()
