"""The INI file: what its options become, and everything that can be wrong with it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watchman.config import inifile, locations, options
from watchman.config.differences import differences
from watchman.config.sections import SECTIONS
from watchman.config.settings import (
    BrokerSettings,
    MoveSettings,
    Settings,
    TaskSettings,
    WatchSettings,
)
from watchman.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "watchman.ini.example"

MINIMAL = """\
[watchman]
spool = spool
[broker:demo]
url = redis://
[watch:in]
path = in
[task:csv]
pattern = *.csv
broker = demo
task = import_csv
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files beside the INI file, by default that itself; gives the path."""

    def write(content: str | bytes, name: str = "watchman.ini") -> str:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(file)

    return write


def problems(path: str) -> list[str]:
    """Every problem, without the file that each one names first."""
    with pytest.raises(ConfigError) as raised:
        inifile.load(path)
    for problem in raised.value.problems:
        assert problem.startswith(f"{path}: ")
        assert problem.isprintable()
    return [problem.removeprefix(f"{path}: ") for problem in raised.value.problems]


def minimal_with(section: str, line: str) -> str:
    """The minimal file with `line` in place of the option it sets, or added to the section."""
    option = line.split("=")[0].strip()
    if f"[{section}]" not in MINIMAL:
        return f"{MINIMAL}[{section}]\n{line}\n"
    head, tail = MINIMAL.split(f"[{section}]\n")
    body, *rest = re.split(r"^(?=\[)", tail, maxsplit=1, flags=re.MULTILINE)
    kept = "".join(x for x in body.splitlines(True) if not x.startswith(f"{option} ="))
    return f"{head}[{section}]\n{line}\n{kept}{''.join(rest)}"


def load_with(write: Write, section: str, line: str) -> Settings:
    return inifile.load(write(minimal_with(section, line)))


def problem_with(write: Write, section: str, line: str) -> str:
    """The only problem of the minimal file with `line`."""
    [problem] = problems(write(minimal_with(section, line)))
    return problem


# Finding it.


def test_the_option_goes_before_the_environment_and_that_before_etc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WATCHMAN_CONFIG", "/srv/a.ini")
    assert locations.find("b.ini") == "b.ini"
    assert locations.find(None) == "/srv/a.ini"
    monkeypatch.delenv("WATCHMAN_CONFIG")
    assert locations.find(None) == "/etc/watchman/watchman.ini"


def test_a_missing_file_says_how_to_name_one(tmp_path: Path) -> None:
    [problem] = problems(str(tmp_path / "watchman.ini"))
    assert problem == "no such file; name one with -c FILE or $WATCHMAN_CONFIG"


def test_a_directory_is_not_read(tmp_path: Path) -> None:
    assert problems(str(tmp_path)) == ["cannot be read: Is a directory"]


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "watchman.ini")
    assert problems(str(tmp_path / "watchman.ini")) == ["is not a regular file"]


def test_a_file_that_everyone_may_write_is_refused(write: Write, tmp_path: Path) -> None:
    path = write(MINIMAL)
    Path(path).chmod(0o666)
    (tmp_path / "link.ini").symlink_to(path)
    for name in (path, str(tmp_path / "link.ini")):
        assert problems(name) == ["may be written by everyone; chmod o-w it"]


@pytest.mark.root
def test_a_file_of_another_user_is_refused(write: Write, tmp_path: Path) -> None:
    path = write(MINIMAL)
    os.chown(path, 65534, -1)
    (tmp_path / "link.ini").symlink_to(path)
    for name in (path, str(tmp_path / "link.ini")):
        [problem] = problems(name)
        assert problem.startswith("belongs to user 65534")


@pytest.mark.root
def test_a_file_that_one_may_not_read_says_so(write: Write, tmp_path: Path) -> None:
    path = write(MINIMAL)
    Path(path).chmod(0o600)
    code = f"""if True:
        import os, sys
        from watchman import errors; from watchman.config import inifile
        os.chdir({str(tmp_path)!r})
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            inifile.load("watchman.ini")
        except errors.ConfigError as e:
            print(e)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLE.parent
    )
    assert done.stdout == f"{path}: cannot be read: Permission denied\n", done.stderr


# Reading it.


def test_the_least_there_can_be_is_completed_by_defaults(write: Write, tmp_path: Path) -> None:
    assert inifile.load(write(MINIMAL)) == Settings(
        file=str(tmp_path / "watchman.ini"),
        spool=str(tmp_path / "spool"),
        socket="/run/watchman/watchman.sock",
        admins=(),
        log_level="INFO",
        log_file="",
        log_format="text",
        drain=10.0,
        history=604800.0,
        keep_failed=2592000.0,
        watches={"in": WatchSettings("in", str(tmp_path / "in"))},
        brokers={"demo": BrokerSettings("demo", "redis://", {"task_serializer": "json"})},
        tasks=(TaskSettings("csv", ("*.csv",), "demo", "import_csv"),),
    )


