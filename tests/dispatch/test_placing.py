"""Words of ProFTPD whose paths are bent are placed, or told as a problem; never dropped."""

from __future__ import annotations

import contextlib
import ftplib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.proftpd import GID, UID, USER
from tests.support.deadline import eventually
from tests.support.endings import half, hang_up, reset, sftp
from tests.support.house import Clock, House
from tests.support.needs import need
from tests.support.scene import INI, Scene, scene
from watchman.config.settings import ProftpdSettings
from watchman.dispatch.placing import SHOWN, USERS
from watchman.uploads.upload import Kind, Notification, Source

pytestmark = pytest.mark.timeout(120)

#: Nothing is taken for another program's write here: what is sent, ProFTPD has told of.
PATIENT = INI.replace("confirm = 1.5", "confirm = 60s")

SUBDIRECTORY = "sub"


@contextlib.contextmanager
def server(tmp: Path, mode: str, *, ini: str = PATIENT, **options: object) -> Iterator[Scene]:
    need("proftpd")
    (tmp / "home" / SUBDIRECTORY).mkdir(parents=True)
    os.chown(tmp / "home" / SUBDIRECTORY, UID, GID)
    with scene(mode, tmp, ini=ini, sftp=True, **options) as s:
        yield s


def cut_off(s: Scene, command: str) -> None:
    ftp, data = half(s, command)
    reset(data)
    hang_up(ftp)


def too_large(s: Scene, name: str) -> None:
    ftp = s.ftp()
    # Its 552, or a reset of the data connection that comes before that.
    with pytest.raises((ftplib.Error, OSError)):
        ftp.storbinary(f"STOR {name}", io.BytesIO(b"x" * 200_000))
    ftp.close()


def is_told_of(s: Scene) -> None:
    """Upload and fail in every way below mod_vroot, in a home and in a directory there."""
    for directory in (".", SUBDIRECTORY):
        s.name = directory
        s.store("good.csv")
        cut_off(s, "STOR reset.csv")
        eventually(lambda: "reset.csv" in s.failed())
        too_large(s, "large.csv")
        with s.ftp() as ftp:
            for content in ("1", "2"):
                ftp.storbinary("APPE appended.csv", io.BytesIO(content.encode()))
            ftp.storbinary("STOR renamed.part", io.BytesIO(b"12345"))
            ftp.rename("renamed.part", "renamed.csv")
        with sftp(s) as session:
            session.begin("sftp.part").close()
            session.client.rename("sftp.part", "sftp.csv")
        with sftp(s) as session:
            session.begin("sftp_reset.csv")
            reset(session.sock)
        eventually(lambda: len(s.failed()) == 3)
        # What was appended may be one upload or two.
        eventually(lambda: len(s.sent()) == 4)
        assert set(s.failed()) == {"reset.csv", "large.csv", "sftp_reset.csv"}
        assert set(s.sent()) == {"good.csv", "appended.csv", "renamed.csv", "sftp.csv"}
        assert {task["watchman"]["user"] for task in s.tasks()} == {USER}


@pytest.mark.root
@pytest.mark.parametrize("mode", ["log", "advised"])
def test_below_mod_vroot_the_log_tells_of_all(public_path: Path, mode: str) -> None:
    with server(public_path, mode, vroot=True, max_store_file_size="100 Kb") as s:
        is_told_of(s)
        status = s.daemon.status()
        assert (status["untold"], status["sources"]["log"]["unplaced"]) == (6, 0)
        [failed] = status["problems"]
        assert failed.startswith("6 uploads have failed")


@pytest.mark.root
def test_below_mod_vroot_what_hooks_alone_cannot_tell_is_a_problem(public_path: Path) -> None:
    with server(public_path, "hooks", vroot=True) as s:
        s.store("good.csv")
        cut_off(s, "STOR reset.csv")
        eventually(lambda: s.failed() and s.sent() == {"good.csv": 1})
        s.daemon.run("drop", "--failed")
        assert s.daemon.status()["healthy"]
        with sftp(s) as session:
            session.begin("sftp.csv").close()
        (problem,) = eventually(lambda: s.daemon.status()["problems"])
        assert "1 words of ProFTPD's hook" in problem
        assert "completed '/sftp.csv', user 'alice'" in problem
        assert s.daemon.run("status").returncode == 1
        assert s.daemon.status()["sources"]["hook"]["unplaced"] == 1
        assert set(s.sent()) == {"good.csv"}


