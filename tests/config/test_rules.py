"""Which watch and task a path falls under, and what placeholders become."""

import json
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchman.config.rules import PLACEHOLDERS, Patterns, Rules, compiled, faults, fill
from watchman.config.settings import (
    BrokerSettings,
    MoveSettings,
    Settings,
    TaskSettings,
    WatchSettings,
)

#: Names as Linux allows them, as os.fsdecode gives them.
names = (
    st.binary(min_size=1, max_size=20)
    .filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
    .map(os.fsdecode)
)
subpaths = st.lists(names, min_size=1, max_size=4).map("/".join)

CSV = TaskSettings("csv", ("*.csv",), "demo", "import_csv")


def settings(
    *watches: WatchSettings,
    tasks: tuple[TaskSettings, ...] = (CSV,),
    moves: tuple[MoveSettings, ...] = (),
) -> Settings:
    return Settings(
        file="/etc/watchman/watchman.ini",
        spool="/var/lib/watchman",
        socket="/run/watchman/watchman.sock",
        admins=(),
        log_level="INFO",
        log_file="",
        log_format="text",
        drain=10.0,
        history=0.0,
        keep_failed=0.0,
        watches={watch.name: watch for watch in watches},
        brokers={"demo": BrokerSettings("demo", "redis://")},
        tasks=tasks,
        moves={move.name: move for move in moves},
    )


FTP = WatchSettings("ftp", "/srv/ftp")
INNER = WatchSettings("inner", "/srv/ftp/inner")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/srv/ftp/a.csv", ("ftp", "a.csv")),
        ("/srv/ftp/alice/a.csv", ("ftp", "alice/a.csv")),
        ("/srv/ftp/inner/a.csv", ("inner", "a.csv")),
        ("/srv/ftp/inner", ("ftp", "inner")),
        ("//srv//ftp/./a.csv", ("ftp", "a.csv")),
        ("/srv/ftp", None),
        ("/srv/ftp/", None),
        ("/srv/ftp2/a.csv", None),
        ("/etc/passwd", None),
        ("/srv/ftp/../../etc/passwd", None),
        ("/srv/ftp/alice/../a.csv", None),
        ("srv/ftp/a.csv", None),
        ("", None),
    ],
)
def test_the_longest_watch_above_a_path_owns_it(path: str, found: tuple[str, str] | None) -> None:
    located = Rules(settings(FTP, INNER)).locate(path)
    assert (located and (located[0].name, located[1])) == found


def test_a_watch_may_be_the_root_directory() -> None:
    root = WatchSettings("root", "/")
    assert Rules(settings(root)).locate("/etc/passwd") == (root, "etc/passwd")
    assert Rules(settings(root)).locate("/") is None


@given(subpaths)
def test_every_name_that_linux_allows_is_located(subpath: str) -> None:
    assert Rules(settings(FTP)).locate(f"/srv/ftp/{subpath}") == (FTP, subpath)


@given(st.text(alphabet="/.ab", max_size=20))
def test_what_is_located_lies_below_its_watch(path: str) -> None:
    watch = WatchSettings("a", "/a")
    located = Rules(settings(watch)).locate(path)
    if located:
        whole = f"/a/{located[1]}"
        assert os.path.normpath(whole) == whole == "/" + os.path.normpath(path).lstrip("/")


@pytest.mark.parametrize(
    ("subpath", "pattern"),
    [
        ("a.csv", None),
        (".a.csv", ".*"),
        (".cache/a.csv", ".*"),
        ("alice/.cache/deep/a.csv", ".*"),
        ("a.csv.filepart", "*.filepart"),
        ("a.csv.a1b2c3d4.partial", "*.partial"),
        ("A.TMP", None),
        ("x.bak", "*.bak"),
        ("old.bak/a.csv", "*.bak"),
        ("alice/archive/a.csv", None),
        ("archive/deep/a.csv", "archive/*"),
        ("archive", None),
        (".a\nb.csv", ".*"),
    ],
)
def test_names_on_the_way_and_whole_sub_paths_are_excluded(
    subpath: str, pattern: str | None
) -> None:
    watch = replace(FTP, exclude=("*.bak", "archive/*"))
    assert Rules(settings(watch)).excluded(watch, subpath) == pattern


def test_the_default_excludes_can_be_switched_off() -> None:
    watch = replace(FTP, exclude_defaults=False)
    assert Rules(settings(watch)).excluded(watch, ".a.csv") is None


@given(subpaths)
def test_a_star_excludes_every_name(subpath: str) -> None:
    watch = replace(FTP, exclude=("*",), exclude_defaults=False)
    assert Rules(settings(watch)).excluded(watch, subpath) == "*"


