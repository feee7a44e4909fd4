"""`watchman check --proftpd`: what is right and wrong with a ProFTPD's configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.servers.proftpd import SESSIONS, SHIPPED, TRANSFER_LOG, TRANSFERS, shipped
from tests.support.needs import need
from watchman.commands.check import proftpd, proftpd_file
from watchman.commands.check.findings import Finding, Level
from watchman.commands.check.proftpd_file import hidden_name
from watchman.config.settings import (
    BrokerSettings,
    ProftpdSettings,
    Settings,
    TaskSettings,
    WatchSettings,
)
from watchman.sources.transferlog.lines import LOG_FORMAT

TOKEN = "s3cret"

MAIN = """\
LoadModule mod_exec.c
ServerName "an \\"FTP\\" server"
{more}
Include {directory}/conf.d/
"""


@dataclass
class Place:
    """A directory that every user reaches, with a configuration that is right."""

    directory: Path
    settings: Settings

    @property
    def main(self) -> Path:
        return self.directory / "proftpd.conf"

    @property
    def hooks(self) -> Path:
        return self.directory / "conf.d" / "watchman.conf"

    @property
    def log(self) -> Path:
        return self.directory / "conf.d" / "log.conf"

    def write(self, more: str = "", *, hooks: bool = True, log: bool = True) -> None:
        (self.directory / "conf.d").mkdir(exist_ok=True)
        self.main.write_text(MAIN.format(directory=self.directory, more=more))
        places = {
            "hook": self.directory / "watchman-hook",
            "log": self.directory / "log" / "uploads.log",
            "token": TOKEN,
        }
        if hooks:
            self.hooks.write_text(shipped(SESSIONS, TRANSFERS, **places))
        if log:
            self.log.write_text(shipped(TRANSFER_LOG, **places))
            self.log.chmod(0o640)
            transfer_log = (f"{self.directory}/log/uploads.log",)
            said = ProftpdSettings(transfer_log=transfer_log, token=TOKEN)
            self.settings = replace(self.settings, proftpd=said)

    def edit(self, old: str, new: str) -> None:
        """Replace a text wherever it stands."""
        files = [self.main, self.hooks, self.log]
        texts = [file.read_text() if file.exists() else "" for file in files]
        assert any(old in text for text in texts), old
        for file, text in zip(files, texts, strict=True):
            if old in text:
                file.write_text(text.replace(old, new))

    def watch(self, **options: object) -> None:
        watch = replace(self.settings.watches["ftp"], **options)  # type: ignore[arg-type]
        self.settings = replace(self.settings, watches={"ftp": watch})

    def line(self, file: str, text: str) -> int:
        """The number of the first line that begins with a text."""
        lines = (self.directory / file).read_text().replace(f"{self.directory}/", "").splitlines()
        return next(n for n, line in enumerate(lines, 1) if line.lstrip().startswith(text))

    def findings(self) -> list[Finding]:
        return list(proftpd.check(self.settings, str(self.main)))

    def complaints(self) -> list[str]:
        """What is not as it must be, without the directory."""
        return [
            f"{finding.level} {finding.text.replace(f'{self.directory}/', '')}"
            for finding in self.findings()
            if finding.level is not Level.OK
        ]


@pytest.fixture
def place(public_path: Path) -> Place:
    shutil.copy(SHIPPED / "watchman-hook", public_path)
    (public_path / "watchman-hook").chmod(0o755)
    (public_path / "log").mkdir(mode=0o750)
    settings = Settings(
        file="watchman.ini",
        spool="/spool",
        socket="/run/watchman/watchman.sock",
        admins=(),
        log_level="INFO",
        log_file="",
        log_format="text",
        drain=1.0,
        history=1.0,
        keep_failed=1.0,
        watches={"ftp": WatchSettings("ftp", "/srv/ftp", proftpd=True)},
        brokers={"b": BrokerSettings("b", "memory://")},
        tasks=(TaskSettings("csv", ("*.csv",), "b", "import_csv"),),
    )
    return Place(public_path, settings)


@pytest.mark.parametrize(("hooks", "log"), [(True, False), (False, True), (True, True)])
def test_the_shipped_files_are_right(place: Place, hooks: bool, log: bool) -> None:
    place.write(hooks=hooks, log=log)
    (finding,) = [one for one in place.findings() if "speaks by" in one.text]
    ways = " and ".join(["hooks"] * hooks + ["log"] * log)
    assert finding.text.endswith(f"1 server; speaks by {ways}")
    assert place.complaints() == []


def test_hooks_for_sessions_are_enough_beside_the_log(place: Place) -> None:
    place.write()
    hooks = shipped(SESSIONS, hook=place.directory / "watchman-hook", log="", token="")
    place.hooks.write_text(hooks)
    assert place.complaints() == []


@pytest.mark.parametrize("included", [True, False])
def test_debians_default_tells_nothing_until_ours_is_included(place: Place, included: bool) -> None:
    need("proftpd")
    for name in ("proftpd.conf", "modules.conf"):
        text = Path(f"/etc/proftpd/{name}").read_text()
        (place.directory / name).write_text(text.replace("/etc/proftpd", str(place.directory)))
    default = place.main.read_text()
    place.write(hooks=included, log=False)
    place.main.write_text(default)
    if included:
        assert place.complaints() == []
    else:
        (complaint,) = place.complaints()
        assert complaint.startswith("ERROR proftpd.conf:1: it tells watchman nothing; Include")


Setup = Callable[[Place], None]


def hooks_only(place: Place) -> None:
    place.write(log=False)


def log_only(place: Place) -> None:
    place.write(hooks=False)


def both(place: Place) -> None:
    place.write()


def but(old: str, new: str, base: Setup = hooks_only) -> Setup:
    """What is right, with one text replaced; DIR is the place's directory."""

    def wrong(place: Place) -> None:
        base(place)
        place.edit(*(text.replace("DIR", str(place.directory)) for text in (old, new)))

    return wrong


