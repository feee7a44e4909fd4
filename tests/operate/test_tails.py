"""Who looks on by `watchman tail` sees each step as it happens, and delays nobody."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.servers.brokers import ROOT
from tests.servers.daemon import Daemon
from tests.support.backlog import upload
from tests.support.deadline import eventually
from tests.support.inis import WATCH, csv_tasks
from watchman.commands.shared import client
from watchman.config import inifile
from watchman.config.settings import Settings
from watchman.errors import RequestRefused
from watchman.operate import tails
from watchman.sinks.steps import Steps
from watchman.sources.socket import wire
from watchman.sources.socket.listener import Listener
from watchman.uploads.upload import State

INI = csv_tasks(f"""
{WATCH}
[watch:other]
path = {{tmp}}/other
[task:bad]
pattern = *.bad
broker = b
task = tests.record
exchange = x
routing_key = {"k" * 300}
""")

Start = Callable[..., Daemon]
Tail = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def daemon(tmp_path: Path, start_watchman: Start) -> Daemon:
    for name in ("in", "other"):
        (tmp_path / name).mkdir()
    started = start_watchman(INI)
    eventually(lambda: all(w["last_scan"] for w in started.status()["watches"].values()))
    return started


@contextlib.contextmanager
def tail(daemon: Daemon, *arguments: str) -> Iterator[list[dict[str, Any]]]:
    """`watchman tail --json` while it runs, and the steps that it has printed so far."""
    with (daemon.directory / f"tail{len(arguments)}.out").open("w+") as output:
        process = subprocess.Popen(
            daemon.watchman("tail", "--json", *arguments),
            cwd=daemon.directory,
            env=daemon.environment(),
            stdout=output,
        )
        steps = Printed(Path(output.name))
        try:
            eventually(lambda: steps.all())
            yield steps
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130


class Printed(list[dict[str, Any]]):
    """The lines of a file that grows; the first one says that it has begun."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def all(self) -> list[dict[str, Any]]:
        *lines, _ = self._file.read_text().split("\n")
        self[:] = map(json.loads, lines)
        return self

    def of(self, name: str) -> list[str]:
        """The events of the file of a name, in order."""
        return [step["event"] for step in self.all() if step.get("path", "").endswith(f"/{name}")]


def test_each_step_is_told_in_order_to_those_who_want_to_see_it(
    tmp_path: Path, daemon: Daemon
) -> None:
    with (
        tail(daemon) as everything,
        tail(daemon, "--watch=other") as other,
        tail(daemon, "--path", "*.csv", "--task=csv") as csv,
    ):
        for name in ("in/a.csv", "in/b.bad", "other/c.csv"):
            (tmp_path / name).write_text(name)
        eventually(lambda: everything.of("b.bad") == ["accepted", "failed"])
        daemon.run("drop", "--failed")
        eventually(lambda: everything.of("b.bad") == ["accepted", "failed", "dropped"])
        for name, seers in (("a.csv", [everything, csv]), ("c.csv", [everything, csv, other])):
            for seer in seers:
                eventually(lambda s=seer, n=name: s.of(n) == ["accepted", "done"])
        assert [row["event"] for row in other.all()] == ["following", "accepted", "done"]
        assert csv.of("b.bad") == []
        first, *steps = everything.all()
        assert first["event"] == "following"
        assert all(one["at"] <= next_["at"] + 1 for one, next_ in pairwise(steps))
        [failed] = [step for step in steps if step["event"] == "failed"]
        assert (failed["watch"], failed["task"], failed["source"]) == ("in", "bad", "inotify")
        assert "longer than 255 bytes" in failed["reason"]
        assert {step["id"] for step in steps if step["path"] == failed["path"]} == {failed["id"]}
        assert set(failed) == set(documented("Each step has these fields"))
        assert {step["event"] for step in steps} <= set(documented("The steps are"))
    # They have left; nobody is told any more, and a stop waits for none of them.
    began = time.monotonic()
    daemon.stop()
    assert time.monotonic() - began < 10


def documented(heading: str) -> list[str]:
    """The first column of the table that follows some words."""
    _, _, text = (ROOT / "docs/live.rst").read_text().partition(heading)
    table = re.split(r"^=+ =+$", text, flags=re.M)[1]
    return re.findall(r"^``(\w+)``", table, re.M)