def test_every_option_is_read(write: Write, tmp_path: Path) -> None:
    path = write(
        """\
[watchman]
spool = /var/lib/watchman/
socket = run/../watchman.sock
admins = alice, bob
    carol
log_level = debug
log_file = log/watchman.log
log_format = json
drain = 1.5
history = 2h
[broker:3di]
url = redis://localhost/0
[watch:in]
path = //srv/ftp
rec = no
auto_add = off
exclude =
    *.bak
    old, but [#]1/*
exclude_defaults = False
catch_up = 0
existing = YES
rescan = 0
[task:all]
pattern = */events/*.csv
    *.nc
ignore_case = on
broker = 3di
task = a.b
queue = a queue
exchange = e
routing_key = r
priority = 255
expires = 1d
countdown = 90s
time_limit = 1h
soft_time_limit = 15m
args = ["{path}", 1]
kwargs = {"of": {"user": "{user} {{}}"},
    "more": null}
"""
    )
    found = inifile.load(path)
    assert (found.spool, found.socket) == ("/var/lib/watchman", str(tmp_path / "watchman.sock"))
    assert found.admins == ("alice", "bob", "carol")
    assert (found.log_level, found.log_format) == ("DEBUG", "json")
    assert found.log_file == str(tmp_path / "log/watchman.log")
    assert (found.drain, found.history) == (1.5, 7200.0)
    assert found.watches == {
        "in": WatchSettings(
            name="in",
            path="/srv/ftp",
            rec=False,
            auto_add=False,
            exclude=("*.bak", "old, but [#]1/*"),
            exclude_defaults=False,
            catch_up=False,
            existing=True,
            rescan=0.0,
        )
    }
    [task] = found.tasks
    assert (task.patterns, task.ignore_case) == (("*/events/*.csv", "*.nc"), True)
    assert task.options == {
        "queue": "a queue",
        "exchange": "e",
        "routing_key": "r",
        "priority": 255,
        "expires": 86400.0,
        "countdown": 90.0,
        "time_limit": 3600.0,
        "soft_time_limit": 900.0,
    }
    assert task.args == ["{path}", 1]
    assert task.kwargs == {"of": {"user": "{user} {{}}"}, "more": None}


def test_tasks_keep_the_order_of_the_file(write: Write) -> None:
    sections = [f"[task:{n}]\npattern=*\nbroker=demo\ntask=t\n" for n in ("z", "a", "m")]
    found = inifile.load(write(MINIMAL + "".join(sections)))
    assert [task.name for task in found.tasks] == ["csv", "z", "a", "m"]


@pytest.mark.parametrize("encode", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_byte_order_mark_and_dos_newlines_do_no_harm(
    write: Write, encode: str, newline: str
) -> None:
    text = minimal_with("watch:in", "path = Überträge").replace("\n", newline)
    [watch] = inifile.load(write(text.encode(encode))).watches.values()
    assert os.path.basename(watch.path) == "Überträge"


# The example.


def test_the_example_loads_as_it_stands() -> None:
    found = inifile.load(str(EXAMPLE))
    var = EXAMPLE.parent / "var"
    assert (found.spool, found.socket) == (str(var / "spool"), str(var / "watchman.sock"))
    assert [watch.path for watch in found.watches.values()] == [str(var / "incoming")]
    assert [broker.url for broker in found.brokers.values()] == [f"filesystem://{var}/broker"]
    assert [task.task for task in found.tasks] == ["watchman.demo.worker.import_csv"]


def test_the_example_shows_every_option_there_is() -> None:
    shown: dict[str, set[str]] = {}
    kind = ""
    for line in EXAMPLE.read_text().splitlines():
        if header := re.match(r";?\[(\w+)", line):
            kind = header[1]
        elif option := re.match(r";?(\w+) =", line):
            shown.setdefault(kind, set()).add(option[1])
    for kind, known in SECTIONS.items():
        assert shown[kind] >= set(known), kind


def test_the_example_shows_the_defaults(write: Write) -> None:
    """Its options that are not set may be set, and change nothing where there is a default."""
    write("CELERY_ROUTES = {}", "celeryconfig.py")
    text = EXAMPLE.read_text()
    plain, full = (
        inifile.load(write(t)) for t in (text, re.sub(r"^;(?!\w+_file)", "", text, flags=re.M))
    )
    assert full.watches == plain.watches
    [move] = full.moves.values()
    assert (move.unique, move.mounted) == ("collision", False)
    for option in SECTIONS["watchman"]:
        assert getattr(full, option) == getattr(plain, option), option
    for option in ("ignore_case", "args", "kwargs"):
        assert getattr(full.tasks[0], option) == getattr(plain.tasks[0], option), option


# The form of the file.


def test_everything_that_is_wrong_is_said_at_once(write: Write) -> None:
    path = write(
        """\
[watchman]
spol = /var/lib/watchman
log_level = debgu
drain = 10 parsecs
[brokr:a]
url = redis://
[broker:b]
url = reddis://localhost
[watch:in]
path = /srv/ftp
exlude = *.bak
rec = maybe
[task:csv]
pattern = *.csv
broker = c
priority = 300
args = ["{pth}", "{"]
[move:in]
source = /srv/ftp
"""
    )
    assert problems(path) == [
        "[watchman] spol = /var/lib/watchman: unknown option; did you mean spool?",
        "[watchman] log_level = debgu: give one of DEBUG, INFO, WARNING, ERROR, CRITICAL;"
        " did you mean DEBUG?",
        "[watchman] drain = 10 parsecs: not a duration; give seconds, or as in 90s, 15m, 2h, 7d",
        "[watchman] spool: missing",
        "[brokr:a] is not a known section; did you mean broker?",
        "[broker:b] url = reddis://localhost: kombu has no transport reddis; did you mean redis?",
        "[watch:in] exlude = *.bak: unknown option; did you mean exclude?",
        "[watch:in] rec = maybe: give yes or no",
        "[task:csv] priority = 300: give a whole number from 0 to 255",
        '[task:csv] args = ["{pth}", "{"]: unknown placeholder {pth}; did you mean path?'
        " ({{ is a brace); a lone {; for a brace write {{",
        "[task:csv] task: missing",
        "[move:in] destination: missing",
        "[task:csv] broker = c: there is no [broker:c]; there are b",
    ]


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("[watch]", "[watch] needs a name of letters, digits and . _ -, as in [watch:example]"),
        ("[watch:../x]", "[watch:../x] needs a name"),
        ("[watch: in]", "[watch: in] needs a name"),
        ("[celery:x]", "[celery:x] has no name; write [celery]"),
        ("[DEFAULT]", "[DEFAULT] is not a known section"),
        ("[Watch:in]", "[Watch:in] is not a known section; did you mean watch?"),
        ("[proftpd:x]", "[proftpd:x] has no name; write [proftpd]"),
    ],
)
def test_a_section_that_is_none_is_a_problem(write: Write, section: str, problem: str) -> None:
    found = problems(write(f"{MINIMAL}{section}\npath = /srv/other\n"))
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("transfer_log = /var/log/uploads.log", "[proftpd] token: missing"),
        ("token = " + "x" * 65, "[proftpd] token = ***: 1 to 64 letters"),
        ("transfer_log = /a\ntoken = with%epoch", "[proftpd] token = ***: 1 to 64 letters"),
        ("token = a|b|c|d|e", "[proftpd] token = ***: 1 to 64 letters"),
        ("token = ${WATCHMAN_NONE}", "[proftpd] token = ***: "),
        (
            "transfer_log = /srv/ftp/uploads.log\ntoken = 0a4a5ab3e3ce1e1c",
            "[proftpd] transfer_log = /srv/ftp/uploads.log: lies below [watch:ftp]",
        ),
    ],
)
def test_a_transfer_log_needs_a_secret_and_a_place_of_its_own(
    write: Write, text: str, problem: str
) -> None:
    path = write(f"{MINIMAL}[watch:ftp]\npath = /srv/ftp\n[proftpd]\n{text}\n")
    (found,) = problems(path)
    assert found.startswith(problem)


