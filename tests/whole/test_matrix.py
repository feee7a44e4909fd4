"""Every way in which a transfer ends, with hooks, with the transfer log, and with both.

What is expected is in the table: how many tasks of which size, in each mode, for each file.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import subprocess
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.servers.proftpd import GID, UID, USER, public_directory
from tests.support import endings as by
from tests.support.deadline import eventually
from tests.support.endings import HALF, LINES, ODD, PERCENT, STALLED
from tests.support.needs import need
from tests.support.scene import CONFIRM, INI, MODES, Scene, scene

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

#: Each mode as it is, and with a DefaultRoot that locks some users into their home.
COLUMNS = (*MODES, *(f"{mode}, mixed" for mode in MODES))

#: Columns played at the same time, and what is done in each of them: it is mostly waiting.
PLAYED_TOGETHER, DONE_TOGETHER = 2, 10

#: Users, where they are at home, and where the INI file says that is. `link` and `way` are symlinks
#: to `home` and `real`.
HOMES = {
    USER: ("home", "home"),
    "linda": ("link", "home"),
    "lars": ("real", "way"),
    "lena": ("way", "way"),
}

#: Whom DefaultRoot locks in, while the hooks of the others are heard.
LOCKED = (USER, "lars")

WATCHES = f"""
[watch:strict]
path = {{tmp}}/home/strict
proftpd = yes
confirm = {CONFIRM}
unconfirmed = hold
[watch:settled]
path = {{tmp}}/home/settled
proftpd = yes
confirm = {CONFIRM}
settle = 3s
[watch:way]
path = {{tmp}}/way
proftpd = yes
confirm = {CONFIRM}
[task:stou]
pattern = */ftp??????
broker = b
task = tests.record
"""

DIRECTORIES = f"""\
<Directory {{home}}/hidden*>
  HiddenStores on
</Directory>
<Directory {{home}}/toolarge>
  MaxStoreFileSize 10 B