def more(text: str, base: Setup = hooks_only) -> Setup:
    """What is right, and more."""
    return but("LoadModule mod_exec.c", f"LoadModule mod_exec.c\n{text}", base)


def mode(name: str, bits: int, base: Setup) -> Setup:
    def wrong(place: Place) -> None:
        base(place)
        (place.directory / name).chmod(bits)

    return wrong


def ini(base: Setup, **changes: object) -> Setup:
    def wrong(place: Place) -> None:
        base(place)
        place.settings = replace(place.settings, **changes)  # type: ignore[arg-type]

    return wrong


def watch(base: Setup, **options: object) -> Setup:
    def wrong(place: Place) -> None:
        base(place)
        place.watch(**options)

    return wrong


def loaded_too_late(place: Place) -> None:
    hooks_only(place)
    place.main.write_text(f"Include {place.directory}/conf.d/\nLoadModule mod_exec.c\n")


def no_hook(place: Place) -> None:
    hooks_only(place)
    (place.directory / "watchman-hook").unlink()


def no_log_directory(place: Place) -> None:
    log_only(place)
    (place.directory / "log").rmdir()


def log_is_a_symlink(place: Place) -> None:
    log_only(place)
    (place.directory / "log" / "uploads.log").symlink_to("other")


VHOST = "<VirtualHost 127.0.0.1>\nPort 2222\n{}\n</VirtualHost>"
STARTED = "user=%u client=%a path=%f"

