"""`status` tells of a source that should have spoken and did not, and of no other."""

import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.servers.proftpd import public_directory
from tests.support.deadline import eventually
from tests.support.house import House
from tests.support.scene import scene
from watchman.config.settings import ProftpdSettings, WatchSettings
from watchman.dispatch.crosscheck import NEVER, NO_MORE, UNSTARTED
from watchman.dispatch.judge import PROFTPD
from watchman.uploads.session import session_of
from watchman.uploads.upload import Kind, Notification, Source

LOG = "/var/log/proftpd/watchman/uploads.log"

FINE = {LOG: {"records": 9, "refused": 0, "missing": False}}


@dataclass
class Hearing(House):
    """A house that tells what `status` would warn of."""

    number: int = 0

    def __post_init__(self) -> None:
        ftp = str(self.tmp_path / "ftp")
        self.watches = (
            WatchSettings("ftp", ftp, proftpd=True, confirm=0.05),
            WatchSettings("other", str(self.tmp_path / "other"), confirm=0.05),
        )

    def with_log(self) -> None:
        """Have the log's word decide, as after a reload."""
        proftpd = ProftpdSettings((LOG,), "token")
        self.settings = replace(self.settings, proftpd=proftpd)
        self.dispatcher.change(self.settings, self.ledgers)

    def uploads(
        self, number: int, *sources: Source, started: bool = False, watch: str = "ftp"
    ) -> None:
        """Files that each source calls complete, accepted."""
        for _ in range(number):
            self.number += 1
            path = self.write(f"{self.number}.csv", watch=watch)
            if started:
                self.tell(Kind.STARTED, path)
            for source in sources:
                self.tell(Kind.COMPLETED, path, source)
            eventually(lambda: self.take(patience=0.1), timeout=5)

    def tell(self, kind: Kind, path: Path | str = "", source: Source = Source.HOOK) -> None:
        """What a source says, one of ProFTPD's as of a session that lives: ours."""
        answers: list[Any] = []
        session = session_of(os.getpid()) if source in PROFTPD else ""
        notification = Notification(kind, str(path), source, session=session)
        self.dispatcher.submit(notification, answers.append)
        eventually(lambda: answers)

    def warnings(self, logs: dict[str, Any] | None = None) -> list[str]:
        return list(self.dispatcher.crosscheck.warnings(self.settings, logs or FINE))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Hearing]:
    house = Hearing(tmp_path)
    house.open()
    yield house
    house.close()


def test_nothing_is_said_at_start_and_when_all_is_well(house: Hearing) -> None:
    assert house.warnings() == []
    house.uploads(NO_MORE, Source.INOTIFY, Source.HOOK, started=True)
    assert house.warnings() == []
    house.with_log()
    assert house.warnings() == []
    house.uploads(NO_MORE, Source.INOTIFY, Source.HOOK, Source.LOG, started=True)
    assert house.warnings() == []


def test_what_other_programs_write_is_no_silence_of_proftpds(house: Hearing) -> None:
    house.uploads(1, Source.HOOK)
    house.uploads(NO_MORE - 1, Source.INOTIFY)
    house.uploads(1, Source.HOOK)
    house.uploads(NO_MORE - 1, Source.INOTIFY)
    assert house.warnings() == []
    house.with_log()
    house.uploads(1, Source.HOOK, Source.LOG, started=True)
    house.uploads(NO_MORE - 1, Source.INOTIFY)
    assert house.warnings() == []


def test_what_a_scan_finds_came_while_nobody_listened(house: Hearing) -> None:
    house.uploads(NO_MORE, Source.SCAN)
    assert house.warnings() == []
    assert house.dispatcher.crosscheck.status("ftp")["unconfirmed"] == NO_MORE


def test_hooks_that_never_speak_are_missed(house: Hearing) -> None:
    house.uploads(NEVER - 1, Source.INOTIFY)
    assert house.warnings() == []
    house.uploads(1, Source.INOTIFY)
    (warning,) = house.warnings()
    assert warning.startswith(f"{NEVER} uploads in a row below watch ftp came without a hook:")
    assert "mod_exec" in warning
    assert "check --proftpd" in warning
    house.tell(Kind.ENDED)
    (warning,) = house.warnings()
    assert "hooks run before a login, so DefaultRoot locks users in" in warning
    assert warning.endswith("use the transfer log")
    house.uploads(1, Source.HOOK)
    assert house.warnings() == []