</Directory>
TimeoutStalled {STALLED}
"""


# The table.


@dataclass(frozen=True)
class Result:
    """The sizes of each file's tasks, in order, and which files are listed as failed.

    The size None is that of the file as it lies there in the end.
    """

    tasks: dict[str, tuple[int | None, ...]]
    failed: frozenset[str] = frozenset()


def gives(*failed: str, **tasks: int | tuple[int | None, ...] | None) -> Result:
    """`a` is the file a.csv."""
    sizes = {n: size if isinstance(size, tuple) else (size,) for n, size in tasks.items()}
    return Result(
        {f"{name}.csv": size for name, size in sizes.items()},
        frozenset(f"{name}.csv" for name in failed),
    )


@dataclass(frozen=True)
class Row:
    """What is done, and what comes of it for who hears: hooks; the log; both; nobody.

    For who is locked in hooks cannot run: the log is alone, or there is nobody. `both` is also for
    the log and hooks for sessions alone. `either` is what may come instead.
    """

    do: Callable[[Scene], Generator[None] | None]
    hooks: Result
    log: Result
    both: Result
    nobody: Result
    either: Result | None = None
    #: What may come instead with hooks alone, of which mod_exec names the wrong files; and where
    #: nobody tells, should a client be slow.
    muddled: Result | None = None
    slow: Result | None = None
    user: str = USER
    winding: bool = False
    #: What comes of it where PathDenyFilter is: among the hooks, whether they can run or not.
    denied: Row | None = None

    def expected(self, column: str) -> Result:
        mode = column.partition(", ")[0]
        if self.denied is not None and mode != "log":
            return self.denied.expected(column)
        if self.is_locked(column):
            return self.nobody if mode == "hooks" else self.log
        return {"hooks": self.hooks, "log": self.log}.get(mode, self.both)

    def results(self, column: str) -> list[Result]:
        """All that is right."""
        other = None
        if column.startswith("hooks"):
            other = self.slow if self.is_locked(column) else self.muddled
        results = (self.expected(column), self.either, other)
        return [result for result in results if result is not None]

    def is_locked(self, column: str) -> bool:
        return column.endswith(", mixed") and self.user in LOCKED

    def is_interrupted(self) -> bool:
        return inspect.isgeneratorfunction(self.do)


Do = Callable[[Scene], Generator[None] | None]


def always(do: Do, result: Result, either: Result | None = None) -> Row:
    """Whoever hears."""
    return Row(do, result, result, result, result, either=either)


def known(do: Do, result: Result, nobody: Result) -> Row:
    """ProFTPD says it in the log and by hooks."""
    return Row(do, result, result, result, nobody)


def seen(do: Do, result: Result, unconfirmed: Result) -> Row:
    """ProFTPD logs nothing, and only hooks for sessions tell: else `unconfirmed` decides."""
    return Row(do, result, unconfirmed, result, unconfirmed)


#: How names are called here that nobody can foresee.
STOU, FORGED = "STOU", "FORGED"

NOTHING = gives()
ONE = gives(a=5)
FAILED = gives("a")
#: What is half sent, as nobody knows better.
SENT = gives(a=None)

ROWS: dict[str, Row] = {
    # Good ones.
    "stor": always(by.stor, ONE),
    "empty": always(by.empty, gives(a=0)),
    "ascii": always(by.ascii_mode, gives(a=4)),
    "overwrite": always(by.overwrite, gives(a=(1, 2))),
    # One upload of what the file then holds, unless the first was looked at before.
    "overwriteatonce": always(by.overwrite_same_size_at_once, gives(a=(5, 5)), either=gives(a=5)),
    "overwritelater": always(by.overwrite_same_size_later, gives(a=(5, 5))),
    "append": always(by.append, gives(a=(5, 10))),
    "resume": always(by.resume, gives(a=(5, 10))),
    "resumefailed": known(by.resume_what_failed, gives(a=2 * HALF), gives(a=(HALF, 2 * HALF))),
    "stou": always(by.stou, Result({STOU: (5,)})),
    "deleted": always(by.delete_and_store_again, gives(a=(5, 5))),
    "slow": always(by.slow, gives(a=2 * HALF)),
    # Bad ones.
    "reset": known(by.reset_data, FAILED, SENT),
    "resetappend": known(by.reset_append, FAILED, SENT),
    # Another transfer of the same name goes on when it ends, and is cut off.
    "overtaken": known(by.overtaken, FAILED, SENT),
    "resetover": known(by.reset_over_good_file, gives("a", a=5), gives(a=(5, HALF))),
    "stoureset": known(by.stou_reset, Result({}, frozenset({STOU})), Result({STOU: (None,)})),
    "abort": known(by.abort, FAILED, SENT),
    "controlclosed": known(by.control_closed, FAILED, SENT),
    "controlreset": known(by.control_reset, FAILED, SENT),
    "stall": known(by.stall, FAILED, SENT),
    "toolarge": known(by.too_much, FAILED, SENT),
    "diskfull": known(by.too_much, FAILED, SENT),
    "denied": always(by.denied, ONE),
    "nopermission": always(by.no_permission, NOTHING),
    "nodirectory": always(by.no_directory, NOTHING),
    "killed": seen(by.killed, FAILED, SENT),
    # No hook was told of its name.
    "stoukilled": always(by.stou_killed, Result({STOU: (None,)})),
    # Nobody can know: ProFTPD answers 226.
    "vanish": always(by.vanish, gives(a=HALF)),
    # What comes after an upload.
    "renameexcluded": always(by.rename_excluded, ONE),
    "renameunmatched": always(by.rename_unmatched, ONE),
    "renamematched": always(by.rename_matched, ONE),
    "renameatonce": always(by.rename_matched_at_once, gives(b=5), either=ONE),
    "renameover": always(by.rename_over, gives(a=(1, 2))),
    "mfmt": always(by.mfmt_at_once, ONE),
    "mfmtlate": always(by.mfmt_late, ONE),
    "sitecopy": always(by.site_copy, gives(a=5, b=5)),
    "dele": always(by.dele, NOTHING),
    # HiddenStores: what is written has another name until it is whole.
    "hidden": always(by.stor, ONE),
    "hiddenoverwrite": always(by.overwrite, gives(a=(1, 2))),
    "hiddenreset": always(by.reset_data, NOTHING),
    "hiddenkilled": always(by.hidden_killed, NOTHING),
    "hiddenvanish": always(by.vanish, gives(a=HALF)),
    "hiddenappend": always(by.append, gives(a=(5, 10))),
    "hiddenresetappend": known(by.reset_append, FAILED, SENT),
    "hiddenstou": always(by.stou, Result({STOU: (5,)})),
    "hiddensftp": always(by.sftp_put, ONE),
    # FTPS. ProFTPD sees a reset where the client left bytes unread, else a clean end.
    "ftps": always(by.ftps, ONE),
    "ftpskilled": replace(known(by.ftps_killed, FAILED, SENT), either=SENT),
    # SFTP and scp.
    "sftp": always(by.sftp_put, ONE),
    "sftptimes": Row(
        by.sftp_put_twice_with_times,
        hooks=gives(a=(5, 5)),
        log=gives(a=(5, 5)),
        both=gives(a=(5, 5)),
        # So soon, and with the same size and times: a chmod looks like that, too.
        nobody=ONE,
        slow=gives(a=(5, 5)),
    ),
    "sftptimeslater": always(by.sftp_put_again_later_with_times, gives(a=(5, 5))),
    "sftpkilled": known(by.sftp_killed, FAILED, SENT),
    # Nobody can know: the client says that it is done.
    "sftpinterrupted": always(by.sftp_interrupted, SENT),
    "sftpreset": known(by.sftp_reset, FAILED, SENT),
    "sftpleftopen": known(by.sftp_left_open, FAILED, SENT),
    "sftpsessionkilled": seen(by.sftp_session_killed, FAILED, SENT),
    "sftpdenied": always(by.sftp_denied, ONE),
    "sftprenameexcluded": always(by.sftp_rename_excluded, ONE),
    "sftprenameunmatched": always(by.sftp_rename_unmatched, ONE),
    "sftprenamematched": always(by.sftp_rename_matched, ONE),
    "sftprenameover": always(by.sftp_rename_over, gives(a=(5, 2))),
    "interleaved": always(by.interleaved, gives(a=3 * HALF, b=2 * HALF)),
    "interleavedreset": replace(
        known(by.interleaved_reset, gives("a", "b", c=HALF), gives(a=HALF, b=HALF, c=HALF)),
        muddled=gives("a", b=HALF, c=HALF),
    ),
    # mod_exec calls b a when it begins, so nobody knows that it has.
    "interleavedkilled": seen(by.interleaved_killed, gives("a", b=HALF), gives(a=HALF, b=HALF)),
    "readwhilewritten": always(by.read_while_written, gives(a=HALF)),
    "scp": always(by.scp, ONE),
    "legacyscp": always(by.legacy_scp, ONE),
    "scpkilled": known(by.scp_killed, FAILED, SENT),
    "legacyscpkilled": seen(by.legacy_scp_killed, FAILED, SENT),
    # Names.
    "odd": always(
        by.odd_names, Result({os.fsdecode(name.encode("latin-1")): (5,) for name in ODD})
    ),
    "percent": replace(
        always(by.percent_names, Result(dict.fromkeys(PERCENT, (5,)))),
        denied=always(by.percent_names, NOTHING),
    ),
    "newlines": replace(
        always(by.names_with_newlines, Result(dict.fromkeys(LINES, (5,)))),
        denied=always(by.names_with_newlines, NOTHING),
    ),
    "forged": replace(
        always(by.forged, Result({FORGED: (5,)}, frozenset({"a.csv"}))),
        denied=known(by.forged, FAILED, SENT),
    ),
    # A watch with `unconfirmed = hold`.
    "strict/stor": known(by.stor, ONE, FAILED),
    "strict/overwrite": replace(
        known(by.overwrite_same_size_at_once, gives(a=(5, 5)), FAILED), either=ONE
    ),
    "strict/renameexcluded": known(by.rename_excluded, ONE, FAILED),
    "strict/reset": known(by.reset_data, FAILED, FAILED),
    "strict/killed": always(by.killed, FAILED),
    "strict/stoukilled": always(by.stou_killed, Result({}, frozenset({STOU}))),
    "strict/vanish": known(by.vanish, gives(a=HALF), FAILED),
    "strict/sftp": known(by.sftp_put, ONE, FAILED),
    "strict/interleavedkilled": always(by.interleaved_killed, gives("a", "b")),
    # A watch with `settle`.
    "settled/overwrite": always(by.overwrite_same_size_at_once, ONE),
    "settled/mfmt": always(by.mfmt_at_once, ONE),
    "settled/rename": always(by.rename_matched_at_once, gives(b=5)),
    "settled/reset": known(by.reset_data, FAILED, SENT),
    "settled/killed": seen(by.killed, FAILED, SENT),
    "settled/dele": always(by.dele, NOTHING),
    # The daemon is killed in the midst of it.
    "killedwhiledown": Row(by.killed_while_down, hooks=SENT, log=SENT, both=FAILED, nobody=SENT),
    "resetwhiledown": Row(by.reset_while_down, hooks=SENT, log=FAILED, both=FAILED, nobody=SENT),
    "completedwhiledown": always(by.completed_while_down, gives(a=2 * HALF)),
    "killedafterwards": seen(by.killed_afterwards, FAILED, SENT),
    "completedafterwards": always(by.completed_afterwards, gives(a=2 * HALF)),
    "begunwhiledown": known(by.begun_while_down, gives("a", b=5), gives(a=HALF, b=5)),
}

ROWS |= {
    f"{user}{name}": replace(ROWS[name], user=user)
    for user in HOMES
    if user != USER
    for name in ("stor", "reset", "killed", "renameexcluded", "renamematched", "sftp")
}

ROWS |= {
    f"winding{name}": replace(ROWS[name], winding=True)
    for name in ("stor", "append", "reset", "resetover", "killed", "renameexcluded", "renameover")
}


# The play.

#: When it is looked at what has come of it: when all has settled, and each time after that the
#: daemon has started again or walked the tree.
SETTLED, RESTARTED, KILLED, RESCANNED = "settled", "restarted", "killed", "rescanned"


@dataclass(frozen=True)
class Found:
    """What has come of a row: the id and size of each file's tasks, why files are failed, the size
    of those that have tasks and are still there, and whom the tasks name.
    """

    tasks: dict[str, list[tuple[str, int]]]
    failed: dict[str, str]
    sizes: dict[str, int]
    users: frozenset[tuple[str, ...]]

    def is_as(self, result: Result) -> bool:
        tasks = {name: tuple(size for _, size in tasks) for name, tasks in self.tasks.items()}
        expected = {
            name: tuple(self.sizes.get(name) if size is None else size for size in sizes)
            for name, sizes in result.tasks.items()
        }
        return tasks == expected and self.failed.keys() == result.failed


@dataclass
class Play:
    """What has come of all rows in one column, by moment and row; and which could not be done."""

    found: dict[str, dict[str, Found]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    log: str = ""

    def story(self, name: str) -> str:
        """What the daemon's log says of a row's files."""
        return "\n".join(line for line in self.log.splitlines() if f"/{name}/" in line)


class Stage:
    """A server and a daemon on which rows are played, many at a time."""

    def __init__(self, scene: Scene, names: Iterable[str]) -> None:
        self.scene = scene
        self.play = Play()
        self._places = {name: place(scene, name) for name in names}
        self._begun: dict[str, Generator[None]] = {}
        self._fences = 0

    def act(self) -> None:
        """Do all that is not interrupted."""
        self._together(self._do, [name for name in self._places if not ROWS[name].is_interrupted()])

    def go_on(self) -> None:
        """Do what is interrupted, up to its next interruption."""
        self._together(self._go_on, [name for name in self._places if ROWS[name].is_interrupted()])

    def _do(self, name: str) -> None:
        ROWS[name].do(self._places[name])

    def _go_on(self, name: str) -> None:
        if name not in self._begun:
            begun = ROWS[name].do(self._places[name])
            assert begun is not None
            self._begun[name] = begun
        next(self._begun[name], None)

    def _together(self, do: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(DONE_TOGETHER) as pool:
            doing = {name: pool.submit(do, name) for name in names}
        for name, done in doing.items():
            if (error := done.exception()) is not None:
                assert isinstance(error, Exception)
                self.play.errors.setdefault(name, error)

    def settle(self, moment: str) -> None:
        """Wait until all sources have told all that they know, and keep what has come of it.

        Each tells of things in the order in which they happened, the last of which are two files
        of ours.
        """
        self._fences += 1
        fence = replace(self.scene, name="fence")
        ours = f"{self._fences}.csv", f"local{self._fences}.csv"
        fence.store(ours[0])
        (fence.directory / ours[1]).write_text("12345")
        eventually(lambda: fence.sent().keys() >= set(ours), timeout=30)
        fence.decided()
        self.play.found[moment] = {name: found(place) for name, place in self._places.items()}

    @contextlib.contextmanager
    def scanned(self) -> Iterator[None]:
        """In the end, wait until a scan of each watch is complete that began after this did."""
        began = time.time()
        yield
        eventually(
            lambda: all(
                (watch["last_scan"] or 0) > began and not watch["scanning"]
                for watch in self.scene.daemon.status()["watches"].values()
            ),
            timeout=30,
        )


def place(scene: Scene, name: str) -> Scene:
    """The scene in a directory of the row's name."""
    user, winding = ROWS[name].user, ROWS[name].winding
    return replace(scene, name=name, user=user, root=HOMES[user][1], winding=winding)


