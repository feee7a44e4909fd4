"""A real daemon goes the ways that CONTRIBUTING.rst draws, step by step."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from tests.servers.brokers import ROOT
from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.inis import csv_tasks
from watchman.sources.socket import wire

INI = csv_tasks("""
[watch:in]
path = {tmp}/in
[watch:ftp]
path = {tmp}/ftp
proftpd = yes
confirm = 1h
""")

STEP = re.compile(r"^\d+\. ``([a-z_/]+\.py)``, ``([A-Za-z_.]+)``", re.M)


def ways() -> list[list[str]]:
    """The steps of each way, as `tests.support.tracing` writes them."""
    text = (ROOT / "CONTRIBUTING.rst").read_text()
    drawn = text.partition("The way of one upload")[2].partition("\nWho may import whom")[0]
    lists = [list(group) for is_step, group in groupby(drawn.splitlines(), bool) if is_step]
    found = [STEP.findall("\n".join(lines)) for lines in lists]
    return [[f"{file} {name}" for file, name in steps] for steps in found if steps]


def follow(steps: list[str], trace: list[str], start: int = 0) -> str:
    """Return the first step that was not taken after those before it, "" if all were."""
    for step in steps:
        try:
            start = trace.index(step, start) + 1
        except ValueError:
            return step
    return ""


def test_an_upload_goes_the_way_that_is_drawn(
    tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    hook, event, start = ways()
    assert max(map(len, (hook, event, start))) <= 10
    for name in ("in", "ftp"):
        (tmp_path / name).mkdir()
    written = tmp_path / "trace"

    def trace() -> list[str]:
        return written.read_text().splitlines()

    tracing = [sys.executable, "-m", "tests.support.tracing", str(written)]
    daemon = start_watchman(INI, prefix=tracing)
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
    assert follow(start, trace()) == ""
    begun = len(trace())
    (tmp_path / "in/a.csv").write_text("1")
    eventually(lambda: follow([*event, *hook[4:]], trace(), begun) == "")
    begun = len(trace())
    (tmp_path / "ftp/b.csv").write_text("1")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "watchman.sock"))
        peer.sendall(wire.encode("completed", {"path": str(tmp_path / "ftp/b.csv")}))
        assert peer.recv(100).startswith(b"OK ")
    eventually(lambda: follow(hook, trace(), begun) == "")
    assert follow([*hook[1:], hook[0]], trace(), begun) == hook[0], "the order counts"