#: What is wrong, and what is said of it: FILE:<TEXT> is the number of the line that begins so.
WRONG: dict[str, tuple[Setup, str]] = {
    "module not loaded": (
        but("LoadModule mod_exec.c\n", ""),
        "ERROR conf.d/watchman.conf:<<IfModule>: ProFTPD passes over the hooks below: mod_exec.c is"
        " not there; LoadModule mod_exec.c above it",
    ),
    "module loaded too late": (
        loaded_too_late,
        "ERROR conf.d/watchman.conf:<<IfModule>: ProFTPD passes over the hooks below",
    ),
    "hooks behind a define": (
        but("<IfModule mod_exec.c>", "<IfDefine HOOKS>"),
        "ERROR conf.d/watchman.conf:<<IfDefine>: ProFTPD passes over the hooks below: HOOKS",
    ),
    "hooks without the module": (
        but("LoadModule mod_exec.c", "ExecEngine on\nExecOnExit /bin/true", log_only),
        "ERROR proftpd.conf:<ExecOnExit>: mod_exec is not loaded, and ProFTPD does not start",
    ),
    "engine off": (
        but("ExecEngine on", "ExecEngine off"),
        "ERROR conf.d/watchman.conf:<ExecEngine>: no hook runs in the main server; ExecEngine on",
    ),
    "engine missing": (
        but("ExecEngine on", ""),
        "ERROR conf.d/watchman.conf:<ExecBefore>: no hook runs in the main server; ExecEngine on",
    ),
    "engine off in a virtual host": (
        more(VHOST.format("ExecEngine off")),
        "ERROR proftpd.conf:<ExecEngine>: no hook runs in <VirtualHost 127.0.0.1>; ExecEngine on",
    ),
    "a line missing": (
        but("ExecOnError", "#"),
        "ERROR conf.d/watchman.conf:<ExecBefore>: hooks of the main server do not say 'failed' for"
        f" APPE,STOR,STOU; ExecOnError STOR,APPE,STOU watchman-hook failed {STARTED}",
    ),
    "a command missing": (
        but("ExecOnCommand STOR,APPE,STOU", "ExecOnCommand STOR"),
        "ERROR conf.d/watchman.conf:<ExecBefore>: hooks of the main server do not say 'completed'"
        " for APPE,STOU;",
    ),
    "the end missing": (
        but("ExecOnExit", "#", both),
        "ERROR conf.d/watchman.conf:<ExecBefore>: hooks of the main server do not say 'ended';"
        " ExecOnExit watchman-hook ended user=%u",
    ),
    "the stall missing": (
        but("ExecOnEvent", "#"),
        "ERROR conf.d/watchman.conf:<ExecBefore>: hooks of the main server do not say 'ended' for"
        " core.timeout-stalled~;",
    ),
    "hooks outside Global": (
        more(VHOST.format(""), but("Global>", "Limit>")),
        "WARN proftpd.conf:<<VirtualHost>: no hooks in <VirtualHost 127.0.0.1>; put them into",
    ),
    "a field missing": (
        but("failed user=%u client=%a path=%f", "failed user=%u client=%a"),
        "ERROR conf.d/watchman.conf:<ExecOnError>: the hook does not say path=%f; ExecOnError",
    ),
    "an event that is none": (
        but("watchman-hook renamed", "watchman-hook moved"),
        "ERROR conf.d/watchman.conf:<ExecOnCommand RNTO>: watchman-hook does not know the event"
        " 'moved'; started, completed, failed, renamed, ended",
    ),
    "hook missing": (
        no_hook,
        "ERROR conf.d/watchman.conf:<ExecBefore>: watchman-hook cannot be run: No such file",
    ),
    "hook not executable": (
        mode("watchman-hook", 0o644, hooks_only),
        "ERROR conf.d/watchman.conf:<ExecBefore>: watchman-hook cannot be run by FTP users; chmod",
    ),
    "hook out of reach": (
        mode(".", 0o700, hooks_only),
        "ERROR conf.d/watchman.conf:<ExecBefore>: watchman-hook cannot be reached by FTP users",
    ),
    "another socket": (
        ini(hooks_only, socket="/run/other.sock"),
        "ERROR conf.d/watchman.conf:<ExecBefore>: the hook speaks to /run/watchman/watchman.sock,"
        " and watchman listens on /run/other.sock; --socket /run/other.sock",
    ),
    "a socket of its own": (
        but("watchman-hook started", "watchman-hook --socket /run/other.sock started"),
        "ERROR conf.d/watchman.conf:<ExecBefore>: the hook speaks to /run/other.sock, and watchman"
        " listens on /run/watchman/watchman.sock; leave --socket out",
    ),
    "a timeout without options": (
        but("ExecOptions logStdout logStderr", ""),
        "ERROR conf.d/watchman.conf:<ExecTimeout>: ExecTimeout alone makes every hook take 2"
        " seconds; ExecOptions logStdout logStderr",
    ),
    "all commands": (
        more("ExecOnCommand ALL /bin/true"),
        "ERROR proftpd.conf:<ExecOnCommand>: ALL makes SFTP run a program for every 32 KiB",
    ),
    "all that write": (
        more("ExecOnCommand READ,WRITE /bin/true"),
        "ERROR proftpd.conf:<ExecOnCommand>: WRITE makes SFTP run a program for every 32 KiB",
    ),
    "freed memory": (
        but("logStdout logStderr", "logStdout logStderr useStdin"),
        "ERROR conf.d/watchman.conf:<ExecOptions>: useStdin hands freed memory to programs",
    ),
    "all locked in": (
        more("DefaultRoot ~"),
        "ERROR proftpd.conf:<DefaultRoot>: DefaultRoot: no hook runs for users whom it locks in;"
        " use the transfer log",
    ),
    "some locked in": (
        more("DefaultRoot ~ !staff"),
        "WARN proftpd.conf:<DefaultRoot>: DefaultRoot: no hook runs for users whom it locks in",
    ),
    "no hook in a directory": (
        more("<Directory /srv>\nExecEnable off\n</Directory>"),
        "WARN proftpd.conf:<ExecEnable>: ExecEnable: no hook runs there; use the transfer log",
    ),
    "mod_vroot and hooks": (
        more("VRootEngine on\nDefaultRoot ~"),
        "ERROR proftpd.conf:<VRootEngine>: VRootEngine: for renames, STOU and all of SFTP hooks"
        " name paths within the user's root, which watchman cannot find; use the transfer log",
    ),
    "mod_vroot and the log": (
        more("<Global>\nVRootEngine on\nDefaultRoot ~\n</Global>", log_only),
        "WARN proftpd.conf:<VRootEngine>: VRootEngine: for renames and STOU the log names paths",
    ),
    "an alias of mod_vroot": (
        more("VRootEngine on\nVRootAlias /srv/all ~/all", both),
        "ERROR proftpd.conf:<VRootAlias>: VRootAlias: for uploads through an alias ProFTPD names"
        " paths that do not exist; use mount --bind",
    ),
    "a root of mod_vroot for a server": (
        more(VHOST.format("VRootEngine on\nVRootServerRoot /srv"), both),
        "ERROR proftpd.conf:<VRootServerRoot>: VRootServerRoot: no hook runs, and for renames",
    ),
    "all locked in and a root for the server": (
        more("VRootEngine on\nVRootServerRoot /srv\nDefaultRoot ~"),
        "ERROR proftpd.conf:<DefaultRoot>: DefaultRoot: no hook runs for users whom it locks in",
    ),
    "no filter": (
        but("PathDenyFilter", "#"),
        "WARN conf.d/watchman.conf:<ExecBefore>: names with % or a line feed reach hooks as other"
        ' names; PathDenyFilter "(%|[[:cntrl:]])"',
    ),
    "a filter of something else": (
        but('PathDenyFilter "(%|[[:cntrl:]])"', r"PathDenyFilter \.exe$"),
        "WARN conf.d/watchman.conf:<PathDenyFilter>: names with % or a line feed",
    ),
    "files of another": (
        more("<Directory /srv>\nUserOwner shared\n</Directory>"),
        "WARN proftpd.conf:<UserOwner>: UserOwner: files do not belong to the session's user, so"
        " watchman refuses his hooks; use the transfer log as well",
    ),
    "hidden names that are none": (
        watch(more("HiddenStores on"), exclude_defaults=False),
        "ERROR proftpd.conf:<HiddenStores>: HiddenStores calls a file '.in.a.csv.' while it is"
        " written, and watchman would take that for an upload; [watch:ftp] exclude = .in.*",
    ),
    "a prefix of its own": (
        more("HiddenStores up- .new"),
        "ERROR proftpd.conf:<HiddenStores>: HiddenStores calls a file 'up-a.csv.new' while",
    ),
    "no watch for it": (
        watch(hooks_only, proftpd=False),
        "WARN watchman.ini: no [watch:...] has proftpd = yes",
    ),
    "no log": (
        but("ExtendedLog", "#", log_only),
        "ERROR proftpd.conf:1: the main server writes no transfer log; ExtendedLog log/uploads.log"
        " WRITE watchman, in <Global>",
    ),
    "no log in a virtual host": (
        more(VHOST.format(""), but("Global>", "Limit>", log_only)),
        "ERROR proftpd.conf:<<VirtualHost>: <VirtualHost 127.0.0.1> writes no transfer log;",
    ),
    "another log": (
        but("uploads.log WRITE", "others.log WRITE", log_only),
        "ERROR conf.d/log.conf:<ExtendedLog>: it writes log/others.log, and [proftpd] transfer_log"
        " names log/uploads.log; make them the same",
    ),
    "a log that the INI file has not": (
        ini(both, proftpd=ProftpdSettings()),
        "ERROR conf.d/log.conf:<ExtendedLog>: it writes log/uploads.log, and [proftpd] transfer_log"
        " names nothing",
    ),
    "a log of something else": (
        but("WRITE watchman", "READ watchman", log_only),
        "ERROR conf.d/log.conf:<ExtendedLog>: it does not log uploads; ExtendedLog log/uploads.log",
    ),
    "a log in ProFTPD's format": (
        but("WRITE watchman", "WRITE", log_only),
        "ERROR conf.d/log.conf:<ExtendedLog>: it names no LogFormat; LogFormat watchman",
    ),
    "a format that is not there": (
        but("WRITE watchman", "WRITE watchmen", log_only),
        "ERROR conf.d/log.conf:<ExtendedLog>: there is no LogFormat watchmen;",
    ),
    "another format": (
        but("|%a|", "|%h|", log_only),
        "ERROR conf.d/log.conf:<LogFormat>: it is not the LogFormat that watchman reads; LogFormat"
        f' watchman "TOKEN|{LOG_FORMAT}", with [proftpd] token for TOKEN',
    ),
    "another token": (
        but(TOKEN, "TOKEN", log_only),
        "ERROR conf.d/log.conf:<LogFormat>: its first field is not [proftpd] token;",
    ),
    "a format in a virtual host": (
        more(VHOST.format('LogFormat a "b"'), log_only),
        "ERROR proftpd.conf:<LogFormat>: LogFormat is not allowed there, and ProFTPD does not",
    ),
    "a token that all may read": (
        mode("conf.d/log.conf", 0o644, log_only),
        "WARN conf.d/log.conf:<LogFormat>: everybody may read the token, and forge lines with it;"
        " chmod o= conf.d/log.conf",
    ),
    "a log that all may read": (
        mode("log", 0o755, log_only),
        "WARN log/uploads.log: FTP users may read the token in it, and forge lines; chmod o= ",
    ),
    "a log that all may write": (
        mode("log", 0o777, log_only),
        "ERROR log/uploads.log: everybody may write DIR/log: ProFTPD refuses to log there; chmod",
    ),
    "a parent that all may write": (
        mode(".", 0o777, log_only),
        "ERROR log/uploads.log: everybody may write DIR: anyone could put another log in its place;"
        " chmod o-w DIR",
    ),
    "no directory for the log": (
        no_log_directory,
        "ERROR log/uploads.log: ProFTPD does not make DIR/log; install -d -m 0750 -g root DIR/log",
    ),
    "a log that is a symlink": (
        log_is_a_symlink,
        "ERROR log/uploads.log: ProFTPD does not write to a symlink; make it a file",
    ),
    "an include of nothing": (
        more("Include /nothing.conf"),
        "ERROR proftpd.conf:<Include /noth>: /nothing.conf cannot be read: No such file",
    ),
    "an include of itself": (
        more("Include DIR/proftpd.conf"),
        "ERROR proftpd.conf:<Include DIR/proftpd>: proftpd.conf includes itself",
    ),
    "an end of nothing": (
        more("</Global>"),
        "ERROR proftpd.conf:<</Global>: </global> ends nothing",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_its_place_and_what_would_be_right(
    place: Place, name: str
) -> None:
    setup, expected = WRONG[name]
    setup(place)
    expected = expected.replace("DIR/", "").replace("DIR", str(place.directory))
    expected = re.sub(r"(\S+):<(.+?)>:", lambda m: f"{m[1]}:{place.line(m[1], m[2])}:", expected)
    complaints = place.complaints()
    assert any(complaint.startswith(expected) for complaint in complaints), complaints
    assert all(TOKEN not in complaint for complaint in complaints)


def test_hooks_run_below_mod_vroot(place: Place) -> None:
    more("VRootEngine on\nDefaultRoot ~\n<Anonymous /srv>\n</Anonymous>")(place)
    assert "no hook runs" not in "".join(place.complaints())


@pytest.mark.parametrize(
    "setup",
    [
        more("DefaultRoot ~", both),
        more("VRootEngine off\nVRootAlias /srv/all ~/all", both),
        more("DefaultRoot /"),
        more("HiddenStores on"),
        more("HiddenStores off"),
        more("Include DIR/none*.conf"),
        more("# ExecOptions useStdin \\"),
        more('ServerIdent on "a \\"b\\" # c" # ExecOptions useStdin'),
        more(
            "<IfModule mod_none.c>\n<IfModule mod_core.c>\nExecOnExit /x\n</IfModule>\n</IfModule>"
        ),
        more("<IfModule !mod_exec.c>\nExecOptions useStdin\n</IfModule>"),
        more("<IfDefine X>\nExecOptions useStdin\n</IfDefine>"),
        more("ExecOnCommand RETR /bin/true"),
        more(VHOST.format("ServerName sftp"), both),
        more("ExecOnExit /bin/true", log_only),
        more("ExtendedLog /var/log/proftpd/all.log ALL", both),
    ],
)
def test_what_is_right_is_not_complained_of(place: Place, setup: Setup) -> None:
    setup(place)
    assert place.complaints() == []


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ("on", ".in.a."),
        ("off", ""),
        ("tmp", ".tmp.a."),
        (".tmp.", ".tmp.a."),
        ("up- .new", "up-a.new"),
    ],
)
def test_hidden_names_are_those_that_proftpd_makes(values: str, name: str) -> None:
    assert hidden_name(tuple(values.split()), "a") == name


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("LogFormat a b", ["LogFormat", "a", "b"]),
        ('A  "b c"\t"" d', ["A", "b c", "", "d"]),
        (r'A "b \"c\" \\" d\e', ["A", 'b "c" \\', r"d\e"]),
        ('A b"c d" # e', ["A", 'b"c', 'd"']),
        ('A "b # c" d#e #f', ["A", "b # c", "d#e"]),
        ('A "b', ["A", "b"]),
        ("", []),
    ],
)
def test_words_are_those_that_proftpd_makes(line: str, words: list[str]) -> None:
    assert proftpd_file.words(line) == words


