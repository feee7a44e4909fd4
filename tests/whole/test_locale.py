"""A path is bytes: whatever the locale, its text names the file on every other machine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.inis import INI
from tests.support.needs import need

NAMES = ("é.csv".encode(), b"\xe9.csv", b"\xff\xfe.csv", "日本.csv".encode())


class Abroad(Daemon):
    """A daemon, and its commands, under a locale that is not UTF-8."""

    locale: Mapping[str, str]

    def environment(self) -> dict[str, str]:
        return super().environment() | dict(self.locale)


@pytest.fixture(params=["ISO-8859-1", "ASCII", "stdio"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Abroad]:
    need("localedef")
    german = {"LC_ALL": "de_DE.ISO-8859-1", "LOCPATH": str(tmp_path)}
    subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / german["LC_ALL"])],
        check=True,
    )
    (tmp_path / "in").mkdir()
    daemon = Abroad(tmp_path, INI)
    daemon.locale = {
        "ISO-8859-1": german,
        "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "stdio": german | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    }[request.param]
    with daemon:
        yield daemon


def test_a_task_names_its_file_by_utf_8(daemon: Abroad, tmp_path: Path) -> None:
    incoming = os.fsencode(tmp_path / "in")
    for name in NAMES:
        with open(os.path.join(incoming, name), "w") as file:
            file.write("1")
    tasks = eventually(lambda: len(found := published(tmp_path / "broker")) == len(NAMES) and found)
    wanted = {os.path.join(incoming, name).decode("utf-8", "surrogateescape") for name in NAMES}
    assert {task["args"][0] for task in tasks} == wanted
    assert {task["watchman"]["original"] for task in tasks} == wanted
    for path in wanted:
        assert repr(path) in daemon.log
    journal = b"".join(file.read_bytes() for file in (tmp_path / "spool/journal").iterdir())
    assert all(json.dumps(path).encode() in journal for path in wanted)


def sent_of(tmp_path: Path, path: str) -> list[str]:
    """The paths of the tasks that were sent for a path."""
    return [path for task in published(tmp_path / "broker") if task["args"][0] == path]


def test_commands_take_and_print_names_by_utf_8(daemon: Abroad, tmp_path: Path) -> None:
    incoming = os.fsencode(tmp_path / "in")
    for name in NAMES:
        path = os.path.join(incoming, name)
        with open(path, "w") as file:
            file.write("1")
        text = path.decode("utf-8", "surrogateescape")
        told = subprocess.run(
            [*daemon.watchman("explain", "--json"), path],
            env=daemon.environment(),
            capture_output=True,
            check=True,
            timeout=30,
        )
        assert json.loads(told.stdout)["path"] == text
        sent = subprocess.run(
            [*daemon.command()[:2], "watchman.commands.send", "-c", str(daemon.ini), path],
            env=daemon.environment(),
            capture_output=True,
            check=True,
            timeout=30,
        )
        assert sent.stdout.startswith(b"OK ")
        if b"\xff" not in path and b"\xe9.csv" not in path:
            assert path in sent.stdout
        eventually(
            lambda text=text: (
                [t["args"][0] for t in published(tmp_path / "broker")].count(text) == 2
            )
        )
