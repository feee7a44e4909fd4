"""A reload takes effect without losing anything, or not at all."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.daemon import Daemon, published
from tests.support.deadline import eventually

INI = """
[broker:b]
url = filesystem://broker
[watch:in]
path = {tmp}/in
[task:csv]
pattern = *.csv
broker = b
task = tests.record
"""

OTHER = """
[watch:other]
path = {tmp}/other
"""

Start = Callable[..., Daemon]


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    return tmp_path / "in"


def sent(tmp_path: Path, broker: str = "broker") -> list[str]:
    return sorted(os.path.basename(t["args"][0]) for t in published(tmp_path / broker))


def write(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_text(name)


def reload(daemon: Daemon, ini: str) -> list[str]:
    """What changed, as the command prints it."""
    daemon.configure(ini)
    done = daemon.run("reload")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def scanned(daemon: Daemon, watch: str) -> object:
    return daemon.status()["watches"][watch]["last_scan"]


def test_watches_are_added_changed_and_removed(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    other = tmp_path / "other"
    write(other, "before.csv")
    write(incoming, "a.csv")
    eventually(lambda: sent(tmp_path) == ["a.csv"])
    assert reload(daemon, INI + OTHER) == ["watch:other added"]
    eventually(lambda: scanned(daemon, "other"))
    write(other, "b.csv")
    eventually(lambda: sent(tmp_path) == ["a.csv", "b.csv"])
    excluding = INI + OTHER + "exclude = no*\n"
    assert reload(daemon, excluding) == ["watch:other changed"]
    write(other, "no.csv", "yes.csv")
    write(incoming, "no.csv")
    eventually(lambda: sent(tmp_path) == ["a.csv", "b.csv", "no.csv", "yes.csv"])
    assert reload(daemon, INI) == ["watch:other removed"]
    assert "other" not in daemon.status()["watches"]
    write(other, "meanwhile.csv")
    write(incoming, "c.csv")
    eventually(lambda: "c.csv" in sent(tmp_path))
    assert "meanwhile.csv" not in sent(tmp_path)
    assert reload(daemon, INI + OTHER) == ["watch:other added"]
    # What arrived since it was last watched, as after a restart; what was excluded then is not now.
    wanted = ["a.csv", "b.csv", "c.csv", "meanwhile.csv", "no.csv", "no.csv", "yes.csv"]
    eventually(lambda: sent(tmp_path) == wanted)
    eventually(lambda: daemon.queue() == [])


def test_files_that_appear_while_it_reloads_again_and_again_are_sent_once(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    names = []
    for turn in range(8):
        daemon.configure(INI + (OTHER if turn % 2 else ""))
        daemon.signal(signal.SIGHUP)
        for n in range(40):
            names.append(f"{turn}-{n}.csv")
            (incoming / str(turn) / str(n)).mkdir(parents=True)
            write(incoming / str(turn) / str(n), names[-1])
        eventually(lambda t=turn: daemon.log.count("Reloaded") == t + 1)
    eventually(lambda: sent(tmp_path) == sorted(names), timeout=30)
    eventually(lambda: daemon.queue() == [])
    assert len({task["id"] for task in published(tmp_path / "broker")}) == len(names)


def test_tasks_and_brokers_change_and_what_was_accepted_goes_on_as_it_was(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    daemon.run("pause", "broker:b")
    write(incoming, "old.csv")
    eventually(lambda: len(daemon.queue()) == 1)
    changed = INI.replace("pattern = *.csv", "pattern = *.csv\nqueue = q") + (
        "[broker:c]\nurl = filesystem://second\n"
        "[task:nc]\npattern = *.nc\nbroker = c\ntask = tests.record\n"
    )
    assert reload(daemon, changed) == ["broker:c added", "task:csv changed", "task:nc added"]
    write(incoming, "new.csv", "new.nc")
    eventually(lambda: sent(tmp_path, "second") == ["new.nc"])
    eventually(lambda: len(daemon.queue()) == 2)
    daemon.run("resume")
    eventually(lambda: sent(tmp_path) == ["new.csv", "old.csv"])
    queues = {os.path.basename(t["args"][0]): t["queue"] for t in published(tmp_path / "broker")}
    assert queues == {"old.csv": "celery", "new.csv": "q"}
    moved = changed.replace("filesystem://broker", "filesystem://third")
    assert reload(daemon, moved) == ["broker:b changed"]
    write(incoming, "third.csv")
    eventually(lambda: sent(tmp_path, "third") == ["third.csv"])


def test_uploads_for_a_broker_that_was_removed_wait_until_it_is_back(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    daemon.run("pause", "broker:b")
    write(incoming, "a.csv")
    eventually(lambda: len(daemon.queue()) == 1)
    renamed = INI.replace("broker:b", "broker:c").replace("broker = b", "broker = c")
    assert reload(daemon, renamed) == ["broker:b removed", "broker:c added", "task:csv changed"]
    daemon.run("resume")
    [problem] = daemon.status()["problems"]
    assert "broker b" in problem
    assert len(daemon.queue()) == 1
    answer = daemon.run("retry", "--failed", "--broker", "b")
    assert (answer.returncode, answer.stdout) == (0, "nothing to retry\n")
    reload(daemon, INI)
    eventually(lambda: sent(tmp_path) == ["a.csv"])
    assert daemon.status()["healthy"]


def test_a_watch_that_moves_elsewhere_sends_what_it_accepted_before(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    daemon.run("pause")
    write(incoming, "a.csv")
    eventually(lambda: len(daemon.queue()) == 1)
    assert reload(daemon, INI.replace("{tmp}/in", "{tmp}/other")) == ["watch:in changed"]
    daemon.run("resume")
    eventually(lambda: sent(tmp_path) == ["a.csv"])


def test_a_watch_that_gets_another_name_is_the_same_watch(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI)
    write(incoming, "a.csv")
    eventually(lambda: sent(tmp_path) == ["a.csv"])
    assert reload(daemon, INI.replace("watch:in", "watch:ftp")) == [
        "watch:in removed",
        "watch:ftp added",
    ]
    eventually(lambda: scanned(daemon, "ftp"))
    write(incoming, "b.csv")
    eventually(lambda: sent(tmp_path) == ["a.csv", "b.csv"])
    daemon.restart()
    eventually(lambda: scanned(daemon, "ftp"))
    assert sent(tmp_path) == ["a.csv", "b.csv"]


def test_what_is_held_below_a_watch_that_was_removed_is_forgotten(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    daemon = start_watchman(INI + OTHER)
    with (tmp_path / "other" / "half.csv").open("w"):
        # Closed by another while it is still being written.
        (tmp_path / "other" / "half.csv").write_text("half")
        eventually(lambda: [row["state"] for row in daemon.queue()] == ["noticed"])
        reload(daemon, INI)
        assert daemon.queue() == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("pattern = *.csv", "patern = *.csv", "did you mean pattern"),
        ("path = {tmp}/in", "", "path"),
        ("[watch:in]", "[celery]\nconfig = missing.py\n[watch:in]", "missing.py"),
        ("[watchman]", "[watchman]\nlog_file = {tmp}/none/log", "none/log"),
        ("{tmp}/spool", "{tmp}/elsewhere", "takes a restart"),
        ("{tmp}/watchman.sock", "{tmp}/else.sock", "takes a restart"),
    ],
)
def test_what_cannot_take_effect_is_said_and_everything_stays(
    tmp_path: Path, incoming: Path, start_watchman: Start, old: str, new: str, said: str
) -> None:
    ini = f"[watchman]\nspool = {{tmp}}/spool\nsocket = {{tmp}}/watchman.sock\n{INI}"
    daemon = start_watchman(ini)
    daemon.configure(ini.replace(old, new) + OTHER)
    daemon.signal(signal.SIGHUP)
    eventually(lambda: "Reload refused" in daemon.log)
    assert said in daemon.log
    daemon.configure(ini)
    write(incoming, "a.csv")
    eventually(lambda: sent(tmp_path) == ["a.csv"])
    assert list(daemon.status()["watches"]) == ["in"]
    assert daemon.run("reload").stdout == "nothing changed\n"


def test_a_refused_reload_ends_its_command_with_1_or_2(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    ini = f"[watchman]\nspool = {{tmp}}/spool\nsocket = {{tmp}}/watchman.sock\n{INI}"
    daemon = start_watchman(ini)
    daemon.configure(ini.replace("{tmp}/spool", "{tmp}/elsewhere"))
    answer = daemon.run("reload")
    assert (answer.returncode, len(answer.stderr.splitlines())) == (1, 1)
    assert "restart" in answer.stderr
    daemon.configure(ini.replace("pattern", "patern"))
    answer = daemon.run("reload")
    assert answer.returncode == 2
    daemon.configure(ini)


def test_log_level_and_log_file_change(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    ini = f"[watchman]\nspool = {{tmp}}/spool\nsocket = {{tmp}}/watchman.sock\n{INI}"
    daemon = start_watchman(ini)
    logged = ini.replace("[watchman]", "[watchman]\nlog_level = DEBUG\nlog_file = {tmp}/new.log")
    assert reload(daemon, logged) == ["log_level changed", "log_file changed"]
    write(incoming, "a.csv")
    eventually(lambda: sent(tmp_path) == ["a.csv"])
    eventually(lambda: " DEBUG " in (tmp_path / "new.log").read_text())
    assert "Accepted" not in daemon.log


def test_a_transfer_log_is_read_on_over_reloads_and_no_line_twice(
    tmp_path: Path, incoming: Path, start_watchman: Start
) -> None:
    log = tmp_path / "log" / "uploads.log"
    log.parent.mkdir()
    log.touch()
    logged = INI + f"[proftpd]\ntransfer_log = {log}\ntoken = a-secret\n"

    def tell(name: str, status: str) -> None:
        line = f"a-secret|1|1|STOR|{status}|2|ftp|192.0.2.1|joe|{incoming / name}\n"
        with log.open("a") as file:
            file.write(line)

    daemon = start_watchman(INI)
    assert reload(daemon, logged) == ["proftpd changed"]
    # Excluded, so that only the log's word counts.
    write(incoming, ".a")
    tell(".a", "226|success")
    eventually(lambda: daemon.status()["sources"]["log"]["heard"] == 1)
    assert reload(daemon, logged + OTHER) == ["watch:other added"]
    tell(".a", "226|success")
    eventually(lambda: daemon.status()["sources"]["log"]["heard"] == 2)
    daemon.restart()
    tell(".a", "226|success")
    eventually(lambda: daemon.status()["sources"]["log"]["heard"] == 1)
    assert reload(daemon, INI) == ["watch:other removed", "proftpd changed"]
    assert daemon.status()["transfer_logs"] == {}