def test_transfer_logs_are_several_and_relative_to_the_ini_file(write: Write) -> None:
    path = write(f"{MINIMAL}[proftpd]\ntransfer_log = /a, b\n    c\ntoken = 0a4a5ab3e3ce\n")
    directory = os.path.dirname(path)
    assert inifile.load(path).proftpd.transfer_log == ("/a", f"{directory}/b", f"{directory}/c")


def test_what_comes_twice_is_reported_with_all_the_rest(write: Write) -> None:
    path = write(f"{MINIMAL}task = other\n[watch:in]\npath = other\n[watch:in]\nrec = maybe\n")
    Path(path).write_text(Path(path).read_text() + "[task:csv]\n[watch:b]\npath = b\nrec = maybe")
    assert problems(path) == [
        "line 11: [task:csv] has task twice",
        "line 12: [watch:in] is there twice",
        "line 14: [watch:in] is there twice",
        "line 16: [task:csv] is there twice",
        "[watch:b] rec = maybe: give yes or no",
    ]


def test_lines_that_are_no_options_are_reported_with_all_the_rest(write: Write) -> None:
    path = write(f"spool = x\n[nonsense\n{MINIMAL}priority\nqueue\nexpires = never")
    assert problems(path) == [
        "line 1: stands before the first [section]",
        "line 2: stands before the first [section]",
        "line 13: neither [section] nor option = value",
        "line 14: neither [section] nor option = value",
        "[task:csv] expires = never: not a duration; give seconds, or as in 90s, 15m, 2h, 7d",
    ]


def test_a_section_that_is_not_closed_is_a_problem(write: Write) -> None:
    assert problems(write(f"[watchman\n{MINIMAL}")) == ["line 1: stands before the first [section]"]


def test_text_that_is_not_utf_8_is_a_problem_with_its_line(write: Write) -> None:
    text = minimal_with("watch:in", "path = Überträge").encode("latin-1")
    assert problems(write(text)) == ["line 6 is not UTF-8"]


def test_a_binary_file_is_a_problem(write: Write) -> None:
    assert problems(write("[watchman]\nspool = a\0b\n")) == ["holds NULs, so it is not a text file"]


def test_an_empty_file_says_what_is_needed(write: Write) -> None:
    assert problems(write("")) == [
        "[watchman] spool: missing",
        "no [watch:NAME] section: no upload would ever be seen",
        "no [task:NAME] or [move:NAME] section: watchman would do nothing with an upload",
    ]