@pytest.mark.root
def test_what_is_uploaded_or_refused_outside_of_all_watches_is_no_problem(
    public_path: Path,
) -> None:
    ini = PATIENT.replace("{tmp}/home\n", "{tmp}/home/sub\n")
    with server(public_path, "both", ini=ini) as s:
        s.store("outside.csv")
        for command in ("STOR /nodir/a.csv", "STOR /a.csv", "STOR sub/sub/a.csv"):
            with s.ftp() as ftp, pytest.raises(ftplib.Error):
                ftp.storbinary(command, io.BytesIO(b"1"))
        with sftp(s) as session:
            for name in ("/nodir/a.csv", "/a.csv", "sub/sub/a.csv"):
                with pytest.raises(OSError, match=r"No such|denied"):
                    session.client.open(name, "w")
        s.store("sub/inside.csv")
        eventually(s.sent)
        status = s.daemon.status()
        assert status["problems"] == []
        assert [status["sources"][name]["unplaced"] for name in ("log", "hook")] == [0, 0]


@pytest.mark.root
def test_users_whom_some_are_locked_in_and_odd_names_are_told_of_by_the_log(
    public_path: Path,
) -> None:
    """A user's name with a `|` that a path could follow is ambiguous, and the line is counted."""
    homes = {USER: "home", "a|b": "home", 'a "%u\n'.strip(): "home", "x|/y": "home"}
    users = {name: public_path / home for name, home in homes.items() if name != USER}
    locked = f"DefaultRoot ~ {USER}"
    with server(public_path, "log", users=users, directives=locked) as s:
        for number, user in enumerate(homes):
            s.user = user
            with s.ftp() as ftp:
                assert (ftp.pwd() == "/") is True  # they have one group
                ftp.storbinary(f"STOR {number}.csv", io.BytesIO(b"12345"))
            cut_off(s, f"STOR {number}.reset.csv")
        eventually(lambda: len(s.sent()) == 3)
        eventually(lambda: len(s.failed()) == 3)
        assert {task["watchman"]["user"] for task in s.tasks()} == set(homes) - {"x|/y"}
        (log,) = s.daemon.status()["transfer_logs"].values()
        assert (log["refused"], log["ambiguous"]) == (2, 2)
        assert "2 refused lines (2 with an ambiguous user name)" in s.daemon.run("status").stdout


# What can be read in one way only, on a house without a server.


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, clock=Clock(), proftpd=ProftpdSettings(("/uploads.log",), "token"))
    house.open()
    yield house
    house.close()


def word(kind: Kind, path: Path | str, old: Path | str = "", user: str = USER) -> Notification:
    return Notification(kind, str(path), Source.LOG, old_path=str(old), user=user)


def placed(house: House, notification: Notification) -> tuple[str, str] | None:
    """Where a word leads to, and from; None if that is nowhere, which is counted and told."""
    placing = house.dispatcher.placing
    before = placing.unplaced[Source.LOG]
    found = placing.place(notification)
    if placing.unplaced[Source.LOG] == before:
        return found.path, found.old_path
    assert placing.unplaced[Source.LOG] == before + 1
    assert found == notification
    assert notification.path[:20] in placing.problem(Source.LOG)
    return None


