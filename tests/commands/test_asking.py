"""Commands that ask the daemon need its socket alone, and are quick."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon
from tests.support.deadline import eventually
from tests.support.filesystems import unprivileged
from tests.support.inis import WATCH, csv_tasks
from watchman.commands import main
from watchman.config import locations
from watchman.errors import ConfigError

Start = Callable[..., Daemon]

INI = f"""\
[watchman]
spool = {{tmp}}/spool
socket = {{tmp}}/run/socket
{csv_tasks(WATCH, url="filesystem://{tmp}/broker")}"""

#: What goes wrong in an editor at night, by what is replaced.
WRONG = {
    "an unknown option": ("[broker:b]", "[broker:b]\nlur = x"),
    "an unset variable": ("filesystem://{tmp}/broker", "redis://:${NO_SUCH_PASSWORD}@h/0"),
    "a line that is none": ("[broker:b]", "what is this\n[broker:b]"),
    "text before the first section": ("[watchman]", "nonsense\n[watchman]"),
    "a section twice": ("[broker:b]", "[task:csv]\npattern = *\n[broker:b]"),
    "an option twice": ("path =", "path = /else\npath ="),
    "a spool too few": ("spool = {tmp}/spool\n", ""),
    "no watch": ("[watch:in]\npath = {tmp}/in\n", ""),
    "bytes that are no text": ("tests.record", "\0\x1b"),
    "an unknown section": ("[watch:in]", "[wacht:in]"),
}

#: Every command that asks, and the exit code that it has then; FILE is an upload.
ASKING = {
    "status": 0,
    "queue": 0,
    "retry --all": 0,
    "drop --failed": 0,
    "pause": 0,
    "resume": 0,
    "explain FILE": 0,
    "reload": 2,
}


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("1")
    return tmp_path / "in"


def call(
    daemon: Daemon, *arguments: str, module: str = "watchman", **variables: str
) -> subprocess.CompletedProcess[str]:
    """`watchman ARGUMENTS...` as given, with nothing about the INI file."""
    return subprocess.run(
        [*daemon.prefix, sys.executable, "-m", module, *arguments],
        cwd=daemon.directory,
        env=daemon.environment() | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_commands_that_ask_work_whatever_is_wrong_in_the_ini_file(
    incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    ini = INI
    for what, (old, new) in WRONG.items():
        assert old in INI
        daemon.configure(INI.replace(old, new, 1))
        assert daemon.run("status").stdout.startswith("healthy since "), what
        ini = ini.replace(old, new, 1)
    daemon.configure(ini)
    for command, code in ASKING.items():
        answer = daemon.run(*command.replace("FILE", f"{incoming}/a.csv").split())
        assert answer.returncode == code, f"{command}: {answer.stderr}"
        assert bool(answer.stderr) == bool(code)
    assert daemon.send(f"{incoming}/a.csv").stdout.startswith("OK ")
    assert daemon.run("check").returncode == 2
    daemon.configure(INI)


def test_a_reload_says_each_thing_that_is_wrong_as_the_daemon_sees_it(
    incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    daemon.configure(INI.replace("pattern", "patern").replace("broker = b", "broker = c"))
    done = daemon.run("reload")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"watchman: {daemon.ini}: [task:csv] ") for line in lines)
    daemon.configure(INI)


def test_explain_tells_the_story_also_where_the_ini_file_is_wrong(
    incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    path = f"{incoming}/a.csv"
    [_, upload_id, _] = daemon.send(path).stdout.split()
    daemon.configure(INI.replace("task =", "taks ="))
    for subject in (path, upload_id):
        found = json.loads(daemon.run("explain", "--json", subject).stdout)
        assert found["path"] == path
        assert upload_id in [record.get("id") for record in found["story"]]
        problem = f"Not known: {daemon.ini}: [task:csv] taks"
        assert found["would"].startswith(problem)
        assert found["would"].endswith(", and 1 problem more")
    daemon.configure(INI)
    daemon.stop()
    daemon.configure(INI.replace("task =", "taks ="))
    done = daemon.run("explain", path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 2)


def test_the_option_goes_before_the_variable_and_that_before_the_ini_file(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    right, wrong = f"{tmp_path}/run/socket", f"{tmp_path}/none"
    other = tmp_path / "other.ini"
    other.write_text(f"[watchman]\nsocket = {wrong}\n")
    ini = ("-c", str(other))
    for arguments, variables in (
        (["--socket", right, *ini, "status"], {"WATCHMAN_SOCKET": wrong}),
        ([*ini, "status", "--socket", right], {"WATCHMAN_SOCKET": wrong}),
        (["--socket", "run/socket", "status"], {}),
        ([*ini, "status"], {"WATCHMAN_SOCKET": right}),
        (["status"], {"WATCHMAN_CONFIG": str(daemon.ini)}),
    ):
        done = call(daemon, *arguments, **variables)
        assert (done.returncode, done.stderr) == (0, ""), arguments
    for arguments, variables in (
        ([*ini, "status"], {}),
        (["--socket", wrong, "status"], {"WATCHMAN_SOCKET": right}),
        (["-c", str(daemon.ini), "status"], {"WATCHMAN_SOCKET": wrong}),
    ):
        done = call(daemon, *arguments, **variables)
        assert done.returncode == 3
        assert f"no daemon answers on '{wrong}'" in done.stderr
    sent = call(daemon, "--socket", right, "in/a.csv", module="watchman.commands.send")
    assert sent.stdout.startswith("OK ")


def test_an_ini_file_that_was_asked_for_and_is_not_there_is_2_and_no_other_daemon(
    incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    for arguments, variables in ((["-c", "none.ini"], {}), ([], {"WATCHMAN_CONFIG": "none.ini"})):
        done = call(daemon, *arguments, "drop", "--failed", **variables)
        assert (done.returncode, done.stdout) == (2, "")
        said = "none.ini: cannot be read: No such file or directory; name its socket by --socket"
        assert said in done.stderr


def test_commands_that_ask_nobody_take_no_socket(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, INI)
    for command in ("run", "check"):
        for arguments in (["--socket", "x", command], [command, "--socket", "x"]):
            done = daemon.run(*arguments)
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.root
def test_an_operator_who_may_not_read_the_ini_file_asks_by_the_socket(
    public_path: Path, start_watchman: Start
) -> None:
    (public_path / "in").mkdir()
    (public_path / "in/a.csv").write_text("1")
    ini = INI.replace("[broker", "admins = nobody\n[broker", 1)
    daemon = start_watchman(ini, directory=public_path)
    daemon.ini.chmod(0o600)
    (public_path / "own").mkdir()
    daemon.prefix = unprivileged(public_path / "own")
    socket = f"{public_path}/run/socket"
    path = f"{public_path}/in/a.csv"
    for command, code in (ASKING | {"reload": 0}).items():
        arguments = command.replace("FILE", path).split()
        done = call(daemon, *arguments, WATCHMAN_SOCKET=socket, WATCHMAN_CONFIG=str(daemon.ini))
        assert (done.returncode, done.stderr) == (code, ""), command
    told = call(daemon, "-c", str(daemon.ini), "--socket", socket, "explain", path).stdout
    assert f"Not known: {daemon.ini}: cannot be read: Permission denied." in told
    sent = call(daemon, "--socket", socket, path, module="watchman.commands.send")
    assert sent.stdout.startswith("OK ")
    done = call(daemon, "-c", str(daemon.ini), "status")
    assert done.returncode == 2
    assert "cannot be read: Permission denied; name its socket by --socket PATH" in done.stderr


def test_the_socket_is_found_in_what_can_be_read_of_a_file(tmp_path: Path) -> None:
    ini = tmp_path / "a.ini"
    for text, socket in {
        "[watchman]\nsocket = run/s\n": f"{tmp_path}/run/s",
        "\ufeff[watchman]\r\nsocket: /s\r\n": "/s",
        "x = 1\n[ watchman]\nsocket = /no\n[watchman]\nbad\nsocket = ./s": f"{tmp_path}/s",
        "[watchman]\nsocket = \n": locations.DEFAULT_SOCKET,
        "[watchman]\n[proftpd]\nsocket = /no\n": locations.DEFAULT_SOCKET,
        "[watchman]\nsocket = a\0b\n": locations.DEFAULT_SOCKET,
        "[[[\n\n]=\n": locations.DEFAULT_SOCKET,
        "": locations.DEFAULT_SOCKET,
    }.items():
        ini.write_bytes(text.encode())
        assert locations.find_socket(None, str(ini)) == socket
    ini.write_bytes(b"[watchman]\nsocket = /\xff\n")
    assert os.fsencode(locations.find_socket(None, str(ini))) == b"/\xff"
    os.mkfifo(tmp_path / "fifo")
    assert locations.find_socket(None, f"{tmp_path}/fifo") == locations.DEFAULT_SOCKET
    with pytest.raises(ConfigError, match="Is a directory"):
        locations.find_socket(None, str(tmp_path))


@pytest.mark.root
def test_the_file_in_etc_need_not_be_readable(
    public_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only of it, the socket in /run is the one that is meant."""
    ini = public_path / "watchman.ini"
    ini.write_text("[watchman]\nsocket = /else\n")
    ini.chmod(0o600)
    monkeypatch.setattr(locations, "DEFAULT_FILE", str(ini))
    monkeypatch.delenv("WATCHMAN_CONFIG", raising=False)
    assert locations.find_socket(None, None) == "/else"
    os.seteuid(65534)
    try:
        assert locations.find_socket(None, None) == locations.DEFAULT_SOCKET
        assert locations.is_closed(str(ini))
    finally:
        os.seteuid(0)
    assert not locations.is_closed(str(ini))
    assert not locations.is_closed(str(public_path / "none"))