@settings(max_examples=200, deadline=None)
@given(content=st.one_of(st.binary(max_size=100), st.text(alphabet="[]=:#; \n\tab\0", max_size=60)))
def test_no_file_makes_more_than_problems(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ini"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert problems(str(path))


@settings(deadline=None)
@given(value=st.text(max_size=40).filter(lambda text: "\0" not in text))
def test_no_value_makes_more_than_problems(
    tmp_path_factory: pytest.TempPathFactory, value: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ini"
    lines = (
        f"[{section}]\n" + "".join(f"{option} = {value}\n" for option in known)
        for section, known in SECTIONS.items()
    )
    path.write_text("".join(lines))
    assert problems(str(path))


# Comments.


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("watchman", "drain = 10s  # a while"),
        ("watchman", "log_level = INFO ; as usual"),
        ("watchman", "spool = /var/lib/watchman  # state"),
        ("watch:in", "rec = yes #all"),
        ("watch:in", "exclude = *.bak # backups"),
        ("task:csv", "pattern = *.csv  ; tables"),
        ("task:csv", "priority = 5 # high"),
        ("task:csv", "queue = imports # of csv"),
        ("task:csv", 'kwargs = {"a": 1} # one'),
        ("broker:demo", "url = redis://localhost # here"),
        ("celery", "task_ignore_result = yes # always"),
    ],
)
def test_a_comment_behind_a_value_is_a_problem(write: Write, section: str, line: str) -> None:
    assert "comment goes on a line of its own" in problem_with(write, section, line)


def test_what_only_looks_like_a_comment_is_part_of_the_value(write: Write) -> None:
    found = load_with(write, "watch:in", "path = /srv/ftp/Vendor #3").watches["in"]
    assert found.path == "/srv/ftp/Vendor #3"
    found_task = load_with(write, "task:csv", 'kwargs = {"note": "a # b"}').tasks[0]
    assert found_task.kwargs == {"note": "a # b"}


def test_a_pattern_that_would_be_dropped_as_a_comment_is_a_problem(write: Write) -> None:
    assert problem_with(write, "watch:in", "exclude =\n    [ab]*.bak\n    #*#\n    *~") == (
        "line 8: #*# would be taken for a comment; write [#]*# for a pattern, or # *# for a comment"
    )
    found = load_with(write, "watch:in", "exclude =\n    # emacs\n    [#]*#\n    *~")
    assert found.watches["in"].exclude == ("[#]*#", "*~")
    assert load_with(write, "watch:in", "exclude = #*#").watches["in"].exclude == ("#*#",)


# Single values.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("90", 90.0), ("1.5s", 1.5), ("15m", 900.0), ("2 h", 7200.0), ("7d", 604800.0)],
)
def test_durations_are_seconds_or_have_a_unit(text: str, seconds: float) -> None:
    assert options.duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1w", "1e9", "inf", "nan", "1m30s", "٣s", "9" * 99]
)
def test_what_is_no_duration_is_a_problem(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|100 years"):
        options.duration(text)


@pytest.mark.parametrize("text", ["", "2", "y", "none", "yes no"])
def test_what_is_no_boolean_is_a_problem(text: str) -> None:
    with pytest.raises(ValueError, match="give yes or no"):
        options.boolean(text)


@pytest.mark.parametrize(
    ("section", "line", "problem"),
    [
        ("watchman", "spool =", "is empty"),
        ("watchman", "spool = ~/spool", "~ is not expanded"),
        ("watchman", "spool = a\n  b", "give one line"),
        ("watchman", f"socket = /run/{'x' * 103}", "at most 107 bytes"),
        ("watchman", "admins = alice bob", "holds a space"),
        ("watchman", "log_format = jsn", "give one of text, json; did you mean json?"),
        ("watch:in", "exclude = *.bak, *.old", "one per line"),
        ("watch:in", "exclude = tmp/", "can never match"),
        ("watch:in", "exclude = /srv/ftp/tmp", "can never match"),
        ("watch:in", "mountd = yes", "did you mean mounted?"),
        ("watch:in", "mounted = maybe", "give yes or no"),
        ("task:csv", "pattern =", "is empty"),
        ("task:csv", "pattern = data/*.csv", "write */data/*.csv"),
        ("task:csv", "task = import csv", "holds a space"),
        ("task:csv", "priority = 5.0", "a whole number from 0 to 255"),
        ("task:csv", "priority = -1", "a whole number from 0 to 255"),
        ("task:csv", "prioritty = 5", "did you mean priority?"),
        ("task:csv", "expires = 0", "must be more than 0"),
        ("task:csv", "time_limit = x", "not a duration"),
        ("task:csv", "time_limit = 60\nsoft_time_limit = 61", "beyond time_limit (60 s)"),
        ("task:csv", "args = {}", "give a JSON array"),
        ("task:csv", "args = ['{path}']", "not JSON"),
        ("task:csv", f"args = {'[' * 100_000}", "not JSON"),
        ("task:csv", "args = [NaN]", "NaN is not JSON"),
        ("task:csv", 'args = ["{path!r}"]', "unknown placeholder {path!r}"),
        ("task:csv", 'kwargs = {"a": ["}"]}', "a lone }; for a brace write }}"),
        ("task:csv", "kwargs = []", "give a JSON object"),
        ("task:csv", "broker = dem", "did you mean demo?"),
    ],
)
def test_a_value_that_is_wrong_says_what_would_be_right(
    write: Write, section: str, line: str, problem: str
) -> None:
    found = problem_with(write, section, line)
    assert found.startswith(f"[{section}] ")
    assert problem in found


# Brokers.


@pytest.mark.parametrize(
    "url",
    [
        "amqp://",
        "amqp://user:p%40ss@host:5672/vhost",
        "amqps://host//",
        "rediss://:secret@host/0?ssl_cert_reqs=required",
        "amqp://one;amqp://two",
        "redis+socket:///run/redis.sock",
        "sqla+sqlite:///tmp/broker.db",
        "sentinel://one:26379;sentinel://two:26379",
    ],
)
def test_urls_that_kombu_speaks_are_kept_as_they_are(write: Write, url: str) -> None:
    assert load_with(write, "broker:demo", f"url = {url}").brokers["demo"].url == url


def test_the_embedded_broker_is_relative_to_the_ini_file(write: Write, tmp_path: Path) -> None:
    for given_url, directory in (
        ("filesystem://var/broker", f"{tmp_path}/var/broker"),
        ("filesystem:///srv/broker/", "/srv/broker"),
    ):
        found = load_with(write, "broker:demo", f"url = {given_url}").brokers["demo"]
        assert found.url == f"filesystem://{directory}"


def test_a_url_takes_from_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIZARD_PASSWORD", "${HOME}%40")
    monkeypatch.setenv("LIZARD", "amqp://one;amqp://two")
    found = load_with(write, "broker:demo", "url = amqp://u:${LIZARD_PASSWORD}@host/$v")
    assert found.brokers["demo"].url == "amqp://u:${HOME}%40@host/$v"
    found = load_with(write, "broker:demo", "url = ${LIZARD}")
    assert found.brokers["demo"].url == "amqp://one;amqp://two"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("localhost", "give a url"),
        ("ampq://localhost", "no transport ampq; did you mean amqp?"),
        ("http://localhost", "no transport http"),
        ("redis://a;localhost", "give a url"),
        ("memory://", "never leaves this process"),
        ("filesystem://", "is empty"),
        ("redis://${NOT_SET_A}/${NOT_SET_B}", "environment: NOT_SET_A, NOT_SET_B"),
        ("redis://${NOT CLOSED", "not set in the environment: NOT CLOSED"),
        ("redis://host name/0", "holds a space"),
        ("rediss://h/0?ssl_cert_reqs=requird", "is one of required, optional, none"),
        ("redis://h:1/0?port=2", "an option after ? repeats a part of the url"),
    ],
)
def test_a_url_that_is_wrong_says_what_would_be_right(write: Write, url: str, problem: str) -> None:
    assert problem in problem_with(write, "broker:demo", f"url = {url}")