@pytest.mark.parametrize("before", ["", "a/b/"])
def test_a_path_with_its_root_twice_is_read_if_it_leads_to_one_directory(
    house: House, before: str
) -> None:
    """`before` is what VRootServerRoot names, which stands there once."""
    file = house.write(f"{before}alice/x/x.csv" if before else "alice/x.csv")
    home = str(file.parent.parent if before else file.parent)
    doubled = f"{home}{home}" if not before else f"{home}/alice"
    failed = word(Kind.FAILED, f"{doubled}{str(file)[len(home) :]}")
    assert placed(house, failed) == (str(file), "")
    # Whoever was refused may have named a directory that is not there.
    refused = failed._replace(perhaps_refused=True)
    assert placed(house, refused) == ((str(file), "") if not before else (failed.path, ""))
    # What is right as it is stays so.
    right = Path(failed.path)
    right.parent.mkdir(parents=True)
    assert placed(house, failed) == (failed.path, "")


def test_a_path_that_can_be_read_in_two_ways_is_placed_nowhere(house: House) -> None:
    files = [house.write(f"{home}x.csv") for home in ("a/a/", "a/a/a/", "a/")]
    path = house.tmp_path / "ftp" / "a/a/a/a/x.csv"
    failed = word(Kind.FAILED, path)
    # Read as a/a/a/x.csv, by leaving one out, or as a/a/x.csv, by leaving out two.
    assert placed(house, failed) is None
    files[1].unlink()
    assert placed(house, failed) == (str(files[0]), "")
    files[0].unlink()
    assert placed(house, failed) == (str(path), "")  # it left nothing anywhere


def test_a_rename_is_placed_by_what_its_user_has_uploaded(house: House) -> None:
    old = house.write("alice/sub/x.part")
    rename = word(Kind.RENAMED, "/sub/x.csv", "/sub/x.part")
    assert placed(house, rename) is None
    for user in ("bob", USER):
        assert placed(house, word(Kind.COMPLETED, old, user=user))
        assert placed(house, rename) is None  # nothing lies there
    new = old.rename(old.with_suffix(".csv"))
    assert placed(house, rename) == (str(new), str(old))
    # From now on the root is known, and what lies below it.
    stored_once = house.write("alice/ftpX1")
    assert placed(house, word(Kind.COMPLETED, "/ftpX1")) == (str(stored_once), "")
    assert placed(house, word(Kind.COMPLETED, "/ftpX2")) is None
    assert placed(house, word(Kind.COMPLETED, "/ftpX1", user="bob")) is None


def test_a_rename_that_two_uploads_fit_is_placed_nowhere(house: House) -> None:
    for name in ("alice/x.part", "alice/sub/x.part"):
        placed(house, word(Kind.COMPLETED, house.write(name)))
    rename = word(Kind.RENAMED, "/x.csv", "/x.part")
    house.write("alice/x.csv")
    assert placed(house, rename) is None  # x.part is where it was
    for name in ("alice/x.part", "alice/sub/x.part"):
        (house.tmp_path / "ftp" / name).unlink()
    house.write("alice/sub/x.csv")
    assert placed(house, rename) is None
    (house.tmp_path / "ftp/alice/sub/x.csv").unlink()
    assert placed(house, rename) is not None


def test_the_problem_is_told_for_an_hour_with_the_words_escaped_and_short(house: House) -> None:
    placing = house.dispatcher.placing
    assert placing.problem(Source.LOG) == ""
    placing.place(word(Kind.FAILED, "/no\n\udce9where/" + "a" * 1000))
    problem = placing.problem(Source.LOG)
    assert r"failed '/no\n\udce9where/aaa" in problem
    assert problem.isprintable()
    assert len(problem) < 400
    house.clock.ahead += SHOWN - 10
    assert placing.problem(Source.LOG) == problem
    house.clock.ahead += 20
    assert placing.problem(Source.LOG) == ""
    assert placing.unplaced[Source.LOG] == 1


def test_only_so_many_users_are_remembered(house: House) -> None:
    file = house.write("alice/x.part")
    placed(house, word(Kind.COMPLETED, file))
    new = file.rename(file.with_suffix(".csv"))
    for number in range(USERS):
        placed(house, word(Kind.COMPLETED, new, user=str(number)))
    assert placed(house, word(Kind.RENAMED, "/x.csv", "/x.part")) is None
