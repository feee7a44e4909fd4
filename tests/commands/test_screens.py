"""What people see of the commands: as the documentation has it, aligned, and not to be fooled."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from fcntl import ioctl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docutils.nodes
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from tests.project.test_docs import parse
from tests.servers.brokers import ROOT
from watchman.commands.screens import check, explain, queue, screen, status
from watchman.commands.shared import phrases
from watchman.operate.history import FIELDS

DOCS = ROOT / "docs/screens.rst"

#: When the documentation's screens are looked at (epoch).
NOW = 1795921200.0

IDS = (
    "0b0e6a50-6a9d-4a5e-9b0e-0123456789ab",
    "3b98147d-1b8e-45cd-bad1-37051205de00",
    "79e2bf44-0a55-4c1d-8f05-5a4e1f6b2c11",
    "ced81d3b-83df-4f2e-94ff-04fe5a488d9e",
)

REFUSED = "Error 111 connecting to redis.example.org:6379. Connection refused"


def sink(**values: Any) -> dict[str, Any]:
    known = {"state": "up", "since": NOW - 86_400 * 3, "waiting": 0, "attempts": 0}
    return {**known, "next_try": None, "held_up": [], "paused": False, **values}


def source(heard: int, ago: float | None, **said: int) -> dict[str, Any]:
    return {"heard": heard, "last": None if ago is None else NOW - ago, "said": said}


STATUS: dict[str, Any] = {
    "paused": [],
    "healthy": False,
    "health_since": NOW - 1_200,
    "problems": [f"broker main is down: {REFUSED}"],
    "cures": ["watchman check --brokers"],
    "warnings": [],
    "pid": 4711,
    "version": "0.1.0",
    "since": NOW - 86_400 * 3,
    "config": "/etc/watchman/watchman.ini",
    "sources": {
        "hook": source(5_321, 180, completed=5_300, failed=21),
        "log": source(0, None),
        "inotify": source(5_498, 180, completed=5_498),
        "scan": source(2, 86_000, completed=2),
        "resubmit": source(0, None),
    },
    "transfer_logs": {},
    "watches": {
        "ftp": {
            "path": "/srv/ftp/incoming",
            "state": "watching",
            "directories": 15,
            "unwatched": 0,
            "unmatched": 2,
            "excluded": 31,
            "scanning": False,
            "last_scan": NOW - 1_900,
            "error": None,
            "told": {"hook": 5_300, "log": 0},
            "unconfirmed": 0,
        }
    },
    "moves": {"storage": sink(destination="/srv/storage")},
    "brokers": {
        "main": sink(
            state="down", since=NOW - 1_200, waiting=5_000, attempts=203, next_try=NOW + 4
        ),
        "gis": sink(),
    },
    "uploads": {"noticed": 0, "waiting": 0, "deferred": 5_000, "failed": 2, "done": 498},
    "oldest_waiting": NOW - 1_200,
}

GROUPS: list[dict[str, Any]] = [
    {
        "state": "failed",
        "place": "",
        "reason": "ProFTPD: the transfer was aborted",
        "uploads": 2,
        "since": NOW - 86_400 * 3,
        "attempts": 0,
        "next_try": None,
        "first": {"id": IDS[0], "path": "/srv/ftp/incoming/alice/a.csv"},
        "last": {"id": IDS[1], "path": "/srv/ftp/incoming/bob/map of the north.tif"},
    },
    {
        "state": "deferred",
        "place": "broker:main",
        "reason": REFUSED,
        "uploads": 5_000,
        "since": NOW - 1_200,
        "attempts": 203,
        "next_try": NOW + 4,
        "first": {"id": IDS[2], "path": "/srv/ftp/incoming/carol/0001.csv"},
        "last": {"id": IDS[3], "path": "/srv/ftp/incoming/carol/5000.csv"},
    },
]

EXPLAINED: dict[str, Any] = {
    "path": "/srv/ftp/incoming/alice/a.csv",
    "would": "The next time it is written, it is moved to /srv/storage/alice/a.csv and task"
    " reports.import_table is sent to broker gis, queue 'tables'",
    "watch": "ftp",
    "watch_path": "/srv/ftp/incoming",
    "file": "it does not exist",
    "wholeness": "the kernel tells who has it open for writing (a lease)",
    "excluded": None,
    "move": "storage",
    "destination": "/srv/storage/alice/a.csv",
    "section": "tables",
    "patterns": ["*.csv"],
    "also": [],
    "task": "reports.import_table",
    "broker": "gis",
    "exchange": "",
    "routing_key": "tables",
    "queue": "tables",
    "route": "queue 'tables'",
    "options": {"priority": 3},
    "args": ["/srv/storage/alice/a.csv"],
    "kwargs": {},
    "story": [{"event": "accepted", "id": IDS[0]}],
    "uploads": [
        {
            **dict.fromkeys(FIELDS),
            "id": IDS[0],
            "state": "done",
            "at": NOW - 3_480,
            "path": "/srv/storage/alice/a.csv",
            "original": "/srv/ftp/incoming/alice/a.csv",
            "watch": "ftp",
            "source": "hook",
            "user": "alice",
            "client": "192.0.2.7",
            "protocol": "sftp",
            "size": 1_048_576,
            "accepted": NOW - 3_600,
            "move": "storage",
            "destination": "/srv/storage/alice/a.csv",
            "section": "tables",
            "task": "reports.import_table",
            "broker": "main",
            "queue": "celery",
            "tries": [
                {"at": NOW - 3_600, "place": "move:storage", "number": 1, "answer": "moved"},
                {"at": NOW - 3_600, "place": "broker:main", "number": 1, "answer": REFUSED},
                {"at": NOW - 3_480, "place": "broker:main", "number": 24, "answer": "taken"},
            ],
        }
    ],
    "earlier": 0,
    "now": [],
}

FINDINGS = (
    ("OK", "config", "/etc/watchman/watchman.ini, checked as watchman"),
    ("OK", "spool", "/var/lib/watchman"),
    ("WARN", "watch:ftp", "'/srv/ftp/incoming' is not there yet; the daemon waits for it"),
    ("OK", "broker:main", "redis://:**@redis.example.org:6379/0 (not tried; --brokers connects)"),
    ("ERROR", "task:tables", "goes to broker man, which is not there; did you mean main?"),
)


def screens() -> dict[str, list[RenderableType]]:
    """What each command would show, by its name."""
    return {
        "status": list(status.draw(STATUS)),
        "queue": list(queue.draw(GROUPS)),
        "explain": list(explain.draw(EXPLAINED)),
        "check": [check.draw(*finding) for finding in FINDINGS],
    }


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands, in UTC."""
    clock = {"time": lambda: NOW, "localtime": time.gmtime, "strftime": time.strftime}
    monkeypatch.setattr(phrases, "time", SimpleNamespace(**clock))