@pytest.mark.parametrize(
    "line",
    [
        "url = amqp://user:hush/hush@host/",
        "url = amqp:/user:hush@hush@host",
        "redis_password = hush # hush",
        'broker_transport_options = {"sentinel_kwargs": {"password": "hush"}',
    ],
)
def test_a_problem_does_not_tell_secrets(write: Write, line: str) -> None:
    problem = problem_with(write, "broker:demo", line)
    assert "hush" not in problem
    assert "***" in problem


# Secrets in files, as systemd's credentials are.

BROKER_FILE = MINIMAL.replace("url = redis://", "url_file = ${CREDENTIALS}/broker")


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "credentials"
    directory.mkdir(mode=0o500)
    monkeypatch.setenv("CREDENTIALS", str(directory))
    return directory


def put(file: Path, content: bytes, mode: int = 0o400) -> None:
    file.write_bytes(content)
    file.chmod(mode)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_broker_and_a_token_may_stand_in_files(
    write: Write, credentials: Path, end: bytes
) -> None:
    put(credentials / "broker", b"amqp://me:hu${sh}@a/;amqp://me:hush@b/" + end)
    put(credentials / "token", b"0a4a5ab3e3ce" + end)
    path = write(f"{BROKER_FILE}[proftpd]\ntransfer_log = log\ntoken_file = credentials/token\n")
    found = inifile.load(path)
    assert found.brokers["demo"].url == "amqp://me:hu${sh}@a/;amqp://me:hush@b/"
    assert found.proftpd.token == "0a4a5ab3e3ce"
    Path(path).chmod(0o644)
    assert inifile.load(path).exposed == ()


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (b"redis://:hush@a/", 0o444, "{file} may be read by everyone; chmod o= it"),
        (b"redis://:hush@a/", 0o402, "{file} may be written by everyone; chmod o-w it"),
        (b"hush", 0o400, "give a url, as amqp://"),
        (b"me:hush@a://b", 0o400, "give a url, as amqp://"),
        (b"redis://:hush\n@a/", 0o400, "give one line"),
        (b"redis://:hush@a:hush/", 0o400, "host and port cannot be read"),
        (b"redis://:hush\xff@a/", 0o400, "{file} is not UTF-8"),
        (b"", 0o400, "is empty"),
        (None, 0, "{file}: No such file or directory"),
    ],
)
def test_a_file_that_holds_no_secret_says_so_and_does_not_tell_it(
    write: Write, credentials: Path, content: bytes | None, mode: int, problem: str
) -> None:
    file = credentials / "broker"
    if content is not None:
        put(file, content, mode)
    [found] = problems(write(BROKER_FILE))
    right = problem.format(file=file)
    assert found.startswith(f"[broker:demo] url_file = ${{CREDENTIALS}}/broker: {right}")
    assert "hush" not in found


def test_a_secret_stands_in_one_place(write: Write, credentials: Path) -> None:
    put(credentials / "broker", b"redis://a/")
    both = BROKER_FILE.replace("url_file", "url = redis://b/\nurl_file")
    assert problems(write(both)) == [
        "[broker:demo] url_file: url is set as well; keep one",
    ]