def test_an_included_directory_is_read_whole_and_in_order(place: Place) -> None:
    place.write()
    for name in ("a.conf", ".hidden", "b.conf~"):
        (place.directory / "conf.d" / name).write_text(f'ServerName "{name}"\n')
    (place.directory / "conf.d" / "directory").mkdir()
    configuration = proftpd_file.Configuration(str(place.main))
    (server,) = configuration.servers()
    names = [one.values[0] for one in server.all("ServerName")]
    assert names == ['an "FTP" server', ".hidden", "a.conf", "b.conf~"]


INI = """\
[watchman]
spool = spool
[watch:ftp]
path = {directory}/ftp
proftpd = yes
[broker:b]
url = filesystem://broker
[task:csv]
pattern = *
broker = b
task = t
"""


def told_by_the_command(place: Place, ini: str) -> list[dict[str, str]]:
    """What `check --proftpd` finds of ProFTPD that is not right."""
    (place.directory / "watchman.ini").write_text(ini.format(directory=place.directory))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "watchman", "-c", "watchman.ini"),
            *("check", "--json", "--proftpd", "proftpd.conf"),
        ],
        cwd=place.directory,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == any(one["level"] == "ERROR" for one in found)
    return [one for one in found if one["subject"] == "proftpd" and one["level"] != "OK"]