# What they import is what they cost: a tenth of a second is eight of these.

#: Libraries, and modules of Python's or ours, each of which takes several milliseconds.
SLOW = {
    *("celery", "kombu", "amqp", "redis", "pyinotify"),
    *("asyncio", "concurrent", "ctypes", "dataclasses", "difflib", "hashlib", "inspect"),
    *("logging", "pathlib", "shutil", "subprocess", "tempfile", "threading", "urllib", "uuid"),
    *("watchman.config.inifile", "watchman.config.settings", "watchman.uploads.upload"),
}

IMPORTED = """
import sys
before = set(sys.modules)
from watchman.commands.{module} import main
try:
    main()
finally:
    print(*(set(sys.modules) - before), file=sys.stderr)
"""


#: What rich imports of these. Only commands that draw a screen wait for it, not what scripts ask.
RICH = {"dataclasses", "inspect", "threading"}

SCREENS = ("status", "queue")

SCRIPTED = ("status --json", "status --quiet", "status --nagios", "queue --json")


def test_commands_that_ask_import_nothing_slow(incoming: Path, start_watchman: Start) -> None:
    daemon = start_watchman(INI)
    asking = [("main", one) for one in (*ASKING, *SCRIPTED) if "FILE" not in one]
    for module, arguments in [*asking, ("send", f"{incoming}/a.csv")]:
        path = f"import sys; sys.path.extend({[p for p in sys.path if p]!r})\n"
        program = path + IMPORTED.format(module=module)
        done = subprocess.run(
            [
                *(sys.executable, "-I", "-S", "-c", program),
                *("-c", str(daemon.ini), *arguments.split()),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        imported = set(done.stderr.split())
        assert imported >= {"argparse", "socket"}
        assert ("rich.table" in imported) is (arguments in SCREENS)
        assert not imported & (SLOW - RICH if arguments in SCREENS else SLOW), arguments


def test_the_help_says_of_each_command_what_its_module_does(tmp_path: Path) -> None:
    for name, purpose in main.COMMANDS.items():
        title = f"`watchman {name}`: {purpose}."
        assert (main.module(name).__doc__ or "").startswith(f"{title}\n\n")
    shown = Daemon(tmp_path, INI).run("--help").stdout
    listed = re.findall(r"^    ([\w-]+) ", shown, re.MULTILINE)
    assert listed == list(main.COMMANDS)
    assert max(map(len, shown.partition("examples:")[0].splitlines())) <= 80


def test_status_waits_for_a_daemon_that_is_starting_and_not_for_longer(
    incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI, started=False)
    done = daemon.run("status", "--wait", "0.5")
    assert (done.returncode, done.stdout) == (3, "")
    daemon.begin()
    done = daemon.run("status", "--wait", "20")
    assert (done.returncode, done.stdout.partition(" since ")[0]) == (0, "healthy")
    incoming.rename(incoming.with_name("away"))
    eventually(lambda: daemon.run("status").returncode)
    done = daemon.run("status", "--wait", "0.5")
    assert (done.returncode, done.stdout.partition(" since ")[0]) == (1, "NOT HEALTHY")
    incoming.with_name("away").rename(incoming)
    assert daemon.run("status", "--wait", "20").returncode == 0
    for wrong in ("soon", "-1", "nan"):
        done = daemon.run("status", f"--wait={wrong}")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"'{wrong}' is not a number of seconds" in done.stderr