def test_a_missing_url_is_still_missed(write: Write) -> None:
    neither = "".join(line for line in BROKER_FILE.splitlines(True) if "url" not in line)
    assert problems(write(neither)) == ["[broker:demo] url: missing"]


def test_another_content_of_a_file_is_a_change(write: Write, credentials: Path) -> None:
    put(credentials / "broker", b"redis://a/")
    before = inifile.load(path := write(BROKER_FILE))
    (credentials / "broker").unlink()
    put(credentials / "broker", b"redis://b/")
    assert list(differences(before, inifile.load(path))) == ["broker:demo changed"]


# Celery's settings.


def test_celery_settings_are_typed_as_celery_does(write: Write) -> None:
    path = write(
        f"""\
{MINIMAL}[celery]
task_serializer = yaml
task_compression = gzip
broker_connection_timeout = 2.5
broker_pool_limit = 3
task_ignore_result = on
task_routes = {{"a.*": {{"queue": "q"}}}}
accept_content = json, yaml
imports = ["a"]
broker_transport_options = {{"max_retries": 2}}
task_default_priority = 3
task_default_delivery_mode = transient
broker_use_ssl = {{"ca_certs": "/etc/ssl/ca.pem"}}
security_key_password = hush
"""
    )
    assert inifile.load(path).brokers["demo"].celery == {
        "task_serializer": "yaml",
        "task_compression": "gzip",
        "broker_connection_timeout": 2.5,
        "broker_pool_limit": 3,
        "task_ignore_result": True,
        "task_routes": {"a.*": {"queue": "q"}},
        "accept_content": ["json", "yaml"],
        "imports": ["a"],
        "broker_transport_options": {"max_retries": 2},
        "task_default_priority": 3,
        "task_default_delivery_mode": 1,
        "broker_use_ssl": {"ca_certs": "/etc/ssl/ca.pem"},
        "security_key_password": b"hush",
    }


def test_a_router_may_be_named(write: Write) -> None:
    found = load_with(write, "celery", "task_routes = routers.route")
    assert found.brokers["demo"].celery["task_routes"] == "routers.route"


def test_queues_are_declared_unless_a_broker_says_no(write: Write) -> None:
    text = MINIMAL + "[broker:theirs]\nurl = amqp://\ndeclare = no\n"
    brokers = inifile.load(write(text)).brokers
    assert {name: broker.declare for name, broker in brokers.items()} == {
        "demo": True,
        "theirs": False,
    }
    [problem] = problems(write(text.replace("= no", "= perhaps")))
    assert problem.startswith("[broker:theirs] declare = perhaps: ")


def test_a_brokers_settings_go_before_those_of_all(write: Write) -> None:
    write("task_default_queue = 'file'\ntask_compression = 'file'\ntask_protocol = 1", "all.py")
    write("TASK_DEFAULT_QUEUE = 'own file'\nCELERY_DEFAULT_EXCHANGE = 'own file'", "own.py")
    path = write(
        f"""\
[celery]
config = all.py
task_compression = option
task_default_exchange = option
{MINIMAL}[broker:own]
url = amqp://
config = own.py
task_default_exchange = own option
"""
    )
    brokers = inifile.load(path).brokers
    assert brokers["demo"].celery == {
        "task_serializer": "json",
        "task_default_queue": "file",
        "task_compression": "option",
        "task_default_exchange": "option",
        "task_protocol": 1,
    }
    assert brokers["own"].celery == {
        "task_serializer": "json",
        "task_default_queue": "own file",
        "task_compression": "option",
        "task_default_exchange": "own option",
        "task_protocol": 1,
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("broker_url = redis://", "url in [broker:NAME]"),
        ("broker_read_url = redis://", "url in [broker:NAME]"),
        ("BROKER_HOST = localhost", "url in [broker:NAME]"),
        ("celery_broker_url = localhost", "url in [broker:NAME]"),
        ("CELERY_ROUTES = {}", "write task_routes"),
        ("task_rutes = {}", "did you mean task_routes?"),
        ("confg = celeryconfig.py", "did you mean config?"),
        ("nothing_like_it = 1", "nor a setting of Celery's"),
        ("broker_pool_limit = many", "give a whole number"),
        ("broker_connection_timeout = nan", "give a number"),
        ("task_ignore_result = 2", "give yes or no"),
        ("task_routes = {", "not JSON"),
        ("broker_transport_options = []", "give a JSON object"),
        ("task_default_priority = 256", "from 0 to 255"),
        ("task_default_delivery_mode = 3", "give one of 1, transient"),
        ("task_serializer =", "is empty"),
    ],
)
def test_a_celery_setting_that_is_wrong_says_what_would_be_right(
    write: Write, line: str, problem: str
) -> None:
    for section in ("celery", "broker:demo"):
        assert problem in problem_with(write, section, line)


# Celery's settings files.


def celery(write: Write, name: str) -> dict[str, Any]:
    return dict(load_with(write, "celery", f"config = {name}").brokers["demo"].celery)


ROUTES = "{'lizard_nxt.tasks.import_raster_task': {'queue': 'single_worker'}}"


@pytest.mark.parametrize("name", ["task_routes", "TASK_ROUTES", "CELERY_ROUTES"])
def test_a_settings_file_may_be_upper_or_lowercase(write: Write, name: str) -> None:
    write(f"{name} = {ROUTES}", "celeryconfig.py")
    expected = {"lizard_nxt.tasks.import_raster_task": {"queue": "single_worker"}}
    assert celery(write, "celeryconfig.py")["task_routes"] == expected
    assert celery(write, "celeryconfig")["task_routes"] == expected