def test_the_command_says_it_all(place: Place) -> None:
    more("DefaultRoot ~")(place)
    found = told_by_the_command(place, INI)
    (wrong,) = [one for one in found if one["level"] == "ERROR"]
    assert wrong["text"].startswith(f"{place.directory}/proftpd.conf:2: DefaultRoot: no hook runs")


@pytest.mark.root
def test_the_command_reads_what_is_roots_and_looks_at_the_log_as_the_daemons_user(
    place: Place,
) -> None:
    both(place)
    (place.directory / "spool").mkdir()
    os.chown(place.directory / "spool", 65534, 65534)
    logs = place.directory / "log"
    os.chown(logs, 0, 65534)
    logs.chmod(0o750)
    (logs / "uploads.log").touch(mode=0o644)
    for file in (place.main, place.hooks, place.log):
        file.chmod(0o600)
    place.hooks.parent.chmod(0o700)
    ini = INI + f"[proftpd]\ntransfer_log = {logs}/uploads.log\ntoken = {TOKEN}\n"
    assert told_by_the_command(place, ini) == []
    logs.chmod(0o700)
    (wrong,) = told_by_the_command(place, ini)
    assert wrong["text"] == f"{logs}/uploads.log: nobody lacks x on '{logs}'; chmod g+x {logs}"


def test_a_file_that_is_not_there_is_said(place: Place) -> None:
    (complaint,) = place.complaints()
    assert (
        complaint == "ERROR proftpd.conf:1: proftpd.conf cannot be read: No such file or directory"
    )
