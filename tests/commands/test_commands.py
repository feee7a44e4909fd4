"""The commands as an operator meets them: processes, their output, their exit codes."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from watchman.commands.check import rights, trees
from watchman.commands.shared import client
from watchman.config import inifile
from watchman.errors import SocketUnavailable, WatchmanError
from watchman.operate.history import FIELDS
from watchman.sources.socket.listener import Listener
from watchman.uploads.upload import Answer, Outcome

INI = """\
[watchman]
spool = spool
socket = run/socket

[broker:main]
url = filesystem://broker

[broker:routed]
url = redis://:secret@127.0.0.1:1/0
task_routes = {"gis.*": {"queue": "single_worker"}}

[watch:ftp]
path = ftp
exclude = *.bak

[task:events]
pattern = */events/*.csv
broker = routed
task = gis.import_events
priority = 3
kwargs = {"name": "{name}"}

[task:csv]
pattern = *.csv
broker = main
task = import_csv
"""

UPLOAD_ID = "0b0e6a50-6a9d-4a5e-9b0e-0123456789ab"


def healthy():
    now = time.time()
    return {
        "healthy": True,
        "health_since": now - 7200,
        "problems": [],
        "cures": [],
        "pid": 4711,
        "version": "0.1.0",
        "since": now - 7200,
        "config": "/etc/watchman/watchman.ini",
        "sources": {
            "inotify": {"heard": 12, "last": now - 180, "said": {"completed": 11, "renamed": 1}},
            "scan": {"heard": 0},
        },
        "watches": {
            "ftp": {
                "path": "/srv/ftp",
                "state": "watching",
                "directories": 15,
                "unwatched": 0,
                "error": None,
                "unmatched": 2,
                "excluded": 1,
                "scanning": False,
                "last_scan": now - 900,
            }
        },
        "brokers": {
            "main": {
                "state": "up",
                "since": now - 7200,
                "error": None,
                "attempts": 0,
                "next_try": None,
                "waiting": 3,
            }
        },
        "uploads": {"noticed": 0, "waiting": 3, "deferred": 0, "failed": 0, "done": 9},
        "oldest_waiting": now - 300,
    }


def uploads():
    now = time.time()
    return [
        {
            "id": f"id-{state}",
            "state": state,
            "path": f"/srv/ftp/{state}\udcff.csv",
            "original": f"/srv/ftp/{state}\udcff.csv",
            "watch": "ftp",
            "task": "csv",
            "broker": "main",
            "place": "" if state in ("failed", "noticed") else "broker:main",
            "since": now - 180,
            "attempts": attempts,
            "next_try": next_try,
            "reason": reason,
        }
        for state, attempts, next_try, reason in (
            ("failed", 1, None, "cannot be serialized"),
            ("deferred", 3, now + 3600 * 5, "Connection\nrefused"),
            ("waiting", 0, None, None),
            ("noticed", 0, None, "it is being written"),
        )
    ]


def groups():
    """The same in groups of one, but for what waits."""
    found = []
    for row in uploads():
        one = {"id": row["id"], "path": row["path"]}
        group = {name: row[name] for name in ("state", "place", "reason", "since", "attempts")}
        found.append(
            {**group, "next_try": row["next_try"], "uploads": 1, "first": one, "last": one}
        )
    found[2] |= {"uploads": 5000, "last": {"id": "id-other", "path": "/srv/ftp/last.csv"}}
    return found


class Daemon:
    """What a running daemon says and is told."""

    def __init__(self):
        self.answers = {"status": [healthy()], "queue": uploads(), "groups": groups()}
        self.told = []
        self.silent = False

    def submit(self, notification, answer):
        self.told.append(notification.path)
        if self.silent:
            return
        if notification.path.endswith(".bad"):
            answer(Answer(Outcome.ERROR, "no task matches"))
        else:
            answer(Answer(Outcome.OK, f"id-{len(self.told)}"))

    def query(self, event, fields):
        if event != "explain":
            return self.answers[event]
        if fields.get("id", UPLOAD_ID) != UPLOAD_ID:
            return [{"path": "", "story": [], "uploads": [], "earlier": 0, "now": []}]
        original = fields.get("path", self.answers.get("original"))
        accepted = {"event": "accepted", "accepted": 1.6e9, "id": UPLOAD_ID, "original": original}
        done = {"event": "done", "at": 1.6e9 + 1, "id": UPLOAD_ID}
        upload = dict.fromkeys(FIELDS, "") | {"id": UPLOAD_ID, "state": "done", "at": 1.6e9 + 1}
        upload |= {"original": original, "accepted": 1.6e9, "size": 5, "user": "alice", "tries": []}
        told = {"path": original, "story": [accepted, done], "uploads": [upload]}
        return [{**told, "earlier": 0, "now": []}]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "watchman.ini").write_text(INI)
    (tmp_path / "ftp" / "events").mkdir(parents=True)
    return tmp_path


@contextlib.contextmanager
def listening(path, daemon):
    listener = Listener(str(path), submit=daemon.submit, query=daemon.query, admins=())
    listener.start()
    try:
        yield daemon
    finally:
        listener.stop()
        listener.join()


@pytest.fixture
def daemon(place):
    with listening(place / "run/socket", Daemon()) as daemon:
        yield daemon


def command(place, *arguments, module="watchman"):
    return [sys.executable, "-m", module, "-c", str(place / "watchman.ini"), *arguments]


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def run(place, *arguments, module="watchman", given=b""):
    return subprocess.run(
        command(place, *arguments, module=module),
        input=given,
        capture_output=True,
        cwd=place,
        env=environment(),
        timeout=60,
        check=False,
    )


def send(place, *arguments, given=b""):
    return run(place, *arguments, module="watchman.commands.send", given=given)


def edit(place, old, new):
    text = (place / "watchman.ini").read_text()
    assert old in text
    (place / "watchman.ini").write_text(text.replace(old, new))


def tree(place):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in place.rglob("*"))


def one_line(output):
    [line] = output.decode().splitlines()
    return line


def test_the_help_says_commands_examples_and_exit_codes(place):
    shown = run(place, "--help").stdout.decode()
    for text in ("explain", "examples:", "exit codes:", "another daemon holds the spool"):
        assert text in shown
    shown = send(place, "--help").stdout.decode()
    for text in ("-print0 | watchman-send -0 -", "exit codes:"):
        assert text in shown


def test_the_version_is_told(place):
    assert run(place, "--version").stdout == b"watchman 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: COMMAND; see watchman --help"),
        (["stats"], "invalid choice: 'stats'"),
        (["status", "--colour"], "unrecognized arguments: --colour"),
        (["explain"], "required: PATH; see watchman explain --help"),
        (["explain", "ftp/a.csv", ""], "a path is empty"),
    ],
)
def test_wrong_usage_is_one_line_and_2(place, arguments, text):
    done = run(place, *arguments)
    assert done.returncode == 2
    assert text in one_line(done.stderr)


def test_a_wrong_ini_file_is_a_line_for_each_problem_and_2(place):
    edit(place, "spool = spool", "spol = spool")
    edit(place, "broker = main", "broker = mian")
    for command in (["run"], ["check"], ["explain", "x"]):
        done = run(place, *command)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) >= 3
        assert all(line.startswith(b"watchman: ") for line in done.stderr.splitlines())
        assert b"Traceback" not in done.stderr
    assert run(place, "status").returncode == 3
    assert send(place, "x").returncode == 3


def test_the_ini_file_may_be_named_after_the_command_too(place, daemon):
    done = subprocess.run(
        [sys.executable, "-m", "watchman", "status", "-c", str(place / "watchman.ini")],
        capture_output=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


def test_a_command_does_not_wait_for_celery_to_be_imported(place, daemon):
    edit(place, 'task_routes = {"gis.*": {"queue": "single_worker"}}\n', "")
    program = """if True:
        import sys
        from watchman.commands.main import main
        try:
            main()
        finally:
            print("celery.app" in sys.modules, file=sys.stderr)
    """
    command = [sys.executable, "-c", program, "-c", place / "watchman.ini", "status"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "False\n")


@pytest.mark.parametrize("arguments", [["status"], ["queue"], ["queue", "--json"]])
def test_without_a_daemon_one_line_says_what_to_do_and_3(place, arguments):
    done = run(place, *arguments)
    assert done.returncode == 3
    assert done.stdout == b""
    line = one_line(done.stderr)
    assert f"no daemon answers on '{place}/run/socket'" in line
    assert f"Start it with: watchman -c {place}/watchman.ini run" in line
    assert send(place, "/x").returncode == 3


def test_a_healthy_status_is_0_and_says_so_first(place, daemon):
    done = run(place, "status")
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("healthy since ")
    assert lines[0].endswith(" (2h)")
    assert lines[1] == "watchman 0.1.0, pid 4711, up 2h with /etc/watchman/watchman.ini"
    counts = "0 noticed, 3 waiting, 0 deferred, 0 failed, 9 done; oldest waits 5m"
    assert lines[2] == counts
    rows = [line.split() for line in lines]
    assert ["main", "up", "2h", "3", "0", "-"] in rows
    assert ["ftp", "watching", "15", "2", "1", "15m", "ago", "/srv/ftp"] in rows
    assert "inotify     12  3m ago  11 completed, 1 renamed" in lines
    assert ["scan", "0", "never", "-"] in rows


def test_a_warning_is_said_and_is_no_problem(place, daemon):
    watch = {**healthy()["watches"]["ftp"], "told": {"hook": 0, "log": 7}, "unconfirmed": 1}
    silent = {"warnings": ["hooks are silent"], "watches": {"ftp": watch}}
    daemon.answers["status"] = [{**healthy(), **silent}]
    done = run(place, "status")
    assert done.returncode == 0
    assert b"\n  ! warning: hooks are silent\n" in done.stdout
    assert b"  ftp: ProFTPD told of 0 by hook, 7 by log; 1 upload unconfirmed\n" in done.stdout


def test_an_unhealthy_status_is_1_and_says_why_first_and_what_cures_it(place, daemon):
    problems = ["broker main is down: refused", "a watch is missing", "what nothing cures"]
    cures = ["watchman check --brokers", "df /srv", ""]
    sick = {"healthy": False, "problems": problems, "cures": cures}
    daemon.answers["status"] = [{**healthy(), **sick}]
    done = run(place, "status")
    assert done.returncode == 1
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("NOT HEALTHY since ")
    assert lines[1:6] == [
        "  - broker main is down: refused",
        f"    > watchman -c {place}/watchman.ini check --brokers",
        "  - a watch is missing",
        "    > df /srv",
        "  - what nothing cures",
    ]
    done = run(place, "status", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"] == problems
    done = run(place, "status", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 0, "OK - healthy"),
        ({"warnings": ["hooks | are\nsilent"]}, 1, "WARNING - hooks / are silent"),
        (
            {"paused": [{"name": "broker:b", "since": 1.0, "waiting": 2}]},
            1,
            "WARNING - broker:b is paused",
        ),
        (
            {"healthy": False, "problems": ["a", "b"], "warnings": ["c"]},
            2,
            "CRITICAL - a; b; c",
        ),
    ],
)
def test_status_is_a_monitoring_plugin(place, daemon, changes, code, said):
    daemon.answers["status"] = [{**healthy(), **changes}]
    done = run(place, "status", "--nagios")
    assert (done.returncode, done.stderr) == (code, b"")
    text, _, values = one_line(done.stdout).partition(" | ")
    assert text == f"WATCHMAN {said}"
    assert re.fullmatch(
        "noticed=0;;;0 waiting=3;;;0 deferred=0;;;0 failed=0;;;0 done=9c;;;0"
        r" oldest_waiting=30\ds;;;0",
        values,
    )


def test_a_plugin_says_in_its_way_what_keeps_it_from_asking(place):
    done = run(place, "status", "--nagios")
    assert (done.returncode, done.stderr) == (2, b"")
    assert one_line(done.stdout).startswith("WATCHMAN CRITICAL - no daemon answers on ")
    (place / "watchman.ini").unlink()
    done = run(place, "status", "--nagios")
    assert (done.returncode, done.stderr) == (3, b"")
    assert one_line(done.stdout).startswith("WATCHMAN UNKNOWN - ")
    assert run(place, "status", "--nagios", "--what").returncode == 3
    assert run(place, "status", "--nagios", "--json").returncode == 3


def test_the_queue_shows_what_is_alike_as_one_and_counts_all(place, daemon):
    done = run(place, "queue")
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    path = r"/srv/ftp/failed\udcff.csv"
    assert lines[:3] == [
        "failed: 1 upload, oldest 3m, tried 1 time",
        "  why     cannot be serialized",
        f"  upload  id-failed {path}",
    ]
    assert lines[4:6] == [
        "deferred: 1 upload for broker main, oldest 3m, tried 3 times, next in 5h",
        "  why     Connection refused",
    ]
    assert lines[8:11] == [
        "waiting: 5,000 uploads for broker main, oldest 3m",
        r"  first  id-waiting /srv/ftp/waiting\udcff.csv",
        "  last   id-other /srv/ftp/last.csv",
    ]
    assert lines[-1] == "1 failed, 1 deferred, 5,000 waiting, 1 noticed"


def test_the_queue_lists_all_below_what_they_have_in_common(place, daemon):
    lines = run(place, "queue", "--all").stdout.decode().splitlines()
    assert lines[:3] == [
        "failed",
        "  cannot be serialized",
        rf"  {'id-failed':<36}    3m  /srv/ftp/failed\udcff.csv",
    ]
    assert lines[4] == "deferred for broker main"
    assert lines[-1] == "1 failed, 1 deferred, 5,000 waiting, 1 noticed"
    found = [json.loads(line) for line in run(place, "queue", "--json").stdout.splitlines()]
    assert [upload["state"] for upload in found] == ["failed", "deferred", "waiting", "noticed"]
    assert found[0]["path"] == "/srv/ftp/failed\udcff.csv"


def test_an_empty_queue_says_so(place, daemon):
    daemon.answers["queue"] = daemon.answers["groups"] = []
    assert run(place, "queue").stdout == b"nothing waits, nothing has failed\n"
    assert run(place, "queue", "--all").stdout == b"nothing waits, nothing has failed\n"
    assert run(place, "queue", "--json").stdout == b""


def test_explain_tells_all_from_the_ini_file_alone_and_touches_nothing(place):
    (place / "ftp/events/a.csv").write_text("hello")
    before = tree(place)
    done = run(place, "explain", "--json", "ftp/events/a.csv")
    assert (done.returncode, done.stderr) == (0, b"")
    assert tree(place) == before
    found = json.loads(done.stdout)
    assert found.pop("file")["size"] == 5
    assert found.pop("options").items() >= {"priority": 3}.items()
    assert "no daemon answers" in found.pop("story_error")
    assert found.pop("wholeness") == "the kernel tells who has it open for writing (a lease)"
    assert found == {
        "path": f"{place}/ftp/events/a.csv",
        "watch": "ftp",
        "watch_path": f"{place}/ftp",
        "writers": [],
        "excluded": None,
        "section": "events",
        "patterns": ["*/events/*.csv"],
        "also": ["csv"],
        "task": "gis.import_events",
        "broker": "routed",
        "args": [f"{place}/ftp/events/a.csv"],
        "kwargs": {"name": "a.csv"},
        "exchange": "",
        "routing_key": "single_worker",
        "queue": "single_worker",
        "route": "queue 'single_worker'",
        "would": "The next time it is written, task gis.import_events is sent to broker routed,"
        " queue 'single_worker'",
        "story": None,
    }


def test_explain_says_in_one_sentence_what_would_happen(place):
    (place / "ftp/link.csv").symlink_to("/etc/passwd")
    (place / "ftp/dir.csv").mkdir()
    (place / "alias").symlink_to("ftp")
    sentences = {
        "ftp/new.csv": "Once it is uploaded, task import_csv is sent to broker main, queue",
        "alias/new.csv": "Once it is uploaded, task import_csv is sent to broker main, queue",
        "elsewhere.csv": f"Nothing: it is below no watch. The watches are: {place}/ftp.",
        "ftp": "Nothing: it is the directory of [watch:ftp] itself, not a file in it.",
        "alias/": "Nothing: it is the directory of [watch:ftp] itself, not a file in it.",
        "ftp/a.csv.bak": "Nothing: [watch:ftp] excludes it by the pattern *.bak.",
        "ftp/.git/a.csv": "Nothing: [watch:ftp] excludes it by the pattern .*.",
        "ftp/a.txt": "Nothing: no [task:...] section has a pattern that matches it; it is ignored.",
        "ftp/link.csv": "Nothing: it is a symlink, not a regular file.",
        "ftp/dir.csv": "Nothing: it is a directory, not a regular file.",
    }
    done = run(place, "explain", *sentences)
    assert (done.returncode, done.stderr) == (0, b"")
    for told, sentence in zip(done.stdout.decode().split("\n\n"), sentences.values(), strict=True):
        assert told.splitlines()[1].strip().startswith(sentence)


def test_explain_takes_any_name_and_prints_it_safely(place):
    done = run(place, "explain", b"ftp/\xff\n\x1b[31m.csv")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines()[0] == rf"{place}/ftp/\udcff \x1b[31m.csv"


def test_explain_knows_that_a_watch_is_not_recursive(place):
    edit(place, "path = ftp", "path = ftp\nrec = no")
    done = run(place, "explain", "ftp/events/a.csv")
    assert b"Nothing: it is in a directory below [watch:ftp], which has rec = no." in done.stdout


def test_explain_tells_the_story_that_the_daemon_knows(place, daemon):
    told = run(place, "explain", "ftp/a.csv").stdout.decode()
    _, _, story = told.partition(f"  Upload {UPLOAD_ID}, done ")
    assert " by alice, 5 bytes " in story


def test_explain_of_an_id_tells_its_story_and_its_path(place, daemon):
    daemon.answers["original"] = f"{place}/ftp/a.csv"
    found = json.loads(run(place, "explain", "--json", UPLOAD_ID).stdout)
    assert found["id"] == UPLOAD_ID
    assert found["path"] == f"{place}/ftp/a.csv"
    assert [record["event"] for record in found["story"]] == ["accepted", "done"]
    done = run(place, "explain", UPLOAD_ID.replace("0", "1"), "ftp/a.csv")
    assert done.returncode == 1
    assert "knows of no upload 1b1e6a51" in one_line(done.stderr)
    assert done.stdout.decode().splitlines()[0] == f"{place}/ftp/a.csv"


def test_what_could_be_the_beginning_of_an_id_is_a_path_where_it_is_none(place, daemon):
    for subject in ("feed", UPLOAD_ID.replace("0", "1")[:13]):
        found = json.loads(run(place, "explain", "--json", subject).stdout)
        assert found["path"] == f"{place}/{subject}"
    (place / "deed").touch()
    daemon.answers["original"] = "none"
    assert json.loads(run(place, "explain", "--json", "deed").stdout)["path"] == f"{place}/deed"


def found_by_check(place, *arguments):
    done = run(place, "check", "--json", *arguments)
    assert done.stderr == b""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [f"{one['subject']}: {one['text']}" for one in found if one["level"] == "ERROR"]
    warned = [f"{one['subject']}: {one['text']}" for one in found if one["level"] == "WARN"]
    assert done.returncode == bool(wrong)
    return found, wrong, warned


def test_check_looks_at_everything_and_touches_nothing(place):
    before = tree(place)
    found, wrong, _ = found_by_check(place)
    assert not wrong
    assert tree(place) == before
    subjects = {one["subject"] for one in found}
    assert subjects >= {"spool", "socket", "log_file", "watch:ftp", "inotify", "broker:main"}
    told = {one["subject"]: one["text"] for one in found}
    assert told["task:events"] == "gis.import_events goes to broker routed, queue 'single_worker'"
    assert told["inotify"].startswith("2 directories to watch")
    assert "secret" not in str(found)
    done = run(place, "check")
    assert done.stdout.decode().splitlines()[-1].startswith("0 errors, "), done.stdout.decode()
    assert done.returncode == 0


def test_check_finds_what_cannot_work(place):
    for name in ("ftp", "run"):
        (place / name).rename(place / f"old-{name}") if (place / name).exists() else None
        (place / name).touch()
    edit(place, "spool = spool", "spool = run/spool\nlog_file = old-ftp")
    edit(place, "url = filesystem://broker", "url = filesystem://ftp/broker")
    edit(place, "url = filesystem://ftp/broker", "url = filesystem://run")
    _, wrong, _ = found_by_check(place)
    assert wrong == [
        f"spool: '{place}/run/spool' cannot be made: '{place}/run' is not a directory",
        f"socket: '{place}/run' is not a directory",
        f"log_file: '{place}/old-ftp' is not a file; name one that {whoami()} may write",
        f"watch:ftp: '{place}/ftp' is not a directory",
        f"broker:main: '{place}/run' is not a directory",
    ]


def whoami():
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def test_check_warns_of_what_works_badly(place):
    (place / "spool").mkdir(mode=0o755)
    (place / "spool").chmod(0o755)
    place.chmod(0o700)
    (place / "ftp/events").rmdir()
    (place / "ftp").rmdir()
    edit(place, "pattern = */events/*.csv", "pattern = *")
    edit(place, "[task:events]", "[broker:idle]\nurl = filesystem://idle\n[task:events]")
    _, wrong, warned = found_by_check(place)
    assert not wrong
    for text in (
        f"spool: '{place}/spool' is open to users beside its owner; chmod go= {place}/spool",
        f"socket: FTP users cannot reach it through '{place}'; chmod o+x it",
        f"watch:ftp: '{place}/ftp' is not there yet; the daemon waits for it",
        "broker:idle: no task uses it",
        "task:csv: never gets *.csv: [task:events] comes first and takes it",
    ):
        assert text in warned


@pytest.mark.root
def test_check_finds_what_bars_ftp_users_where_it_may_not_look_itself(public_path):
    (public_path / "shut/run").mkdir(parents=True)
    (public_path / "shut").chmod(0o700)
    os.seteuid(65534)
    try:
        assert rights.closed(f"{public_path}/shut/run") == [f"{public_path}/shut"]
    finally:
        os.seteuid(0)


def test_check_connects_to_brokers_when_asked_to(place):
    _, wrong, _ = found_by_check(place, "--brokers")
    [problem] = [one for one in wrong if one.startswith("broker:")]
    assert problem.startswith("broker:routed: redis://")
    assert "refused" in problem
    assert "secret" not in problem


def test_watchman_send_sends_arguments_as_absolute_paths(place, daemon):
    (place / "link").symlink_to("ftp")
    done = send(place, "link/a.csv", "/srv//x/../b.csv")
    assert (done.returncode, done.stderr) == (0, b"")
    # What a directory is, the daemon says.
    assert daemon.told == [f"{place}/link/a.csv", "/srv/x/../b.csv"]
    assert done.stdout.decode() == f"OK id-1 {place}/link/a.csv\nOK id-2 /srv//x/../b.csv\n"


def test_watchman_send_reads_lines_or_names_ended_by_nul(place, daemon):
    assert send(place, "-", given=b"/a b\n\n/\xff\n/c").returncode == 0
    assert daemon.told == ["/a b", "/\udcff", "/c"]
    daemon.told.clear()
    assert send(place, "-0", "/first", "-", given=b"/a\nb\0/c").returncode == 0
    assert daemon.told == ["/first", "/a\nb", "/c"]


def test_watchman_send_takes_thousands(place, daemon):
    paths = [f"/srv/ftp/{number:0200}" for number in range(3000)]
    done = send(place, "-", given="\n".join(paths).encode())
    assert done.returncode == 0
    assert daemon.told == paths
    assert len(done.stdout.splitlines()) == 3000


def test_watchman_send_says_each_refusal_goes_on_and_ends_with_1(place, daemon):
    done = send(place, "/a.bad", "/b", b"/c\xff.bad", "/" + "x" * 5000, "/" + "x" * 70000, "/d")
    assert done.returncode == 1
    assert done.stdout == b"OK id-2 /b\nOK id-4 /d\n"
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "watchman-send: '/a.bad': no task matches"
    assert lines[1] == r"watchman-send: '/c\udcff.bad': no task matches"
    assert "longer than 4095 bytes" in lines[2]
    assert "65536 are allowed" in lines[3]
    assert len(lines) == 4


def test_watchman_send_sends_what_a_pipe_holds_before_more_comes(place, daemon):
    arguments = command(place, "-", module="watchman.commands.send")
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, env=environment()) as process:
        process.stdin.write(b"/a\n/b")
        process.stdin.flush()
        eventually(lambda: daemon.told == ["/a"])
        process.stdin.close()
        assert process.wait(20) == 0
    assert daemon.told == ["/a", "/b"]


def test_an_interrupt_ends_a_command_without_a_traceback(place, daemon):
    daemon.silent = True
    arguments = command(place, "/a", module="watchman.commands.send")
    with subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        env=environment(),
        # Where the tests run in the background they ignore it, and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        eventually(lambda: daemon.told)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == b""


def test_a_reader_that_leaves_ends_a_command_without_a_traceback(place, daemon):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(place, "status"),
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


def test_a_daemon_that_is_frozen_is_told_apart_from_none(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(path)
        frozen.listen()
        with pytest.raises(SocketUnavailable, match=r"did not answer within 0\.2 seconds"):
            list(client.request(path, "status", timeout=0.2))


@pytest.mark.root
def test_who_is_no_admin_is_told_who_may():
    with tempfile.TemporaryDirectory() as directory:  # pytest's are root's alone
        place = Path(directory)
        place.chmod(0o755)
        (place / "watchman.ini").write_text(INI)
        # So may the interpreter be: load what is needed as root, then drop it.
        program = (
            "import os, pwd;"
            " from watchman.config import inifile; from watchman.commands import main;"
            f" inifile.load('{directory}/watchman.ini');"
            " os.setuid(pwd.getpwnam('nobody').pw_uid);"
            f" main.main(['-c', '{directory}/watchman.ini', 'status'])"
        )
        with listening(place / "run/socket", Daemon()):
            done = subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                env=environment(),
                timeout=60,
                check=False,
            )
    assert done.returncode == 1
    assert one_line(done.stderr) == "watchman: only root may ask for status"


def test_run_ends_with_4_while_another_daemon_holds_the_spool(place):
    (place / "spool").mkdir(mode=0o700)
    with (place / "spool/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(place, "run")
    assert done.returncode == 4
    assert "holds the spool" in one_line(done.stderr)


def test_run_does_not_take_the_socket_of_another_daemon(place, daemon):
    done = run(place, "run")
    assert done.returncode == 1
    assert "another daemon answers on" in done.stderr.decode().splitlines()[-1]
    assert run(place, "status").returncode == 0


def test_an_error_of_the_daemon_is_passed_on(place, daemon):
    def refuse(event, fields):
        raise WatchmanError("the journal cannot\nbe read")

    daemon.query = refuse
    with listening(place / "other", daemon):
        edit(place, "socket = run/socket", "socket = other")
        done = run(place, "status")
    assert done.returncode == 1
    assert one_line(done.stderr) == "watchman: the journal cannot be read"


# Moves.

MOVE = "\n[move:storage]\nsource = ftp\ndestination = storage\nfolders = accepted\n"


def test_explain_says_where_a_file_would_be_moved(place):
    (place / "watchman.ini").write_text(INI + MOVE)
    done = run(place, "explain", "--json", "ftp/a.csv", "ftp/a.txt")
    moved, unmatched = map(json.loads, done.stdout.splitlines())
    assert (moved["move"], moved["destination"]) == ("storage", f"{place}/storage/a.csv")
    assert moved["args"] == [f"{place}/storage/a.csv"]
    sentence = f"Once it is uploaded, it is moved to {place}/storage/a.csv and task import_csv is"
    assert moved["would"].startswith(sentence)
    assert unmatched["would"] == (
        f"Once it is uploaded, it is moved to {place}/storage/a.txt and no task is sent, for no"
        " [task:...] section matches it"
    )
    told = run(place, "explain", "ftp/a.csv").stdout.decode()
    assert f"move      [move:storage] {place}/storage/a.csv" in told


def test_explain_says_that_nothing_below_a_destination_is_an_upload(place):
    (place / "watchman.ini").write_text(INI + MOVE.replace("= storage", "= ftp/done"))
    done = run(place, "explain", "ftp/done/a.csv")
    sentence = "Nothing: it is excluded by [move:storage], whose destination it lies below."
    assert sentence in done.stdout.decode()


def test_check_looks_at_destinations(place):
    (place / "watchman.ini").write_text(INI + MOVE)
    there = place / "storage"
    assert f"move:storage: '{there}' is not there yet; the daemon waits for it" in checked(place)
    there.touch()
    assert f"move:storage: '{there}' is not a directory" in checked(place)
    there.unlink()
    there.mkdir()
    renamed = f"move:storage: files go from {place}/ftp to {there}, renamed, for it is on the same"
    assert renamed in checked(place)
    (place / "watchman.ini").write_text(INI + MOVE + "mounted = yes\n")
    assert f"move:storage: '{there}' is not mounted; the daemon waits until it is" in checked(place)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (place / "watchman.ini").write_text(INI + MOVE.replace("= storage", f"= {other}"))
        assert f"{other}, copied, for it is on another filesystem" in checked(place)


@pytest.mark.root
def test_check_says_that_it_may_not_see_whether_a_destination_is_mounted(public_path):
    (public_path / "watchman.ini").write_text(INI + MOVE + "mounted = yes\n")
    (public_path / "storage").mkdir(mode=0o700)
    settings = inifile.load(str(public_path / "watchman.ini"))
    os.seteuid(65534)
    try:
        [found] = [one.text for one in trees.check(settings) if one.subject == "move:storage"]
    finally:
        os.seteuid(0)
    assert found.startswith(f"nobody lacks x on '{public_path}/storage'; ")


def checked(place):
    done = run(place, "check", "--json")
    found = map(json.loads, done.stdout.splitlines())
    return "\n".join(f"{one['subject']}: {one['text']}" for one in found)