def test_a_settings_file_keeps_functions_and_objects(write: Write) -> None:
    write(
        """\
import os as timezone
from kombu import Queue
from sibling import QUEUE
def route(name, *args, **kwargs):
    return {"queue": QUEUE}
CELERY_ROUTES = (route,)
CELERY_QUEUES = (Queue("a"), Queue("b"))
BROKER_URL = "amqp://the/workers"
HELPER = 1
""",
        "celeryconfig.py",
    )
    write("QUEUE = 'from the sibling'", "sibling.py")
    path, modules = sys.path[:], set(sys.modules)
    found = celery(write, "celeryconfig.py")
    assert set(found) == {"task_serializer", "task_routes", "task_queues"}
    [route] = found["task_routes"]
    assert route("any") == {"queue": "from the sibling"}
    assert [queue.name for queue in found["task_queues"]] == ["a", "b"]
    assert sys.path == path
    assert not {"celeryconfig", "sibling"} & (set(sys.modules) - modules)


def test_a_settings_file_that_has_changed_is_read_again(write: Write, tmp_path: Path) -> None:
    for name in ("celeryconfig.py", "celeryconfig"):
        for queue in ("a", "b"):
            write("from sibling import *", "celeryconfig.py")
            write(f"task_default_queue = '{queue}'", "sibling.py")
            assert celery(write, name)["task_default_queue"] == queue
    assert not (tmp_path / "__pycache__").exists()


def test_brokers_may_have_settings_files_of_one_name(write: Write) -> None:
    for directory in ("one", "two"):
        write(f"task_default_queue = '{directory}'", f"{directory}/sibling.py")
        write("from sibling import *", f"{directory}/celeryconfig.py")
    for directory in ("one", "two"):
        assert celery(write, f"{directory}/celeryconfig.py")["task_default_queue"] == directory


def test_a_module_of_the_ini_files_directory_goes_before_any_other(write: Write) -> None:
    write("task_default_queue = 'ours'", "json.py")
    import json

    assert celery(write, "json")["task_default_queue"] == "ours"
    assert sys.modules["json"] is json


def test_a_module_may_lie_in_a_package_or_on_pythons_path(write: Write) -> None:
    write("", "package/__init__.py")
    write("from .sibling import *", "package/settings.py")
    write("task_default_queue = 'ours'", "package/sibling.py")
    assert celery(write, "package.settings")["task_default_queue"] == "ours"
    assert "package" not in sys.modules
    assert celery(write, "celery.app.builtins") == {"task_serializer": "json"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("task_protocol = (", "celeryconfig.py:1: '(' was never closed"),
        ("\ntask_protocol = wrong", "celeryconfig.py:2: NameError: name 'wrong' is not defined"),
        ("import json\njson.loads('')", "celeryconfig.py:2: JSONDecodeError: "),
        ("import no_such_module", "celeryconfig.py:1: ModuleNotFoundError: No module named"),
        ("import broken", "broken.py:3: ZeroDivisionError: "),
        ("import sys\nsys.exit('bye')", "celeryconfig.py:2: SystemExit: bye"),
        ("raise Exception('a\\nb')", "celeryconfig.py:1: Exception: a b"),
        ("a\0b", "celeryconfig.py"),
        ("CELERY_ROUTES = 1\ntask_routes = 1", "CELERY_ROUTES and task_routes are one setting"),
    ],
)
def test_an_error_in_a_settings_file_is_a_problem_with_its_line(
    write: Write, content: str, problem: str
) -> None:
    write(content, "celeryconfig.py")
    write("\n\n1 / 0", "broken.py")
    for name in ("celeryconfig.py", "celeryconfig"):
        assert problem in problem_with(write, "celery", f"config = {name}")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.py", "missing.py: No such file or directory"),
        ("./", "Is a directory"),
        ("no_such_module", "no module no_such_module in "),
        ("no_such.module", "no module no_such in "),
        ("celery.no_such", "no module celery.no_such in "),
        ("not-a-module", "the path of a Python file (celeryconfig.py) or the name of a module"),
        ("", "the path of a Python file"),
    ],
)
def test_a_settings_file_that_is_not_there_is_a_problem(
    write: Write, name: str, problem: str
) -> None:
    assert problem in problem_with(write, "broker:demo", f"config = {name}")


def test_a_settings_file_that_everyone_may_write_is_not_run(write: Write) -> None:
    Path(write("raise SystemExit", "celeryconfig.py")).chmod(0o666)
    for name in ("celeryconfig.py", "celeryconfig"):
        problem = problem_with(write, "celery", f"config = {name}")
        assert "celeryconfig.py may be written by everyone" in problem


# Between sections.