def test_the_tasks_of_a_path_come_in_file_order() -> None:
    events = TaskSettings("events", ("*/events/*.csv", "*.evt"), "demo", "import_events")
    rules = Rules(settings(FTP, tasks=(events, CSV)))
    assert rules.tasks_for("/srv/ftp/events/deep/a.csv") == [events, CSV]
    assert rules.tasks_for("/srv/ftp/a.evt") == [events]
    assert rules.tasks_for("/srv/ftp/a.csv") == [CSV]
    assert rules.tasks_for("/srv/ftp/a.CSV") == []


def test_case_is_ignored_where_a_task_says_so() -> None:
    task = replace(CSV, patterns=("*/Ärger/*.csv",), ignore_case=True)
    assert Rules(settings(FTP, tasks=(task,))).tasks_for("/srv/ftp/äRGER/A.CSV") == [task]


ODD = st.text("aB/.*?[]!-\n", max_size=12)


@given(st.lists(st.tuples(ODD, st.booleans()), max_size=8), st.text("abB/.[]\n", max_size=12))
def test_patterns_asked_together_say_what_each_alone_does(
    patterns: list[tuple[str, bool]], text: str
) -> None:
    alone = [number for number, one in enumerate(patterns) if compiled(*one).match(text)]
    together = Patterns((*one, number) for number, one in enumerate(patterns))
    assert together.first(text) == (alone[0] if alone else None)


def test_of_many_patterns_the_first_that_matches_counts() -> None:
    patterns = [f"*/site{n % 700}/*.t{n % 300}" for n in range(2_000)] + ["*"]
    together = Patterns((pattern, False, n) for n, pattern in enumerate(patterns))
    assert together.first("/srv/site5/a.t5") == 5
    assert together.first("/srv/site5/a.t105") == patterns.index("*/site5/*.t105")
    assert together.first("/srv/site5/a.csv") == 2_000


@given(subpaths)
def test_every_name_that_linux_allows_is_matched(subpath: str) -> None:
    rules = Rules(settings(FTP))
    assert rules.tasks_for(f"/srv/ftp/{subpath}.csv") == [CSV]
    assert rules.tasks_for(f"/srv/ftp/{subpath}.csv\n") == []


def filled(task: TaskSettings, path: str = "/srv/data/alice/a.tar.gz", **changes: str) -> list[str]:
    values = {"original": "/srv/ftp/a", "watch": "ftp", "user": "alice", "client": "::1"} | changes
    done = fill(task, path=path, protocol="sftp", size=12, **values)
    assert (done.section, done.broker, done.name) == (task.name, task.broker, task.task)
    return done.args


def test_placeholders_are_filled_in() -> None:
    task = replace(CSV, args=[f"{{{name}}}" for name in PLACEHOLDERS])
    assert dict(zip(PLACEHOLDERS, filled(task), strict=True)) == {
        "path": "/srv/data/alice/a.tar.gz",
        "original": "/srv/ftp/a",
        "name": "a.tar.gz",
        "stem": "a.tar",
        "suffix": ".gz",
        "directory": "/srv/data/alice",
        "watch": "ftp",
        "user": "alice",
        "client": "::1",
        "protocol": "sftp",
        "size": "12",
    }


def test_placeholders_are_filled_in_at_any_depth_but_not_in_keys() -> None:
    task = replace(CSV, kwargs={"{name}": [{"of": "<{name}>"}, 1, None, True], "size": 1.5})
    done = fill(task, path="/a", original="", watch="", user="", client="", protocol="", size=0)
    assert done.kwargs == {"{name}": [{"of": "<a>"}, 1, None, True], "size": 1.5}


def test_a_task_keeps_its_options_apart_from_the_settings() -> None:
    task = replace(CSV, options={"queue": "imports"})
    done = fill(task, path="/a", original="", watch="", user="", client="", protocol="", size=0)
    done.options["queue"] = "other"
    assert task.options == {"queue": "imports"}


@given(subpaths.map("/srv/{}".format))
def test_a_path_is_filled_in_as_it_is(path: str) -> None:
    task = replace(CSV, args=["{path}", "{directory}/{stem}{suffix}", "{{{name}}}"])
    whole, parts, braces = filled(task, path)
    assert whole == parts == path
    assert braces == "{" + os.path.basename(path) + "}"
    assert os.fsencode(json.loads(json.dumps(whole))) == os.fsencode(path)


@given(st.text())
def test_any_text_comes_through_with_its_braces_doubled(text: str) -> None:
    written = text.replace("{", "{{").replace("}", "}}")
    assert list(faults([written])) == []
    assert filled(replace(CSV, args=[written])) == [text]


@given(st.text(alphabet="{}path", max_size=20))
def test_what_has_no_fault_can_be_filled_in(text: str) -> None:
    if not list(faults({"key": [text]})):
        assert isinstance(filled(replace(CSV, args=[text]))[0], str)


def test_faults_are_unknown_placeholders_and_lone_braces() -> None:
    assert list(faults(["{pth} {path!r} {}", {"{kept}": "a } b {"}])) == [
        "{pth}",
        "{path!r}",
        "{}",
        "}",
        "{",
    ]
