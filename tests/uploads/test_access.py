"""Who may speak of a file: asked of the file that is meant, when it is decided about."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.inis import csv_tasks
from tests.support.needs import need
from tests.support.users import ALICE, BOB, speak
from watchman.uploads.access import may_speak

STAFF = 12347

pytestmark = pytest.mark.root

INI = csv_tasks("""
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
[watch:in]
path = {tmp}/in
proftpd = yes
confirm = 1s
""")

REFUSED = "ERROR only who may write a file may announce it"


class Who(NamedTuple):
    uid: int | None
    groups: frozenset[int] | None


ALICE_OF_STAFF = Who(ALICE, frozenset({STAFF}))


def own(path: Path, *, uid: int = 0, gid: int = 0, mode: int = 0o644) -> Path:
    path.write_text("x")
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "may"),
    [
        (ALICE, 0, 0o400, True),
        (BOB, 0, 0o644, False),
        (BOB, STAFF, 0o664, True),
        (BOB, STAFF, 0o646, False),  # its group's rights count, and those of others do not
        (BOB, 0, 0o646, True),
    ],
)
def test_by_the_modes_of_a_file(tmp_path: Path, uid: int, gid: int, mode: int, may: bool) -> None:
    own(tmp_path / "a.csv", uid=uid, gid=gid, mode=mode)
    assert may_speak(ALICE_OF_STAFF, str(tmp_path), "a.csv") == may
    for anybody in (Who(0, frozenset()), Who(BOB, None), Who(None, None)):
        assert may_speak(anybody, str(tmp_path), "a.csv")


@pytest.mark.parametrize(
    ("entries", "may"),
    [
        (f"u:{ALICE}:rw,m::rw", True),
        (f"u:{ALICE}:rw,m::r", False),
        (f"g:{STAFF}:rw,m::rw", True),
        # The group's bits of the mode are the list's mask, and a right of nobody.
        (f"u:{BOB}:rw,m::rw", False),
        (f"u:{ALICE}:r,o::rw", False),
        (f"u:{BOB}:r,o::rw", True),
    ],
)
def test_by_the_access_control_list_of_a_file(tmp_path: Path, entries: str, may: bool) -> None:
    need("setfacl")
    own(tmp_path / "a.csv", uid=BOB, gid=0)
    subprocess.run(["setfacl", "-m", entries, tmp_path / "a.csv"], check=True)
    assert may_speak(ALICE_OF_STAFF, str(tmp_path), "a.csv") == may


@pytest.mark.parametrize(
    ("mode", "replaced", "absent"),
    [(0o755, False, False), (0o777, True, True), (0o1777, False, True), (0o776, False, False)],
)
def test_by_the_directory_in_which_it_may_be_made_or_replaced(
    tmp_path: Path, mode: int, replaced: bool, absent: bool
) -> None:
    (tmp_path / "d").mkdir()
    own(tmp_path / "d/a.csv", uid=BOB)
    (tmp_path / "d").chmod(mode)
    assert may_speak(ALICE_OF_STAFF, str(tmp_path), "d/a.csv", begins=True) == replaced
    assert not may_speak(ALICE_OF_STAFF, str(tmp_path), "d/a.csv")
    assert may_speak(ALICE_OF_STAFF, str(tmp_path), "d/none.csv") == absent
    assert not may_speak(ALICE_OF_STAFF, str(tmp_path), "none/none.csv")


def test_a_symlink_to_ones_own_file_gives_no_right_to_anothers_name(tmp_path: Path) -> None:
    own(tmp_path / "mine.csv", uid=ALICE)
    (tmp_path / "link.csv").symlink_to("mine.csv")
    tmp_path.chmod(0o755)
    assert not may_speak(ALICE_OF_STAFF, str(tmp_path), "link.csv")


@pytest.fixture
def daemon(public_path: Path, start_watchman: Callable[..., Daemon]) -> Daemon:
    (public_path / "in").mkdir()
    (public_path / "in").chmod(0o1777)
    return start_watchman(INI, directory=public_path)


def test_all_refusals_look_the_same(public_path: Path, daemon: Daemon) -> None:
    (public_path / "in/closed").mkdir(mode=0o700)
    own(public_path / "in/closed/there.csv", uid=ALICE)
    own(public_path / "in/theirs.csv", uid=ALICE)
    requests = [
        f"event={event}\0path={public_path}/in/{name}\0\0"
        for event in ("started", "completed", "failed")
        for name in ("closed/there.csv", "closed/none.csv", "none/none.csv", "theirs.csv")
    ]
    answers = speak(BOB, daemon.directory / "watchman.sock", "".join(requests).encode())
    assert answers == [REFUSED] * len(requests)
    # In the log it is one line.
    eventually(lambda: f"Refused uid {BOB}" in daemon.log)
    assert daemon.log.count("Refused uid") == 1


@pytest.mark.parametrize("event", ["started", "failed", "completed"])
def test_what_is_said_of_a_name_that_is_not_there_changes_nothing_for_who_uploads_it(
    event: str, public_path: Path, daemon: Daemon
) -> None:
    names = [f"{n}.csv" for n in range(100)]
    requests = "".join(f"event={event}\0path={public_path}/in/{name}\0\0" for name in names)
    socket_path = daemon.directory / "watchman.sock"
    # Bob's session is this process: it lives on.
    answers = speak(BOB, socket_path, requests.encode())
    assert {answer.split()[0] for answer in answers} <= {"OK", "IGNORED"}
    for name in names:
        own(public_path / "in" / name, uid=ALICE)
    assert set(speak(BOB, socket_path, requests.encode())) == {REFUSED}
    told = requests.replace(f"event={event}", "event=completed").encode()
    assert {answer.split()[0] for answer in speak(ALICE, socket_path, told)} <= {"OK", "DUPLICATE"}
    eventually(lambda: len(published(public_path / "broker")) == len(names))
    eventually(lambda: daemon.queue() == [])
    speak(BOB, socket_path, b"event=ended\0\0")
    daemon.stop()
    assert len(published(public_path / "broker")) == len(names)


def test_a_claim_of_ones_own_file_that_is_replaced_says_nothing_of_the_other(
    public_path: Path, daemon: Daemon
) -> None:
    socket_path = daemon.directory / "watchman.sock"
    file = own(public_path / "in/a.csv", uid=BOB)
    request = f"event=started\0path={file}\0\0".encode()
    assert speak(BOB, socket_path, request) == ["OK"]
    file.unlink()
    own(file, uid=ALICE)
    told = f"event=completed\0path={file}\0\0".encode()
    assert speak(ALICE, socket_path, told)[0].split()[0] == "OK"
    eventually(lambda: len(published(public_path / "broker")) == 1)
    eventually(lambda: daemon.queue() == [])
