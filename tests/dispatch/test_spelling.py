"""Clients name directories as they like; each file has one name for all that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.house import House
from watchman.config.settings import MoveSettings, ProftpdSettings, WatchSettings
from watchman.uploads.upload import Kind, Notification, Outcome, Source

#: How a client may name `ftp/alice/sub/x.csv`, below the directory of the test.
SPELLINGS = {
    "plain": "ftp/alice/sub/x.csv",
    "double slashes": "ftp//alice///sub//x.csv",
    "dots": "ftp/./alice/./sub/./x.csv",
    "dot-dot": "ftp/alice/sub/inner/../x.csv",
    "out and in": "ftp/alice/../../ftp/alice/sub/x.csv",
    "a symlink below": "ftp/alice/link/x.csv",
    "dot-dot over a symlink": "ftp/alice/deep/../x.csv",
    "a home that is a symlink": "home/alice/sub/x.csv",
    "the real directory": "disk/ftp/alice/sub/x.csv",
}

Yard = House


@pytest.fixture(params=["hook", "log"])
def yard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Yard]:
    """A watch whose root is a symlink, and one nested in it."""
    (tmp_path / "disk/ftp/alice/sub/inner").mkdir(parents=True)
    (tmp_path / "disk/ftp/bob").mkdir()
    (tmp_path / "ftp").symlink_to("disk/ftp")
    (tmp_path / "ftp/alice/link").symlink_to("sub")
    (tmp_path / "ftp/alice/deep").symlink_to("sub/inner")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/alice").symlink_to(tmp_path / "disk/ftp/alice")
    logs = ("/var/log/uploads.log",) if request.param == "log" else ()
    yard = Yard(
        tmp_path,
        watches=(
            WatchSettings("ftp", str(tmp_path / "ftp"), proftpd=True, unconfirmed="hold"),
            WatchSettings("bob", str(tmp_path / "ftp/bob"), proftpd=True, unconfirmed="hold"),
        ),
        proftpd=ProftpdSettings(logs, "secret"),
    )
    yard.open()
    yard.catch_up()
    yield yard
    yard.close()


def say(yard: Yard, kind: Kind, path: Path | str, **more: str) -> Outcome:
    source = Source.LOG if yard.proftpd.transfer_log else Source.HOOK
    # As text: Path would take `//` and `.` away.
    return yard.hear(Notification(kind, str(path), source, user="alice", **more)).outcome


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_good_upload_has_its_user_and_one_path(yard: Yard, spelling: str) -> None:
    path = yard.write("alice/sub/x.csv")
    yard.say(path)
    assert say(yard, Kind.COMPLETED, f"{yard.tmp_path}/{SPELLINGS[spelling]}") is Outcome.OK
    (upload,) = yard.take()
    assert (upload.path, upload.user) == (str(path), "alice")
    assert say(yard, Kind.COMPLETED, path) is Outcome.DUPLICATE


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_failed_one_is_listed_under_that_path(yard: Yard, spelling: str) -> None:
    path = yard.write("alice/sub/x.csv")
    yard.say(path)
    say(yard, Kind.FAILED, f"{yard.tmp_path}/{SPELLINGS[spelling]}", reason="426 failed")
    rows = eventually(yard.rows)
    assert [(row["path"], row["reason"]) for row in rows] == [(str(path), "426 failed")]
    assert yard.take() == []


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_rename_is_of_that_path(yard: Yard, spelling: str) -> None:
    path = yard.write("alice/sub/x.csv")
    assert say(yard, Kind.COMPLETED, path) is Outcome.OK
    new = path.rename(path.with_name("y.csv"))
    spelled = f"{yard.tmp_path}/{SPELLINGS[spelling]}"
    renamed = spelled.replace("x.csv", "y.csv")
    assert say(yard, Kind.RENAMED, renamed, old_path=spelled) is Outcome.DUPLICATE
    (upload,) = yard.take(patience=2) or yard.take(patience=2)
    assert upload.path == str(new)


def test_a_watch_that_is_reached_through_another_one_owns_its_files(yard: Yard) -> None:
    path = yard.write("bob/a.csv")
    assert say(yard, Kind.COMPLETED, f"{yard.tmp_path}/home/alice/../bob/a.csv") is Outcome.OK
    (upload,) = yard.take()
    assert (upload.watch, upload.path) == ("bob", str(path))


def test_a_directory_that_is_gone_is_named_as_far_as_it_was_there(yard: Yard) -> None:
    gone = f"{yard.tmp_path}/home/alice/gone/../gone/x.csv"
    assert say(yard, Kind.COMPLETED, gone) is Outcome.IGNORED
    path = yard.write("alice/gone/x.csv")
    assert say(yard, Kind.COMPLETED, gone) is Outcome.OK
    assert [upload.path for upload in yard.take()] == [str(path)]


def test_the_last_component_is_never_followed_nor_may_it_lead_out(yard: Yard) -> None:
    outside = yard.tmp_path / "outside.csv"
    outside.write_text("not ours")
    (yard.tmp_path / "ftp/alice/x.csv").symlink_to(outside)
    (yard.tmp_path / "ftp/alice/out").symlink_to(yard.tmp_path)
    for path in ("ftp/alice/x.csv", "ftp/alice/out/outside.csv", "ftp/alice/../../outside.csv"):
        assert say(yard, Kind.COMPLETED, f"{yard.tmp_path}/{path}") is Outcome.IGNORED
    for path in ("ftp/alice/..", "ftp/alice/.", "ftp/alice/", "ftp/..", "ftp", "/", "//"):
        assert say(yard, Kind.COMPLETED, f"{yard.tmp_path}/{path}") is Outcome.IGNORED
    assert yard.take() == []


def test_what_was_moved_is_found_by_any_name(tmp_path: Path) -> None:
    """Resubmitted as an operator may name it."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "archive").symlink_to("disk")
    move = MoveSettings("m", str(tmp_path / "ftp"), str(tmp_path / "archive"))
    yard = Yard(tmp_path, moves={"m": move})
    yard.open()
    try:
        (tmp_path / "disk/a.csv").write_text("1")
        for name in ("archive/a.csv", "disk/a.csv", "disk/../archive/a.csv"):
            notification = Notification(Kind.COMPLETED, f"{tmp_path}/{name}", Source.RESUBMIT)
            assert yard.hear(notification).outcome is Outcome.OK
        paths = {(upload.path, upload.original) for upload in yard.take()}
        assert paths == {(str(tmp_path / "archive/a.csv"), str(tmp_path / "ftp/a.csv"))}
    finally:
        yard.close()