def test_hooks_that_fall_silent_are_missed_later(house: Hearing) -> None:
    house.uploads(1, Source.HOOK, started=True)
    house.uploads(NO_MORE, Source.INOTIFY)
    (warning,) = house.warnings()
    assert warning.endswith("use the transfer log, unless other programs wrote them")


def test_hooks_are_missed_too_where_what_they_do_not_confirm_fails(tmp_path: Path) -> None:
    house = Hearing(tmp_path)
    house.watches = (replace(house.watches[0], unconfirmed="hold"),)
    house.open()
    for number in range(NEVER):
        house.say(house.write(f"{number}.csv"))
    (warning,) = eventually(house.warnings)
    assert "came without a hook" in warning
    house.close()


@pytest.mark.parametrize(
    ("sources", "log", "why"),
    [
        ([Source.HOOK], {"refused": 0, "missing": False}, "ExtendedLog may be missing"),
        (
            [Source.INOTIFY],
            {"refused": 3, "missing": False},
            "3 lines are not as watchman.conf has them",
        ),
        (
            [Source.INOTIFY, Source.HOOK],
            {"refused": 0, "missing": True},
            f"there is no {LOG}, so ExtendedLog names another file",
        ),
    ],
)
def test_a_log_that_is_not_written_is_missed(
    house: Hearing, sources: list[Source], log: dict[str, Any], why: str
) -> None:
    house.with_log()
    house.uploads(NEVER, *sources)
    (warning,) = house.warnings({LOG: log})
    assert warning.startswith(f"{NEVER} uploads in a row below watch ftp came without the transfer")
    assert why in warning
    house.uploads(1, Source.LOG)
    assert house.warnings() == []


def test_hooks_that_the_log_does_not_bear_out_are_known_at_once(house: Hearing) -> None:
    house.with_log()
    house.uploads(1, Source.LOG)
    house.uploads(NEVER, Source.HOOK, started=True)
    (warning,) = house.warnings()
    assert warning.endswith("watchman check --proftpd FILE says which")


def test_sessions_without_hooks_are_told_of_where_the_log_shows_them(house: Hearing) -> None:
    house.with_log()
    house.uploads(1, Source.LOG, started=True)
    house.uploads(UNSTARTED - 1, Source.LOG)
    assert house.warnings() == [], "sessions may be older than the daemon"
    house.uploads(1, Source.LOG)
    (warning,) = house.warnings()
    assert warning.startswith(f"the transfer log has told of {UNSTARTED} uploads, and no hook")


def test_the_log_alone_is_enough(house: Hearing) -> None:
    house.with_log()
    house.uploads(NO_MORE, Source.INOTIFY, Source.LOG)
    assert house.warnings() == []
    house.tell(Kind.ENDED)
    (warning,) = house.warnings()
    assert "no hook said that they had started" in warning


@pytest.mark.parametrize("source", [Source.HOOK, Source.LOG])
def test_a_watch_that_proftpd_writes_to_should_say_so(house: Hearing, source: Source) -> None:
    house.uploads(NO_MORE, Source.INOTIFY, watch="other")
    assert house.warnings() == []
    house.uploads(1, source, watch="other")
    (warning,) = house.warnings()
    assert warning.startswith(f"ProFTPD writes below watch other (1 by {source})")
    assert warning.endswith("set proftpd = yes")


@pytest.mark.root
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["hooks", "log"])
def test_hooks_under_chroot_are_missed_and_a_log_is_not(mode: str) -> None:
    with public_directory() as tmp, scene(mode, tmp, chroot=True) as s:
        for number in range(NEVER):
            with s.ftp() as ftp:
                ftp.storbinary(f"STOR {number}.csv", io.BytesIO(b"1"))
        time.sleep(0.2)
        eventually(lambda: len(s.sent()) == NEVER, timeout=20)
        warnings = s.daemon.status()["warnings"]
        said = s.daemon.run("status").stdout
    if mode == "log":
        assert warnings == []
        assert f"ProFTPD told of 0 by hook, {NEVER} by log; 0 uploads unconfirmed" in said
    else:
        (warning,) = warnings
        assert "DefaultRoot may lock users in" in warning
        assert f"warning: {NEVER} uploads in a row below watch ftp came without a hook" in said
