"""A hard link to somebody else's file is no upload; one's own may have as many names as it likes.

The links are made by root, as users can where `fs.protected_hardlinks` is 0.
"""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.inis import csv_tasks
from tests.support.moving import Yard, files
from watchman.commands.check.findings import Level
from watchman.commands.check.places import hard_links
from watchman.uploads.ownership import Ownership, uploader
from watchman.uploads.upload import Kind, Notification, Outcome, Source

pytestmark = pytest.mark.root

Start = Callable[..., Daemon]

ALICE, BOB = 12345, 12346

INI = csv_tasks("""
[watchman]
spool = {tmp}/spool
socket = {tmp}/watchman.sock
[watch:in]
path = in
""")

MOVE = """
[move:m]
source = in
destination = to
owner = 33
mode = 0644
"""


def own(path: Path, uid: int, mode: int = 0o600) -> Path:
    path.write_text("1,2,3\n")
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Alice's home below the watch; all may pass, and bob has a secret beside it."""
    home = tmp_path / "in" / "alice"
    home.mkdir(parents=True)
    (tmp_path / "to").mkdir()
    os.chown(home, ALICE, ALICE)
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        directory.chmod(directory.stat().st_mode | 0o711)
    own(tmp_path / "secret", BOB)
    return home


def announce(daemon: Daemon, uid: int, **fields: str) -> str:
    """Say as a user that a file is complete; return the answer."""
    with socket.socket(socket.AF_UNIX) as peer:
        os.seteuid(uid)
        try:
            peer.connect(f"{daemon.directory}/watchman.sock")
        finally:
            os.seteuid(0)
        words = [f"{key}={value}" for key, value in {"event": "completed", **fields}.items()]
        peer.sendall("\0".join([*words, "", ""]).encode())
        return peer.recv(1000).decode()


def refused(daemon: Daemon) -> dict[str, Any]:
    """Wait until the only upload is listed as failed, and return its row."""

    def is_so() -> dict[str, Any] | None:
        rows = daemon.queue()
        return rows[0] if [row["state"] for row in rows] == ["failed"] else None

    row = eventually(is_so)
    assert row["reason"].startswith(f"a hard link to a file of uid {BOB}, who neither")
    return row