def found(s: Scene) -> Found:
    tasks: dict[str, list[tuple[str, int]]] = {}
    sizes = {}
    for task in s.tasks():
        path = Path(task["args"][0])
        name = foreseen(os.path.relpath(path, s.directory))
        tasks.setdefault(name, []).append((task["id"], task["watchman"]["size"]))
        with contextlib.suppress(FileNotFoundError):
            sizes[name] = path.stat().st_size
    failed = {foreseen(name): reason for name, reason in s.failed().items()}
    users = {tuple(task["watchman"].get(k, "") for k in ("user", "client")) for task in s.tasks()}
    return Found(tasks, failed, sizes, frozenset(users))


def foreseen(name: str) -> str:
    if "\na-guess|" in name:
        return FORGED
    return STOU if re.fullmatch(r"ftp\w{6}", name) else name


def play(column: str, names: Iterable[str]) -> Play:
    mode, _, mixed = column.partition(", ")
    with contextlib.ExitStack() as stack:
        tmp = stack.enter_context(public_directory())
        furnish(tmp, stack)
        options = {"chroot": bool(mixed), "locked": LOCKED, "tls": True, "sftp": True}
        users = {user: tmp / home for user, (home, _) in HOMES.items() if user != USER}
        directives = DIRECTORIES.format(home=tmp / "home")
        s = stack.enter_context(
            scene(mode, tmp, ini=INI + WATCHES, users=users, directives=directives, **options)
        )
        stage = Stage(s, names)
        try:
            perform(stage)
        finally:
            stage.play.log = s.daemon.log
        return stage.play


