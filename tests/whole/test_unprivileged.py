"""The daemon as an unprivileged user: what it does, and what `check` says that it may not."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from tests.support.filesystems import mounted, unprivileged
from tests.support.needs import need

pytestmark = pytest.mark.root

#: Who uploads; the daemon is nobody's.
ALICE, BOB = 12_345, 12_346

INI = """\
[watchman]
spool = {tmp}/own/spool
socket = {tmp}/own/socket
[broker:b]
url = filesystem://{tmp}/own/broker
[watch:plain]
path = {tmp}/plain
[watch:hooked]
path = {tmp}/hooked
proftpd = yes
confirm = 1h
[watch:moved]
path = {tmp}/moved
[move:m]
source = {tmp}/moved
destination = {tmp}/to
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""


def make(path: Path, mode: int, owner: int = 0, group: int = 0) -> Path:
    """A directory, or a file if its name has a suffix."""
    path.write_text("1,2,3") if path.suffix else path.mkdir(parents=True)
    os.chown(path, owner, group)
    path.chmod(mode)
    return path


@pytest.fixture
def yard(public_path: Path) -> Path:
    """Three watches of root's with a directory of Alice's in each, open to the daemon's group."""
    for name in ("plain", "hooked", "moved"):
        make(public_path / name, 0o755)
        make(public_path / name / "alice", 0o2770, ALICE, 65534)
    make(public_path / "to", 0o755, 65534)
    make(public_path / "own", 0o755)
    return public_path


@pytest.fixture
def daemon(yard: Path, start_watchman: Callable[..., Daemon]) -> Daemon:
    return start_watchman(INI, directory=yard, prefix=unprivileged(yard / "own"))


def upload(yard: Path, name: str) -> Path:
    return make(yard / name, 0o640, ALICE, 65534)


def paths(yard: Path) -> list[str]:
    return [task["args"][0] for task in published(yard / "own/broker")]


def test_it_sends_what_it_sees_and_what_came_while_it_was_down(yard: Path, daemon: Daemon) -> None:
    seen = upload(yard, "plain/alice/a.csv")
    eventually(lambda: paths(yard) == [str(seen)])
    make(yard / "plain/alice/new", 0o2770, ALICE, 65534)
    deep = upload(yard, "plain/alice/new/b.csv")
    eventually(lambda: paths(yard) == [str(seen), str(deep)])
    eventually(lambda: not daemon.queue())
    daemon.kill()
    missed = upload(yard, "plain/alice/c.csv")
    daemon.start()
    eventually(lambda: paths(yard) == [str(seen), str(deep), str(missed)])


def test_it_hears_the_hooks_of_its_users(yard: Path, daemon: Daemon) -> None:
    hook = shutil.copy(ROOT / "proftpd/watchman-hook", yard / "hook")
    file = upload(yard, "hooked/alice/a.csv")
    others = make(yard / "hooked/alice/bobs.csv", 0o640, BOB, 65534)
    for path in (others, file):
        subprocess.run(
            [
                *("/usr/bin/python3", "-IS", hook, "--socket", str(yard / "own/socket")),
                *("completed", "user=alice", "client=192.0.2.7", f"path={path}"),
            ],
            user=ALICE,
            group=ALICE,
            extra_groups=[],
            check=True,
            timeout=10,
        )
    [task] = eventually(lambda: published(yard / "own/broker"))
    assert task["args"] == [str(file)]
    assert (task["watchman"]["source"], task["watchman"]["user"]) == ("hook", "alice")