def drawn(
    parts: Iterable[RenderableType], capsys: pytest.CaptureFixture[str], **options: Any
) -> str:
    """What is printed of parts of a screen."""
    on = Console(markup=False, emoji=False, highlight=False, **options)
    screen.show(*parts, on=on)
    return capsys.readouterr().out


def documented(language: str) -> Iterator[str]:
    for block in parse(DOCS).findall(docutils.nodes.literal_block):
        if language in block["classes"]:
            yield block.astext()


def test_the_documentation_shows_the_screens_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = dict(block.split("\n", 1) for block in documented("text") if block.startswith("$ "))
    for name, parts in screens().items():
        [told] = [text for command, text in shown.items() if command.split()[2] == name]
        assert told == drawn(parts, capsys, width=80).rstrip("\n"), name


@pytest.mark.parametrize("width", [60, 80, 132])
def test_a_screen_is_as_wide_as_its_terminal_and_loses_nothing(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, parts in screens().items():
        lines = drawn(parts, capsys, width=width).splitlines()
        assert max(map(cell_len, lines)) <= width, name
        whole = drawn(parts, capsys, width=screen.UNBOUNDED)
        letters = re.sub(r"\s", "", "".join(lines))
        for path in re.findall(r"/srv\S+", whole):
            assert path in letters, name
        for upload_id in re.findall("|".join(IDS), whole):
            assert upload_id in letters, name


def test_a_screen_of_a_small_server_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(drawn(status.draw(STATUS), capsys, width=80).splitlines()) <= 24


HOSTILE = "\x1b[31m[red]\x1b]0;x\x07[/]\n\r\t\u202e\udcff:smile: \u200b"


def test_nothing_from_outside_is_taken_for_markup_or_a_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    upload = {"id": None, "path": f"/{HOSTILE}"}
    group = {**GROUPS[0], "reason": HOSTILE, "first": upload, "last": upload, "place": HOSTILE}
    story = {**EXPLAINED["uploads"][0], "user": HOSTILE, "reason": HOSTILE, "original": HOSTILE}
    for parts in (
        queue.draw([group]),
        explain.draw({**EXPLAINED, "path": HOSTILE, "would": HOSTILE, "uploads": [story]}),
        status.draw({**STATUS, "problems": [HOSTILE], "cures": [HOSTILE], "warnings": [HOSTILE]}),
        [check.draw("ERROR", HOSTILE, HOSTILE)],
    ):
        told = drawn(parts, capsys, width=screen.UNBOUNDED, color_system=None)
        assert set(re.findall(r"[^ -~\n]", told)) == set()
        assert r"\x1b[31m[red]\x1b]0;x\x07[/] \r\t\u202e\udcff:smile: \u200b" in told


def test_wide_and_combining_letters_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("plain", "日本語の資料", "e\u0301te\u0301", "😀")
    brokers = {name: sink() for name in names}
    lines = drawn([screen.named(status.BROKERS, brokers)], capsys, width=80).splitlines()
    assert len({cell_len(line.partition("up")[0]) for line in lines[1:]}) == 1


def seen(*arguments: str, **variables: str) -> str:
    """What `watchman check` shows on a terminal of 80 columns."""
    main, other = pty.openpty()
    ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "watchman", *arguments],
        stdin=other,
        stdout=other,
        stderr=other,
        env=environment,
        cwd=ROOT,
    )
    os.close(other)
    told = bytearray()
    try:
        while data := os.read(main, 65_536):
            told += data
    except OSError:  # the terminal's other end was closed, see pty(7)
        pass
    process.wait()
    os.close(main)
    return told.decode().replace("\r\n", "\n")


def test_colours_are_for_terminals_whose_users_want_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    ini = tmp_path / "watchman.ini"
    text = "[watchman]\nspool = spool\nsocket = s\n[broker:b]\nurl = filesystem://b\n"
    ini.write_text(f"{text}[watch:in]\npath = in\n[task:t]\npattern = *\nbroker = b\ntask = t\n")
    arguments = ("-c", str(ini), "check")
    coloured = seen(*arguments)
    assert "\x1b[32mOK" in coloured
    plain = seen(*arguments, NO_COLOR="1")
    assert "\x1b" not in plain
    assert plain == re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert max(map(len, plain.splitlines())) <= 80
    piped = subprocess.run(
        [sys.executable, "-m", "watchman", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    assert "\x1b" not in piped
    assert f"OK     config          {ini}, checked as " in piped