def furnish(tmp: Path, stack: contextlib.ExitStack) -> None:
    """Make homes, and a directory for each row; one of them on a disk of its own that is small."""
    (tmp / "home").mkdir()
    (tmp / "real").mkdir()
    (tmp / "link").symlink_to("home")
    (tmp / "way").symlink_to("real")
    rows = [tmp / HOMES[row.user][1] / name for name, row in ROWS.items()]
    for directory in (*rows, tmp / "home" / "fence"):
        directory.mkdir(parents=True)
        os.chown(directory, UID, GID)
    disk = tmp / "home" / "diskfull"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "full", disk], check=True)
    stack.callback(subprocess.run, ["umount", "-l", disk], check=True)


def perform(stage: Stage) -> None:
    daemon = stage.scene.daemon
    stage.act()
    stage.settle(SETTLED)
    with stage.scanned():
        daemon.restart()
    stage.settle(RESTARTED)
    stage.go_on()
    daemon.kill()
    stage.go_on()
    with stage.scanned():
        daemon.start()
    stage.go_on()
    stage.settle(KILLED)
    with stage.scanned():
        # Another INI file, for else there is nothing to do.
        daemon.ini.write_text(daemon.ini.read_text().replace("settle = 3s", "settle = 4s"))
        assert daemon.run("reload").returncode == 0
    stage.settle(RESCANNED)


