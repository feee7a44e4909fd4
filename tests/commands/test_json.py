"""What `--json` prints has the fields that the documentation names, and no others."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docutils.nodes

from tests.commands.test_screens import DOCS
from tests.project.test_docs import parse
from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.inis import csv_tasks

INI = csv_tasks("""
[proftpd]
transfer_log = {tmp}/log/uploads.log
token = secret
[broker:away]
url = redis://127.0.0.1:1/0
[watch:in]
path = {tmp}/in
[move:store]
source = {tmp}/in/moved
destination = {tmp}/store
[task:away]
pattern = *.nc
broker = away
task = tests.record
[task:nowhere]
pattern = *.x
broker = b
task = tests.record
exchange = nowhere
routing_key = none
""")

#: Objects whose names are those of sections and so on, with what the documentation has there.
NAMED = dict.fromkeys(("brokers", "moves", "watches", "sources"), "NAME")
NAMED |= {"transfer_logs": "PATH", "refused": "ROUTE", "told": "SOURCE", "said": "KIND"}

#: Values that the documentation does not go into, lists of texts and such.
WHOLE = {
    "args",
    "kwargs",
    "options",
    "patterns",
    "also",
    "problems",
    "cures",
    "warnings",
    "changed",
    "forbidden",
}

#: Lists of objects that are told of elsewhere.
ELSEWHERE = {"now", "story"}


def fields(value: Any, name: str = "", path: str = "") -> Iterator[str]:
    """The paths of all fields in a JSON value, as the documentation writes them."""
    if isinstance(value, dict) and name not in WHOLE:
        for key, inner in value.items():
            shown = NAMED.get(name, key)
            yield from fields(inner, key, f"{path}.{shown}" if path else shown)
    elif isinstance(value, list) and name in ELSEWHERE:
        yield f"{path}[]"
    elif isinstance(value, list) and name not in WHOLE:
        for inner in value:
            yield from fields(inner, "", f"{path}[]")
    elif name:
        yield path


def documented(command: str) -> set[str]:
    [table] = [
        table
        for table in parse(DOCS).findall(docutils.nodes.table)
        if {"json", command} <= set(table["classes"])
    ]
    rows = table.findall(docutils.nodes.row)
    return {next(iter(row.findall(docutils.nodes.literal))).astext() for row in rows}


def printed(daemon: Daemon, *arguments: str) -> set[str]:
    """The fields of all that a command prints."""
    lines = daemon.run(*arguments, "--json").stdout.splitlines()
    return {field for line in lines for field in fields(json.loads(line))}


def test_the_documented_fields_are_those_that_come_out(
    tmp_path: Path, start_watchman: Callable[..., Daemon]
) -> None:
    for name in ("in", "in/moved", "log", "store"):
        (tmp_path / name).mkdir()
    daemon = start_watchman(INI)
    for name in ("moved/a.csv", "b.nc", "c.x", "d.csv"):
        (tmp_path / "in" / name).write_text("1")
    eventually(lambda: daemon.status()["uploads"]["done"] == 2)
    eventually(lambda: daemon.status()["uploads"]["deferred"] == 2)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "in/moved/late.nc").write_text("1")
    eventually(lambda: daemon.status()["moves"]["store"]["held_up"])
    with (tmp_path / "in/open.csv").open("w") as writing:
        writing.flush()
        daemon.run("pause", "task:csv")
        eventually(lambda: daemon.status()["brokers"]["b"]["held_up"])
        assert printed(daemon, "status") == documented("status")
        assert printed(daemon, "queue") == documented("queue")
        moved, there, unsent, nowhere = ("in/moved/a.csv", "in/d.csv", "in/b.nc", "none")
        explained = printed(
            daemon, "explain", *(f"{tmp_path}/{n}" for n in (moved, there, unsent, "in/open.csv"))
        )
        [nc] = [row["id"] for row in daemon.queue() if row["path"].endswith("b.nc")]
        explained |= printed(daemon, "explain", nc, f"{tmp_path}/{nowhere}")
        told = documented("explain")
        assert explained <= told | {"file"}
        assert told - explained == {"error", "story_error"}
        assert printed(daemon, "retry", "--dry-run", nc) == documented("retry")
        assert printed(daemon, "drop", nc, "nonsense") == documented("retry")
        assert printed(daemon, "resume", "task:csv") == set()
        assert printed(daemon, "pause", "task:csv") == documented("pause")
        assert printed(daemon, "reload") == documented("reload")
        assert printed(daemon, "check") == documented("check")
    daemon.stop()
    told = printed(daemon, "explain", f"{tmp_path}/in/d.csv")
    assert told - explained == {"story_error", "story"}
