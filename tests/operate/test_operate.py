"""An operator's hand: pause, resume, retry, drop and resubmit, with real daemons and brokers."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.brokers import RedisServer
from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually
from watchman.errors import RequestRefused
from watchman.operate.overview import Health

INI = """
[broker:b]
url = filesystem://broker
[watch:in]
path = {tmp}/in
[watch:other]
path = {tmp}/other
[task:csv]
pattern = *.csv
broker = b
task = tests.record
[task:nc]
pattern = *.nc
broker = b
task = tests.record
"""

Start = Callable[..., Daemon]


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    return tmp_path / "in"


@pytest.fixture
def away(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that is not running."""
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    redis.kill()
    yield redis
    redis.stop()


def sent(tmp_path: Path) -> list[str]:
    """The names of the files whose tasks were sent, in that order."""
    return [os.path.basename(task["args"][0]) for task in published(tmp_path / "broker")]


def ids(daemon: Daemon) -> dict[str, str]:
    """The upload ids in the queue, by the file's name."""
    return {os.path.basename(row["path"]): row["id"] for row in daemon.queue() if row["id"]}


def write(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_text(name)


def did(daemon: Daemon, *arguments: str) -> str:
    """What a command that must succeed printed."""
    done = daemon.run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def kill(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()


@pytest.mark.parametrize("name", ["watch:in", "task:csv", "broker:b", None])
def test_what_is_paused_waits_over_a_kill_until_it_is_resumed(
    tmp_path: Path, incoming: Path, start_watchman: Start, name: str | None
) -> None:
    daemon = start_watchman(INI)
    given = [name] if name else []
    assert did(daemon, "pause", *given) == f"paused {name or 'all'}\n"
    write(incoming, "a.csv", "b.csv")
    eventually(lambda: len(daemon.queue()) == 2)
    kill(daemon)
    write(incoming, "c.csv")
    eventually(lambda: len(daemon.queue()) == 3)
    eventually(lambda: {row["reason"] for row in daemon.queue()} == {f"paused: {name or 'all'}"})
    assert {row["state"] for row in daemon.queue()} == {"waiting"}
    assert sent(tmp_path) == []
    status = daemon.status()
    assert status["healthy"]
    assert [pause["name"] for pause in status["paused"]] == [name or "all"]
    shown = did(daemon, "status").splitlines()
    assert shown[0].startswith(f"PAUSED {name or 'all'} since ")
    assert shown[0].endswith("3 uploads held back")
    assert shown[1].startswith("healthy since ")
    assert did(daemon, "resume", *given) == "nothing is paused\n"
    eventually(lambda: sorted(sent(tmp_path)) == ["a.csv", "b.csv", "c.csv"])
    eventually(lambda: daemon.queue() == [])
    kill(daemon)
    assert daemon.status()["paused"] == []


def test_a_pause_holds_back_nothing_else(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    did(daemon, "pause", "watch:in")
    did(daemon, "pause", "task:nc")
    write(incoming, "held.csv", "held.nc")
    write(tmp_path / "other", "also.nc", "sent.csv")
    eventually(lambda: sent(tmp_path) == ["sent.csv"])
    eventually(lambda: len(daemon.queue()) == 3)
    assert did(daemon, "resume", "watch:in") == "paused task:nc\n"
    eventually(lambda: sorted(sent(tmp_path)) == ["held.csv", "sent.csv"])
    eventually(lambda: {row["reason"] for row in daemon.queue()} == {"paused: task:nc"})
    did(daemon, "resume")
    eventually(lambda: len(sent(tmp_path)) == 4)


def test_a_command_about_what_is_not_there_says_what_is(
    incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    for command, name, known in (
        ("pause", "watch:inn", "watch:in, watch:other, task:csv, task:nc, broker:b"),
        ("pause", "in", "watch:in"),
        ("resume", "watch:in", "nothing is paused"),
        ("resume", "", "nothing is paused"),
        ("retry", "--broker=bb", "no broker is called bb; there are: b"),
        ("drop", "--broker=bb", "no broker is called bb; there are: b"),
    ):
        done = daemon.run(command, *([name] if name else []))
        assert done.returncode == 1
        assert known in done.stderr
        assert len(done.stderr.splitlines()) == 1
    for command in ("retry", "drop"):
        assert did(daemon, command, "--broker=b") == f"nothing to {command}\n"


def test_a_file_of_pauses_that_cannot_be_read_is_set_aside(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI, started=False)
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "paused.json").write_text("[1, 2")
    daemon.start()
    assert daemon.status()["paused"] == []
    assert "Nothing is paused" in daemon.log
    assert (tmp_path / "spool" / "paused.json.bad").exists()


def broken(ini: str) -> str:
    """A task for *.bad whose arguments no serializer takes: its uploads fail."""
    return f"""
[celery]
task_serializer = json
accept_content = json
{ini}
[task:bad]
pattern = *.bad
broker = b
task = tests.record
kwargs = {{"path": "{{path}}"}}
priority = 5
routing_key = {"k" * 300}
exchange = x
"""


def test_a_failed_upload_is_tried_again_under_its_id_and_the_task_of_today(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(broken(INI))
    write(incoming, "one.bad", "two.bad")
    eventually(lambda: [row["state"] for row in daemon.queue()] == ["failed"] * 2)
    failed = ids(daemon)
    daemon.stop()
    daemon.configure(INI + "[task:bad]\npattern = *.bad\nbroker = b\ntask = tests.record\n")
    daemon.start()
    did(daemon, "pause")
    assert did(daemon, "retry", failed["one.bad"]) == (
        f"retried {failed['one.bad']} {incoming / 'one.bad'}\n"
    )
    kill(daemon)
    states = {os.path.basename(row["path"]): row["state"] for row in daemon.queue()}
    assert states == {"one.bad": "waiting", "two.bad": "failed"}
    did(daemon, "resume")
    eventually(lambda: sent(tmp_path) == ["one.bad"])
    assert [task["id"] for task in published(tmp_path / "broker")] == [failed["one.bad"]]
    did(daemon, "retry", "--failed", "--broker", "b", "--path", "*.bad")
    eventually(lambda: daemon.queue() == [])
    assert {task["id"] for task in published(tmp_path / "broker")} == set(failed.values())


def test_a_failed_upload_whose_file_has_another_name_is_sent_by_that(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(broken(INI))
    write(incoming, "a.bad")
    eventually(lambda: [row["state"] for row in daemon.queue()] == ["failed"])
    failed = ids(daemon)["a.bad"]
    (incoming / "a.bad").rename(incoming / "a.csv")
    done = daemon.run("retry", "--failed")
    assert (done.returncode, done.stdout) == (1, "")
    assert "its file is not there any more" in done.stderr
    assert daemon.send(str(incoming / "a.csv")).returncode == 0
    eventually(lambda: sent(tmp_path) == ["a.csv"])
    assert did(daemon, "drop", failed) == f"dropped {failed} {incoming / 'a.bad'}\n"
    assert daemon.queue() == []


def test_dropped_uploads_are_not_sent_also_after_a_kill_and_their_story_stays(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(broken(INI))
    write(incoming, "x.bad")
    eventually(lambda: [row["state"] for row in daemon.queue()] == ["failed"])
    did(daemon, "pause", "task:csv")
    write(incoming, "a.csv", "b.csv", "c.csv", "d.csv")
    named = eventually(lambda: len(found := ids(daemon)) == 5 and found)
    dropped = did(daemon, "drop", named["a.csv"], named["x.bad"])
    assert set(dropped.splitlines()) == {
        f"dropped {named[name]} {incoming / name}" for name in ("a.csv", "x.bad")
    }
    did(daemon, "drop", "--path", "*/b.csv")
    kill(daemon)
    assert sorted(ids(daemon)) == ["c.csv", "d.csv"]
    did(daemon, "resume")
    eventually(lambda: sorted(sent(tmp_path)) == ["c.csv", "d.csv"])
    eventually(lambda: daemon.queue() == [])
    assert "dropped" in did(daemon, "explain", named["a.csv"])
    [scanned] = daemon.ask("status")
    assert scanned["uploads"]["failed"] == 0


def test_what_is_unknown_or_done_is_refused_and_the_rest_is_done(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    write(incoming, "done.csv")
    eventually(lambda: sent(tmp_path) == ["done.csv"])
    [done] = published(tmp_path / "broker")
    did(daemon, "pause", "watch:in")
    write(incoming, "a.csv")
    named = eventually(lambda: ids(daemon))
    for command in ("retry", "drop"):
        answer = daemon.run(command, done["id"], "nonsense", named["a.csv"])
        assert answer.returncode == 1
        complaints = answer.stderr.splitlines()
        assert any("nonsense" in line for line in complaints)
        assert any(done["id"] in line for line in complaints)
    assert [line.split()[0] for line in answer.stdout.splitlines()] == ["dropped"]
    assert daemon.queue() == []


def test_a_retry_of_what_is_paused_says_to_resume(incoming: Path, start_watchman: Start) -> None:
    daemon = start_watchman(INI)
    did(daemon, "pause", "watch:in")
    write(incoming, "a.csv")
    named = eventually(lambda: ids(daemon))
    answer = daemon.run("retry", named["a.csv"])
    assert answer.returncode == 1
    assert "watch:in is paused" in answer.stderr


def test_an_empty_name_is_not_taken_for_all_there_are(
    incoming: Path, start_watchman: Start
) -> None:
    """As a shell's variable that is not set."""
    daemon = start_watchman(INI)
    did(daemon, "pause", "watch:in")
    write(incoming, "a.csv")
    eventually(lambda: ids(daemon))
    for arguments in (
        ["drop", " "],
        ["drop", "--broker=b", "--path="],
        ["drop", "--path=*", "--broker="],
        ["pause", ""],
        ["resume", ""],
    ):
        answer = daemon.run(*arguments)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert "empty" in answer.stderr
    with pytest.raises(RequestRefused, match="no id"):
        daemon.ask("drop", ids=" ")
    assert list(ids(daemon)) == ["a.csv"]
    assert [pause["name"] for pause in daemon.status()["paused"]] == ["watch:in"]


@pytest.mark.parametrize(
    "arguments", [["retry"], ["drop"], ["drop", "id", "--failed"], ["drop", "--all"]]
)
def test_wrong_use_is_one_line_and_2(
    incoming: Path, start_watchman: Start, arguments: list[str]
) -> None:
    daemon = start_watchman(INI, started=False)
    answer = daemon.run(*arguments)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1


def test_a_broker_that_is_down_is_tried_at_once_by_a_retry(
    tmp_path: Path, incoming: Path, start_watchman: Start, away: RedisServer
) -> None:
    daemon = start_watchman(INI.replace("filesystem://broker", away.url))
    write(incoming, "a.csv")
    # Until the next try is far enough away that only the retry can have been it.
    row = eventually(
        lambda: next((r for r in daemon.queue() if r["attempts"] >= 5), None), timeout=40
    )
    assert row["state"] == "deferred"
    assert "refused" in row["reason"]
    status = daemon.status()
    assert status["uploads"]["deferred"] == 1
    assert (status["healthy"], status["cures"]) == (False, ["watchman check --brokers"])
    assert status["health_since"] > status["since"]
    away.start()
    assert did(daemon, "retry", "--all").startswith("retried ")
    eventually(lambda: daemon.queue() == [], timeout=3)
    assert away.task_ids("celery") == [row["id"]]
    assert daemon.status()["health_since"] > status["health_since"]
    [told] = json.loads(did(daemon, "explain", "--json", str(incoming / "a.csv")))["uploads"]
    *refused, taken = told["tries"]
    assert ("refused" in refused[0]["answer"], refused[0]["number"]) == (True, 1)
    assert (taken["answer"], told["queue"]) == ("taken", "celery")
    assert taken["number"] > row["attempts"]
    assert "queue 'celery'" in did(daemon, "explain", told["id"][:10])


def test_health_is_dated_when_it_changes() -> None:
    now = 5.0
    health = Health(1.0, lambda: now)
    assert health.note(True) == 1.0
    assert health.note(False) == 5.0
    now = 6.0
    assert health.note(False) == 5.0
    assert health.note(True) == 6.0


def test_thousands_that_a_dead_broker_has_in_hand_are_dropped(
    tmp_path: Path, incoming: Path, start_watchman: Start, away: RedisServer
) -> None:
    daemon = start_watchman(INI.replace("filesystem://broker", away.url))
    write(incoming, *(f"{n}.csv" for n in range(3000)))
    eventually(lambda: len(daemon.queue()) == 3000, timeout=60)
    named = ids(daemon)
    some = [named[f"{n}.csv"] for n in range(1500)]
    assert len(did(daemon, "drop", *some).splitlines()) == 1500
    assert len(daemon.queue()) == 1500
    lines = did(daemon, "drop", "--json", "--broker", "b").splitlines()
    assert {json.loads(line)["state"] for line in lines} == {"dropped"}
    kill(daemon)
    assert daemon.queue() == []
    away.start()
    write(incoming, "last.csv")
    eventually(lambda: away.length("celery") == 1, timeout=30)


def test_the_queue_lists_the_first_when_asked_to(incoming: Path, start_watchman: Start) -> None:
    daemon = start_watchman(INI)
    did(daemon, "pause")
    write(incoming, *(f"{n}.csv" for n in range(9)))
    eventually(lambda: len(daemon.queue()) == 9)
    assert len(did(daemon, "queue", "--json", "--limit", "4").splitlines()) == 4
    shown = did(daemon, "queue", "--limit", "4").splitlines()
    assert (len(shown), shown[-1]) == (4 + 4, "9 waiting")
    for limit in ("0", "-1", "x"):
        answer = daemon.run("queue", f"--limit={limit}")
        assert answer.returncode == 2
        assert f"{limit!r} is not a number from 1 on" in answer.stderr


def test_the_queue_is_in_groups_and_takes_the_filters_of_retry(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(broken(INI))
    write(incoming, *(f"{n}.bad" for n in range(3)))
    eventually(lambda: [row["state"] for row in daemon.queue()] == ["failed"] * 3)
    did(daemon, "pause", "watch:in")
    for n in range(60):
        write(incoming, f"{n:02}.csv")
        eventually(lambda n=n: any(row["path"].endswith(f"/{n:02}.csv") for row in daemon.queue()))
    eventually(lambda: {row["place"] for row in daemon.queue()} == {"", "broker:b"})
    named = ids(daemon)
    shown = did(daemon, "queue").splitlines()
    assert shown[0].startswith("failed: 3 uploads, oldest ")
    assert shown[1].startswith("  why    ValueError: longer than 255 bytes")
    assert shown[5].startswith("waiting: 60 uploads for broker b, oldest ")
    assert shown[6] == "  why    paused: watch:in"
    assert shown[7] == f"  first  {named['00.csv']} {incoming}/00.csv"
    assert shown[8] == f"  last   {named['59.csv']} {incoming}/59.csv"
    assert shown[-1] == "3 failed, 60 waiting"
    listed = did(daemon, "queue", "--all").splitlines()
    assert sum(str(incoming) in line for line in listed) == 63
    for filters, counts in (
        (["--failed"], "3 failed"),
        (["--deferred"], "nothing waits, nothing has failed"),
        (["--path", "*/0?.csv"], "10 waiting"),
        (["--failed", "--path", "*.csv"], "nothing waits, nothing has failed"),
        (["--broker", "b"], "3 failed, 60 waiting"),
        ([named["00.csv"], named["0.bad"][:13]], "1 failed, 1 waiting"),
    ):
        assert did(daemon, "queue", *filters).splitlines()[-1] == counts
        assert did(daemon, "queue", "--all", *filters).splitlines()[-1] == counts
        listed = did(daemon, "queue", "--json", *filters).splitlines()
        numbers = [int(one.split()[0]) for one in counts.split(", ") if one[0].isdigit()]
        assert len(listed) == sum(numbers)


def test_an_id_is_named_by_any_beginning_that_no_other_has(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    did(daemon, "pause")
    # Of 17 ids two begin alike.
    write(incoming, *(f"{n}.csv" for n in range(17)))
    eventually(lambda: len(daemon.queue()) == 17)
    named = ids(daemon)
    begins = Counter(upload_id[0] for upload_id in named.values())
    twice = begins.most_common(1)[0][0]
    answer = daemon.run("drop", twice, named["0.csv"][:20], "nonsense")
    assert answer.returncode == 1
    assert answer.stdout == f"dropped {named['0.csv']} {incoming / '0.csv'}\n"
    known = sorted(one for one in named.values() if one.startswith(twice))
    twofold = f"{twice}: {len(known)} ids begin with it: {known[0]}, "
    for text in (twofold, "nonsense: no upload with that id"):
        assert text in answer.stderr
    assert len(daemon.queue()) == 16
    story = json.loads(did(daemon, "explain", "--json", named["0.csv"][:20]))
    assert (story["id"], story["path"]) == (named["0.csv"], f"{incoming}/0.csv")
    assert [upload["state"] for upload in story["uploads"]] == ["dropped"]
    with pytest.raises(RequestRefused, match=f"more than one id begins with {twice}: "):
        daemon.ask("explain", id=twice)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(broken(INI))
    write(incoming, "x.bad", "gone.bad")
    eventually(lambda: [row["state"] for row in daemon.queue()] == ["failed"] * 2)
    (incoming / "gone.bad").unlink()
    did(daemon, "pause")
    write(incoming, "a.csv")
    named = eventually(lambda: len(found := ids(daemon)) == 3 and found)
    before = daemon.queue()
    told = daemon.run("retry", "--dry-run", *named.values())
    assert (told.returncode, told.stdout) == (
        1,
        f"would be retried {named['x.bad']} {incoming / 'x.bad'}\n",
    )
    assert f"{named['gone.bad']}: its file is not there any more" in told.stderr
    assert f"{named['a.csv']}: all is paused; resume that" in told.stderr
    rows = [
        json.loads(line)
        for line in did(daemon, "drop", "--dry-run", "--json", "--broker=b").splitlines()
    ]
    assert {row["id"] for row in rows} == set(named.values())
    assert {row["state"] for row in rows} == {"dropped"}
    assert did(daemon, "drop", "--dry-run", "--path", "none") == "nothing to drop\n"
    assert daemon.queue() == before
    with pytest.raises(RequestRefused, match="retry or drop"):
        daemon.ask("rehearse", what="reload", all="yes")


def test_as_says_by_which_path_a_task_is_found(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    write(incoming, "plain.txt")
    assert daemon.send(str(incoming / "plain.txt")).returncode == 1
    answer = daemon.send("--as", "/gone/events.csv", str(incoming / "plain.txt"))
    assert answer.returncode == 0
    [task] = eventually(lambda: published(tmp_path / "broker"))
    assert task["args"] == [str(incoming / "plain.txt")]
    assert task["watchman"]["original"] == "/gone/events.csv"
    eventually(lambda: daemon.queue() == [])
    kill(daemon)
    eventually(lambda: daemon.status()["watches"]["in"]["last_scan"])
    assert sent(tmp_path) == ["plain.txt"]
    wrong = daemon.send("--as", "/a", str(incoming / "plain.txt"), "/b")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)


def test_what_is_no_file_below_a_watch_is_refused_with_what_to_do(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    storage, elsewhere = tmp_path / "storage", tmp_path / "elsewhere"
    for directory in (storage, elsewhere, incoming / "sub"):
        directory.mkdir()
    daemon = start_watchman(f"{INI}[move:m]\nsource = {{tmp}}/other\ndestination = {storage}\n")
    (incoming / "link.csv").symlink_to("plain.txt")
    (incoming / "dangling.csv").symlink_to("none")
    (incoming / "plain.txt").write_text("x")
    os.mkfifo(incoming / "fifo.csv")
    find = "name files below a watch, each by its own path, as `find DIRECTORY -type f` does"
    outside = f"it is below no watch. The watches are: {tmp_path}/other, {incoming}; {find}"
    told = {
        incoming: f"it is the directory of [watch:in] itself, not a file in it; {find}",
        f"{incoming}/sub/": f"it is a directory, not a regular file; {find}",
        storage: f"it is a directory, not a regular file; {find}",
        incoming / "link.csv": f"it is a symlink, not a regular file; {find}",
        incoming / "dangling.csv": f"it is a symlink, not a regular file; {find}",
        incoming / "fifo.csv": f"it is a FIFO, not a regular file; {find}",
        incoming / "missing.csv": "there is no such file",
        storage / "missing.csv": "there is no such file",
        incoming / "plain.txt/b.csv": f"a symlink or a file stands in the way; {find}",
        elsewhere / "a.csv": outside,
        elsewhere: outside,
        incoming / "plain.txt": "no task matches it; give --as PATH",
    }
    answer = daemon.send(*map(str, told))
    assert (answer.returncode, answer.stdout) == (1, "")
    assert [line.split("': ", 1)[1] for line in answer.stderr.splitlines()] == [*told.values()]


def test_same_id_repeats_the_last_id_of_what_is_settled_and_refuses_all_else(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    write(incoming, "a.csv", "b.csv")
    eventually(lambda: len(sent(tmp_path)) == 2)
    eventually(lambda: daemon.queue() == [])
    first = {task["args"][0]: task["id"] for task in published(tmp_path / "broker")}
    daemon.restart()
    paths = [str(incoming / name) for name in ("a.csv", "b.csv")]
    answer = daemon.send("--same-id", *paths)
    assert answer.stdout.splitlines() == [f"OK {first[path]} {path}" for path in paths]
    eventually(lambda: len(sent(tmp_path)) == 4)
    assert {task["id"] for task in published(tmp_path / "broker")} == set(first.values())
    eventually(lambda: daemon.queue() == [])
    did(daemon, "pause")
    twice = daemon.send("--same-id", paths[0], paths[0])
    assert (twice.returncode, len(twice.stdout.splitlines())) == (1, 1)
    assert f"watchman retry {first[paths[0]]}" in twice.stderr
    write(incoming, "never.txt")
    never = daemon.send("--same-id", str(incoming / "never.txt"))
    assert (never.returncode, "in the history" in never.stderr) == (1, True)
    kill(daemon)
    did(daemon, "resume")
    eventually(lambda: len(sent(tmp_path)) == 5)
    eventually(lambda: daemon.queue() == [])


def test_same_id_of_a_file_that_was_renamed_says_that_it_is_not_there(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    did(daemon, "pause")
    write(incoming, "a.csv")
    eventually(lambda: [row["state"] for row in daemon.queue()] == ["waiting"])
    (incoming / "a.csv").rename(incoming / "b.csv")
    did(daemon, "resume")
    eventually(lambda: sent(tmp_path) == ["b.csv"])
    answer = daemon.send("--same-id", str(incoming / "a.csv"))
    assert (answer.returncode, "no such file" in answer.stderr) == (1, True), answer.stderr


def test_names_of_any_bytes_are_resubmitted_from_standard_input(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    paths = [str(incoming / name) for name in ("new\nline.csv", "plain.csv")]
    for path in paths:
        Path(path).write_text("x")
    eventually(lambda: len(sent(tmp_path)) == 2)
    answer = daemon.send("-0", "-", stdin="\0".join(paths) + "\0")
    assert (answer.returncode, answer.stderr) == (0, "")
    eventually(lambda: len(sent(tmp_path)) == 4)