@pytest.fixture(scope="module")
def plays(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Play]]]:
    """What has come of all rows, by column. Only what is asked for is played."""
    need("proftpd", "lftp", "curl", "sftp", "scp")
    names: dict[str, list[str]] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and "plays" in item.fixturenames:
            column, name = (item.callspec.params.get(key) for key in ("column", "name"))
            names.setdefault(column, []).extend([name] if name else [])
    with ThreadPoolExecutor(PLAYED_TOGETHER) as pool:
        yield {column: pool.submit(play, column, rows) for column, rows in names.items()}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("column", COLUMNS)
def test_one_task_for_each_finished_upload(
    plays: dict[str, Future[Play]], column: str, name: str
) -> None:
    play, row = plays[column].result(), ROWS[name]
    if name in play.errors:
        raise play.errors[name]
    moments = [KILLED, RESCANNED]
    if not row.is_interrupted():
        moments = [SETTLED, RESTARTED, *moments]
    first = play.found[moments[0]][name]
    results = row.results(column)
    assert any(first.is_as(result) for result in results), f"{results}\n{play.story(name)}"
    for moment in moments[1:]:
        assert play.found[moment][name] == first, f"{moment}\n{play.story(name)}"


@pytest.mark.parametrize(
    "name", [name for name in ROWS if name.endswith("stor") and "/" not in name]
)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_good_upload_has_its_user_and_client(
    plays: dict[str, Future[Play]], column: str, name: str
) -> None:
    row, found = ROWS[name], plays[column].result().found[KILLED][name]
    unheard = column.startswith("hooks") and row.is_locked(column)
    assert found.users == {("", "") if unheard else (row.user, "127.0.0.1")}


@pytest.mark.parametrize("column", COLUMNS)
def test_nothing_went_wrong_meanwhile(plays: dict[str, Future[Play]], column: str) -> None:
    assert "Traceback" not in plays[column].result().log


def test_a_session_that_is_killed_while_the_daemon_is_frozen_has_failed() -> None:
    """Its hook has given up and gone before anybody looked whose it was."""
    with public_directory() as tmp, scene("advised", tmp) as s:
        os.chown(s.directory, UID, GID)
        s.daemon.freeze()
        by.killed(s)
        s.daemon.thaw()
        eventually(lambda: s.failed() or s.sent(), timeout=30)
        assert (list(s.failed()), s.sent()) == (["a.csv"], {})