def test_a_directory_is_watched_once(write: Write, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("in")
    for path in ("in", "x/../in/", "link"):
        found = problems(write(f"{MINIMAL}[watch:two]\npath = {path}\n"))
        assert len(found) == 1
        assert found[0].endswith("is the directory of [watch:in] already")


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("watchman", "spool = in/spool"),
        ("watchman", "spool = in"),
        ("watchman", "spool = link/spool"),
        ("watchman", "log_file = in/watchman.log"),
        ("broker:demo", "url = redis://;filesystem://in/broker"),
    ],
)
def test_what_the_daemon_writes_lies_below_no_watch(
    write: Write, tmp_path: Path, section: str, line: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    assert "lies below [watch:in]" in problem_with(write, section, line)


def test_a_watch_may_lie_below_another_and_beside_the_spool(write: Write) -> None:
    found = inifile.load(
        write(f"{MINIMAL}[watch:inner]\npath = in/inner\n[watch:c]\npath = spool2")
    )
    assert set(found.watches) == {"in", "inner", "c"}


def test_a_task_without_any_broker_is_a_problem(write: Write) -> None:
    text = MINIMAL.replace("[broker:demo]\nurl = redis://\n", "")
    assert problems(write(text)) == [
        "[task:csv] broker = demo: there is no [broker:demo]; there is none yet"
    ]


# Moves.

MOVE = """\
[move:storage]
source = in
destination = storage
"""


def move_problems(write: Write, text: str) -> list[str]:
    return problems(write(MINIMAL + text))


def test_a_move_is_completed_by_defaults(write: Write, tmp_path: Path) -> None:
    found = inifile.load(write(MINIMAL + MOVE)).moves
    storage = MoveSettings("storage", str(tmp_path / "in"), str(tmp_path / "storage"))
    assert found == {"storage": storage}
    assert (storage.unique, storage.mounted, storage.folders) == ("collision", False, ())
    assert storage.mode is storage.directory_mode is storage.owner is storage.group is None


def test_every_option_of_a_move_is_read(write: Write) -> None:
    text = """\
[move:storage]
source = /srv/ftp
destination = /mnt/storage
unique = always
folders = accepted, rejected
mounted = yes
mode = 0640
directory_mode = 2750
owner = root
group = 1234
"""
    found = inifile.load(write(minimal_with("watch:in", "path = /srv/ftp") + text)).moves
    assert found["storage"] == MoveSettings(
        name="storage",
        source="/srv/ftp",
        destination="/mnt/storage",
        unique="always",
        folders=("accepted", "rejected"),
        mounted=True,
        mode=0o640,
        directory_mode=0o2750,
        owner=0,
        group=1234,
    )


def test_a_move_needs_no_task(write: Write) -> None:
    text = "[watchman]\nspool = spool\n[watch:in]\npath = in\n"
    found = inifile.load(write(text + MOVE))
    assert (found.tasks, list(found.moves)) == ((), ["storage"])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("unique = sometimes", "give one of collision, always"),
        ("folders = a/b", "a/b is a path; give names, as in accepted, rejected"),
        ("folders = ..", ".. is a path"),
        ("mode = 640x", "give permissions in octal, as in 0640"),
        ("mode = rw-r-----", "give permissions in octal, as in 0640"),
        ("directory_mode = 99999", "give permissions in octal, as in 0640"),
        ("owner = nobody-of-that-name", "there is no user nobody-of-that-name"),
        ("group = nobody-of-that-name", "there is no group nobody-of-that-name"),
        ("destinaton = /x", "did you mean destination?"),
    ],
)
def test_a_value_of_a_move_that_is_wrong_says_what_would_be_right(
    write: Write, line: str, problem: str
) -> None:
    [found] = move_problems(write, f"{MOVE}{line}\n")
    assert problem in found


@pytest.mark.parametrize(
    ("source", "destination", "problem"),
    [
        ("in", "in", "destination = {tmp}/in: is the source: give another directory"),
        ("in", "link", "destination = {tmp}/link: is the source: give another directory"),
        ("other", "storage", "source = {tmp}/other: is below no watch"),
        ("link/a", "storage", "lies below [watch:in] over a symlink; write {tmp}/in/a"),
        ("in/a", "link/b", "lies below [watch:in] over a symlink; write {tmp}/in/b"),
        ("in/a", "in", "lies above [watch:in], but no file below a destination is an upload"),
        ("in", ".", "lies above [watch:in], but no file below a destination is an upload"),
    ],
)
def test_source_and_destination_must_go_together(
    write: Write, tmp_path: Path, source: str, destination: str, problem: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    text = f"[move:m]\nsource = {source}\ndestination = {destination}\n"
    assert any(
        problem.replace("{tmp}", str(tmp_path)) in found for found in move_problems(write, text)
    )


def test_a_source_below_another_destination_is_a_problem(write: Write) -> None:
    text = "[move:a]\nsource = in\ndestination = in/done\n"
    text += "[move:b]\nsource = in/done/b\ndestination = elsewhere\n"
    [found] = move_problems(write, text)
    assert "[move:b] source" in found
    assert "lies below the destination of [move:a], where no file is an upload" in found


def test_a_source_is_moved_to_one_place(write: Write) -> None:
    [found] = move_problems(write, MOVE + MOVE.replace("storage", "other"))
    assert "is the source of [move:storage] already" in found


@pytest.mark.parametrize("source", ["in", "in/a", "."])
def test_a_source_may_be_a_watch_or_lie_below_or_above_one(write: Write, source: str) -> None:
    text = f"[move:m]\nsource = {source}\ndestination = /mnt/storage\n"
    assert inifile.load(write(MINIMAL + text)).moves


def test_a_destination_may_lie_below_a_watch(write: Write) -> None:
    assert inifile.load(write(MINIMAL + MOVE.replace("= storage", "= in/done"))).moves