def test_a_line_for_people_has_all_of_path_and_id(tmp_path: Path, daemon: Daemon) -> None:
    process = subprocess.Popen(
        daemon.watchman("tail", "--user", ""),
        cwd=tmp_path,
        env=daemon.environment(),
        stderr=subprocess.PIPE,
    )
    assert process.communicate(timeout=30)[1].endswith(b"a pattern or a name is empty\n")
    assert process.returncode == 2
    for wrong in ("--watch=inn", "--task=cvs"):
        done = daemon.run("tail", wrong)
        assert (done.returncode, "; there are: " in done.stderr) == (1, True)
    with (tmp_path / "out").open("w") as output:
        process = subprocess.Popen(
            daemon.watchman("tail"), cwd=tmp_path, env=daemon.environment(), stdout=output
        )
        name = f"{'x' * 100} \033[31m.csv"

        def printed() -> str:
            # Until it looks on.
            with contextlib.suppress(FileExistsError):
                (tmp_path / "in" / name).touch(exist_ok=False)
            (tmp_path / "in" / name).write_text(str(time.monotonic()))
            return (tmp_path / "out").read_text()

        text = eventually(printed)
        assert f"{tmp_path}/in/{'x' * 100} \\x1b[31m.csv\n" in text
        assert "  accepted    " in text
        # The daemon ends, and so does the command.
        daemon.stop()
        assert process.wait(10) == 3


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    ini = tmp_path / "watchman.ini"
    ini.write_text(f"[watchman]\nspool = {tmp_path}/spool\n{INI.replace('{tmp}', str(tmp_path))}")
    return inifile.load(str(ini))


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def path(tmp_path: Path, steps: Steps, settings: Settings) -> Iterator[str]:
    """A socket that answers every query with the steps."""
    path = str(tmp_path / "socket")
    listener = Listener(
        path,
        submit=lambda *_: None,
        query=lambda event, fields: (
            partial(tails.follow, steps, settings)(fields) if event == "tail" else [{}]
        ),
    )
    listener.start()
    yield path
    listener.stop()
    listener.join()


def begin(path: str, steps: Steps, **fields: str) -> socket.socket:
    """Look on, and read nothing yet."""
    before = len(steps.lookers)
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(10)
    peer.connect(path)
    peer.sendall(wire.encode("tail", fields))
    eventually(lambda: len(steps.lookers) > before)
    return peer


def take(steps: Steps, number: int) -> None:
    """Have so many uploads accepted, of which the first has the number 0."""
    for n in range(number):
        one = upload(f"{n}.csv")
        steps.count(State.ACCEPTED, one._replace(accepted=n), at=n)


def test_a_reader_who_does_not_read_delays_nobody_and_is_told_what_he_has_missed(
    path: str, steps: Steps
) -> None:
    many = 10_000
    with (
        begin(path, steps) as slow,
        begin(path, steps) as quick,
        slow.makefile("rb") as of_slow,
        quick.makefile("rb") as of_quick,
    ):
        began = time.monotonic()
        take(steps, many)
        assert time.monotonic() - began < 5
        # Time for the listener to do what it can for both of them.
        assert list(client.request(path, "status")) == [{}]
        time.sleep(0.5)
        assert list(client.request(path, "status")) == [{}]
        rows = []
        for reader in (of_slow, of_quick):
            rows = [json.loads(reader.readline())]
            seen = missed = 0
            while seen + missed < many:
                row = json.loads(reader.readline())
                if row["event"] == "missed":
                    missed += row["steps"]
                else:
                    assert row["at"] == seen + missed, "in order, and what is missed is told there"
                    seen += 1
            assert (rows[0]["event"], bool(missed)) == ("following", True)
        # And goes on with what comes now.
        take(steps, 1)
        assert json.loads(of_quick.readline())["at"] == 0


@pytest.mark.parametrize("leave", ["close", "shutdown"])
def test_nobody_looks_on_who_has_left(path: str, steps: Steps, leave: str) -> None:
    with begin(path, steps) as peer, begin(path, steps) as other:
        if leave == "close":
            peer.close()
        else:
            peer.shutdown(socket.SHUT_WR)
        eventually(lambda: len(steps.lookers) == 1)
        take(steps, 1)
        with other.makefile("rb") as lines:
            seen = [json.loads(lines.readline())["event"] for _ in range(2)]
            assert seen == ["following", "accepted"]
    eventually(lambda: not steps.lookers)


def test_what_one_who_looks_on_says_is_not_kept(path: str, steps: Steps) -> None:
    with begin(path, steps) as peer:
        # More than any buffer of the kernel holds: it is read, and thrown away.
        peer.sendall(b"x" * (8 << 20))
        take(steps, 1)
        with peer.makefile("rb") as lines:
            lines.readline()
            assert json.loads(lines.readline())["event"] == "accepted"


def test_so_many_may_look_on_and_no_more(path: str, steps: Steps) -> None:
    with contextlib.ExitStack() as peers:
        for _ in range(tails.MOST):
            peers.enter_context(begin(path, steps))
        with pytest.raises(RequestRefused, match="run watchman tail already"):
            next(client.follow(path, "tail", {}))


def test_one_sees_the_files_that_he_asks_for(steps: Steps, settings: Settings) -> None:
    found = {}
    wanted: dict[str, dict[str, str]] = {
        "user": {"user": "alice"},
        "original": {"pattern": "*/as/*"},
        "both": {"user": "alice", "pattern": "*/as/*"},
    }
    followed = {name: tails.follow(steps, settings, fields) for name, fields in wanted.items()}
    for rows in followed.values():
        next(rows)
    one = upload("a.csv")
    for number, (user, original) in enumerate(
        (("alice", "/b"), ("bob", "/as/b"), ("alice", "/as/c"))
    ):
        steps.count(State.DONE, replace_original(one, user, original), at=number)
    for name, rows in followed.items():
        seen = []
        while row := next(rows):
            seen.append(row["at"])
        found[name] = seen
        rows.close()
    assert found == {"user": [0, 2], "original": [1, 2], "both": [2]}
    assert steps.lookers == ()


def replace_original(one: Any, user: str, original: str) -> Any:
    return one._replace(user=user, original=original)