@pytest.mark.parametrize("ini", [INI, INI + MOVE], ids=["task", "move"])
def test_a_link_to_the_file_of_another_is_refused_until_it_is_none(
    ini: str, tmp_path: Path, home: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(ini)
    secret, link = tmp_path / "secret", home / "a.csv"
    os.link(secret, home / "a.part")
    (home / "a.part").rename(link)
    row = refused(daemon)
    assert row["path"] == str(link)
    told = daemon.run("explain", str(link)).stdout
    assert told.count(row["reason"]) == 2, "in its story, and as how it stands"
    for again in (daemon.run("retry", row["id"]), daemon.send(str(link))):
        assert again.returncode == 1
        assert row["reason"] in again.stderr
    daemon.restart()
    assert refused(daemon)["id"] == row["id"]
    status = link.stat()
    assert (status.st_uid, status.st_mode & 0o777, status.st_nlink) == (BOB, 0o600, 2)
    assert published(tmp_path / "broker") == []
    assert files(tmp_path / "to") == {}
    assert daemon.status()["warnings"] == []
    secret.unlink()
    assert daemon.run("retry", row["id"]).returncode == 0
    (task,) = eventually(lambda: published(tmp_path / "broker"))
    assert task["id"] == row["id"]


def test_who_uploads_is_who_speaks_and_not_whom_he_names(
    tmp_path: Path, home: Path, start_watchman: Start
) -> None:
    (tmp_path / "in" / "drop").mkdir()
    daemon = start_watchman(INI + MOVE)
    # Alice may link to what she may read and write, whatever the sysctl says.
    shared = own(tmp_path / "shared", BOB, 0o666)
    daemon.run("pause", "watch:in")
    os.link(shared, home / "b.csv")
    answer = announce(daemon, ALICE, path=str(home / "b.csv"), user=f"{BOB}")
    assert answer.startswith("OK")
    refused(daemon)
    # Bob uploaded his own into a directory of root's, and it is backed up.
    drop = tmp_path / "in" / "drop" / "c.csv"
    os.link(own(tmp_path / "backup", BOB), tmp_path / "c")
    (tmp_path / "c").rename(drop)
    assert announce(daemon, BOB, path=str(drop)).startswith("OK")
    daemon.run("resume", "watch:in")
    (task,) = eventually(lambda: published(tmp_path / "broker"))
    assert task["args"] == [str(tmp_path / "to" / "drop" / "c.csv")]


def test_who_is_believed_of_who_uploaded() -> None:
    def said(source: Source, **fields: Any) -> int | None:
        return uploader(Notification(Kind.COMPLETED, "/a", source, **fields))

    assert said(Source.LOG, user="daemon") == 1
    assert said(Source.LOG, user="known-to-proftpd-alone") is None
    assert said(Source.HOOK, user="daemon", uid=ALICE) == ALICE
    assert said(Source.HOOK, user="daemon", uid=0) == 1
    assert said(Source.HOOK, user="daemon") is None
    assert said(Source.INOTIFY) is None


def test_a_file_of_one_name_or_of_its_directorys_owner_is_refused_to_nobody() -> None:
    assert Ownership(user=BOB, group=0, links=1, directory=ALICE).refusal() == ""
    assert Ownership(user=ALICE, group=0, links=2, directory=ALICE).refusal() == ""
    assert Ownership(user=BOB, group=0, links=2, directory=ALICE).refusal(BOB) == ""
    assert Ownership(user=0, group=0, links=2, directory=ALICE).refusal(ALICE) != ""


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    (tmp_path / "storage").mkdir()
    yard = Yard(tmp_path, tmp_path / "storage")
    yard.moving = False
    yard.open()
    yield yard
    yard.close()


def test_a_file_that_has_two_names_while_it_is_renamed_is_an_upload(yard: Yard) -> None:
    path = own(yard.ftp / "a.csv", BOB)
    os.link(path, yard.ftp / ".a")
    answer = yard.say(path)
    assert (answer.outcome, "a hard link" in answer.detail) == (Outcome.IGNORED, True)
    (yard.ftp / ".a").unlink()
    yard.start_movers()
    (upload,) = yard.take()
    assert os.stat(upload.path).st_uid == BOB
    assert yard.rows() == [] or yard.rows()[0]["state"] != "failed"


def test_a_backup_of_what_waits_is_no_reason_to_refuse_it(yard: Yard) -> None:
    """As of a drop box of root's, where nobody but inotify tells of uploads."""
    path = own(yard.ftp / "a.csv", BOB)
    yard.say(path)
    os.link(path, yard.tmp_path / "backup")
    yard.start_movers()
    (upload,) = yard.take()
    assert os.stat(upload.path).st_nlink == 2


def test_what_has_become_a_link_to_the_file_of_another_is_not_moved(yard: Yard) -> None:
    """As if the inode had been given to another's file, and that been linked to the same name."""
    path = own(yard.ftp / "a.csv", BOB)
    upload_id = yard.say(path).detail
    os.link(path, yard.tmp_path / "secret")
    os.chown(path, 4321, 4321)
    yard.start_movers()
    eventually(lambda: [row["state"] for row in yard.rows()] == ["failed"])
    (row,) = yard.rows()
    assert (row["id"], "of uid 4321" in row["reason"]) == (upload_id, True)
    assert files(yard.destination) == {}
    assert files(yard.ftp) == {"a.csv": "1,2,3\n"}
    yard.restart()
    assert yard.retry(ids=upload_id) == []


def test_check_warns_where_everyone_may_link_to_every_file(tmp_path: Path) -> None:
    switch = tmp_path / "protected_hardlinks"
    assert list(hard_links(str(switch))) == [], "a kernel that does not tell"
    switch.write_text("1\n")
    assert list(hard_links(str(switch))) == []
    switch.write_text("0\n")
    (finding,) = hard_links(str(switch))
    assert (finding.level, "fs.protected_hardlinks=1" in finding.text) == (Level.WARN, True)