def test_it_moves_files_of_others_and_sends_one_again_by_hand(yard: Path, daemon: Daemon) -> None:
    source = upload(yard, "moved/alice/a.csv")
    inode = source.stat().st_ino
    [path] = eventually(lambda: paths(yard))
    assert path == f"{yard}/to/alice/a.csv"
    moved = Path(path).stat()
    assert (moved.st_ino, moved.st_uid) == (inode, ALICE)
    assert daemon.status()["healthy"]
    sent = subprocess.run(
        [*daemon.prefix, *daemon.watchman("status")],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (sent.returncode, sent.stdout.split()[0]) == (0, "healthy")
    assert daemon.send(path).returncode == 0
    eventually(lambda: paths(yard) == [path, path])


def errors(daemon: Daemon) -> list[str]:
    """The errors of `check` as the daemon's user."""
    done = subprocess.run(
        [*daemon.prefix, *daemon.watchman("check")],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    found = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
    assert done.returncode == bool(found)
    return found


#: Directories below [move:m]'s source, and what is said of each.
CLOSED = {
    "users": (0o755, ALICE, ALICE, "lacks w on"),
    "private": (0o700, ALICE, ALICE, "lacks rwx on"),
    "grouped": (0o750, ALICE, 65534, "lacks w on"),
    "shared": (0o775, ALICE, 100, "setfacl"),
    "dropbox": (0o1777, 0, 0, "is sticky"),
    "ours": (0o500, 65534, 65534, "chmod u+w"),
    # An entry for us, and a mask that takes from it.
    "masked": (0o755, ALICE, ALICE, "lacks w on"),
}


def test_check_names_each_right_that_is_missing_and_its_commands_grant_them(
    yard: Path, start_watchman: Callable[..., Daemon]
) -> None:
    need("setfacl")
    for name, (mode, owner, group, _) in CLOSED.items():
        make(yard / "moved" / name, 0o755)
        make(yard / "moved" / name / "a.csv", 0o600, ALICE, ALICE)
        os.chown(yard / "moved" / name, owner, group)
        (yard / "moved" / name).chmod(mode)
    mask = ["setfacl", "-m", "u:nobody:rwx,m::rx", str(yard / "moved/masked")]
    subprocess.run(mask, check=True, timeout=10)
    # Nobody but root puts anything there, and so it is with the root of the watch.
    make(yard / "moved/roots", 0o755)
    os.chown(yard / "to", 0, 0)
    make(yard / "to/users", 0o755)
    prefix = unprivileged(yard / "own")
    daemon = start_watchman(INI, directory=yard, prefix=prefix, started=False)
    found = errors(daemon)
    for name, (*_, text) in CLOSED.items():
        [line] = [line for line in found if f"/moved/{name}'" in line] or [""]
        assert text in line, found
    assert not [line for line in found if "/roots'" in line or "/moved'" in line]
    assert [line for line in found if f"lacks w on '{yard}/to'" in line]
    assert [line for line in found if f"lacks w on '{yard}/to/users'" in line]
    for line in found:
        subprocess.run(["sh", "-ec", line.split("; ", 1)[1]], check=True, timeout=10)
    assert not errors(daemon)
    daemon.start()
    for name in CLOSED:
        upload(yard, f"moved/{name}/b.csv")
    eventually(lambda: sorted(paths(yard)) == [f"{yard}/to/{n}/b.csv" for n in sorted(CLOSED)])


def test_check_names_the_directory_above_that_bars_the_way(
    yard: Path, start_watchman: Callable[..., Daemon]
) -> None:
    make(yard / "closed", 0o700)
    make(yard / "closed/to", 0o777)
    ini = INI.replace("{tmp}/to", "{tmp}/closed/to")
    prefix = unprivileged(yard / "own")
    daemon = start_watchman(ini, directory=yard, prefix=prefix, started=False)
    [line] = errors(daemon)
    assert f"nobody lacks x on '{yard}/closed'; " in line


def test_check_says_what_only_root_may_set(
    yard: Path, start_watchman: Callable[..., Daemon]
) -> None:
    ini = INI.replace("[task:csv]", "owner = root\ngroup = games\nmode = 0600\n[task:csv]")
    prefix = unprivileged(yard / "own")
    daemon = start_watchman(ini, directory=yard, prefix=prefix, started=False)
    assert [line.split("move:m", 1)[1].strip() for line in errors(daemon)] == [
        "owner = root takes CAP_CHOWN: leave it out, or run as root",
        "nobody is not in its group; usermod -a -G games nobody",
        "mode of others' files takes CAP_FOWNER: leave it out, or run as root",
    ]


def test_a_reload_says_what_check_says_of_moves_that_are_forbidden(
    yard: Path, daemon: Daemon
) -> None:
    need("setfacl")
    assert daemon.run("reload").stdout == "nothing changed\n"
    make(yard / "moved/shared", 0o775, ALICE, 100)
    make(yard / "moved/private", 0o700, ALICE, ALICE)
    make(yard / "moved/dropbox", 0o1777)
    # Not the move's to take files from, or no place for uploads.
    make(yard / "moved/.hidden", 0o755, ALICE, ALICE)
    make(yard / "moved/roots", 0o755)
    make(yard / "plain/bobs", 0o755, BOB, BOB)
    told = daemon.run("reload").stdout.splitlines()
    assert told[0] == "nothing changed"
    said = [line.removeprefix("warning: [move:m] ") for line in told[1:]]
    assert said == [line.split("move:m", 1)[1].strip() for line in errors(daemon)]
    assert len(said) == 3
    for text in said:
        assert daemon.log.count(f": [move:m] {text}.") == 1
        subprocess.run(["sh", "-ec", text.split("; ", 1)[1]], check=True, timeout=10)
    assert daemon.run("reload").stdout == "nothing changed\n"
    (yard / "to").rmdir()
    warning = f"[move:m] '{yard}/to' is not there yet; the daemon waits for it, never makes it"
    [_, told] = daemon.run("reload").stdout.splitlines()
    assert told == f"warning: {warning}; install -d -o nobody {yard}/to"


def test_a_reload_says_which_files_cannot_be_copied_to_another_filesystem(
    yard: Path, daemon: Daemon
) -> None:
    make(yard / "moved/alice/closed.csv", 0o600, ALICE, ALICE)
    (yard / "to").rmdir()
    with mounted(yard / "to") as disk:
        os.chown(disk.path, 65534, 65534)
        [_, told] = daemon.run("reload").stdout.splitlines()
    assert f"files cannot be moved: nobody lacks r on '{yard}/moved/alice/closed.csv'; " in told


def test_check_warns_of_a_move_from_where_nobody_may_upload_yet(
    yard: Path, start_watchman: Callable[..., Daemon]
) -> None:
    (yard / "moved/alice").rmdir()
    (yard / "to").rmdir()
    prefix = unprivileged(yard / "own")
    daemon = start_watchman(INI, directory=yard, prefix=prefix, started=False)
    make(yard / "own/spool", 0o700, 65534)
    told = daemon.run("check").stdout
    assert f"'{yard}/to' is not there yet; the daemon waits for it, never makes it" in told
    [line] = [line for line in told.splitlines() if "not there yet" in line]
    assert line.endswith(f"; install -d -o nobody {yard}/to")
    subprocess.run(line.split("; ")[-1], shell=True, check=True)
    told = daemon.run("check").stdout
    assert f"no user can upload below {yard}/moved yet; nobody needs rwx on each directory" in told
    [line] = [line for line in told.splitlines() if "can upload" in line]
    make_one = line.partition("as by ")[2].replace("NAME", "games")
    assert make_one == f"install -d -o games -g nogroup -m 2770 {yard}/moved/games"
    subprocess.run(make_one, shell=True, check=True)
    told = daemon.run("check").stdout
    assert "can upload" not in told
    assert "0 errors" in told


def test_check_by_root_looks_as_the_daemons_user_and_finds_the_same(
    yard: Path, start_watchman: Callable[..., Daemon]
) -> None:
    make(yard / "own/spool", 0o700, 65534)
    make(yard / "moved/alice/a.csv", 0o600, ALICE, ALICE)
    make(yard / "moved/alices", 0o755, ALICE, ALICE)
    prefix = unprivileged(yard / "own")
    daemon = start_watchman(INI, directory=yard, prefix=prefix, started=False)
    [line] = errors(daemon)
    assert f"nobody lacks w on '{yard}/moved/alices'" in line
    by_root = daemon.run("check").stdout
    assert ", checked as nobody, without capabilities, because no daemon runs" in by_root
    assert [one for one in by_root.splitlines() if one.startswith("ERROR")] == [line]
    assert "leases tell who still writes nobody's own files" in by_root
    as_root = daemon.run("check", "--as", "root").stdout
    assert "the spool belongs to nobody, but this checks the rights of root" in as_root
    assert "leases tell who still writes, for every file" in as_root


def test_check_by_root_counts_the_capabilities_of_the_daemon_that_runs(
    yard: Path, start_watchman: Callable[..., Daemon]
) -> None:
    more = ["--inh-caps=-all,+lease", "--ambient-caps=-all,+lease"]
    prefix = [*unprivileged(yard / "own"), *more]
    daemon = start_watchman(INI, directory=yard, prefix=prefix)
    told = daemon.run("check", "--as", "nobody").stdout
    assert daemon.process is not None
    pid = daemon.process.pid
    assert f", checked as nobody, with the rights of the daemon, pid {pid}\n" in told
    assert "watch:plain     leases tell who still writes, for every file (CAP_LEASE)\n" in told
    # It is no right to write, though.
    assert not errors(daemon)
    (yard / "to").chmod(0o555)
    os.chown(yard / "to", 0, 0)
    assert f"nobody lacks w on '{yard}/to'" in daemon.run("check").stdout


def test_check_by_root_says_that_the_daemon_may_not_read_the_ini_file(
    yard: Path, start_watchman: Callable[..., Daemon]
) -> None:
    make(yard / "own/spool", 0o700, 65534)
    daemon = start_watchman(INI, directory=yard, started=False)
    daemon.ini.chmod(0o600)
    told = daemon.run("check").stdout
    assert f"nobody lacks r on '{daemon.ini}'; chgrp nogroup {daemon.ini} && chmod g+r" in told


def test_nobody_but_root_checks_as_another_user(
    yard: Path, start_watchman: Callable[..., Daemon]
) -> None:
    prefix = unprivileged(yard / "own")
    daemon = start_watchman(INI, directory=yard, prefix=prefix, started=False)
    for user, code, said in (
        ("root", 2, "watchman: --as: only root may check as another user\n"),
        ("none-such", 2, "watchman: --as: there is no user none-such\n"),
        ("nobody", 0, ""),
    ):
        done = subprocess.run(
            [*daemon.prefix, *daemon.watchman("check", "--as", user)],
            env=daemon.environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr) == (code, said)
