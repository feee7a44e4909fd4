"""The transfer log is read on, whatever becomes of its file, and never believed wrongly."""

import gzip
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.support.deadline import eventually
from tests.support.needs import PATH, need
from tests.support.translog import Reader, append, line
from watchman.uploads.upload import Kind


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """In a directory beside which there are none of other tests: they are searched, too."""
    directory = tmp_path / "log"
    directory.mkdir()
    return directory / "uploads.log"


@pytest.fixture
def read() -> Iterator[Callable[..., Reader]]:
    """Starts a reader of logs."""
    readers: list[Reader] = []

    def read(*logs: Path, started: bool = True) -> Reader:
        readers.append(Reader(*logs))
        if started:
            readers[-1].start()
        return readers[-1]

    yield read
    for reader in readers:
        reader.stop()


@pytest.fixture
def reader(log: Path, read: Callable[..., Reader]) -> Reader:
    """Of a log that is there and empty."""
    log.touch()
    return read(log)


def rotate(log: Path, number: int = 1) -> Path:
    """As logrotate does, with `nocreate`."""
    old = log.with_name(f"{log.name}.{number}")
    log.rename(old)
    return old


def copytruncate(log: Path, number: int = 1) -> Path:
    old = log.with_name(f"{log.name}.{number}")
    shutil.copy(log, old)
    os.truncate(log, 0)
    return old


def offsets(reader: Reader) -> list[int]:
    """The mark's, of the first log."""
    return [offset for _, offset, *_ in reader.marks[str(reader.logs[0])]["files"]]


# Growth, and where it begins.


def test_what_is_appended_is_heard_soon(reader: Reader, log: Path) -> None:
    began = time.monotonic()
    for number in range(3):
        append(log, line(f"/{number}"))
        reader.hears(*[f"/{n}" for n in range(number + 1)])
    assert time.monotonic() - began < 2


def test_at_first_sight_it_begins_at_the_end_and_keeps_that_at_once(
    log: Path, read: Callable[..., Reader], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    append(log, line("/old"))
    reader = read(log)
    assert offsets(reader) == [log.stat().st_size]
    reader.stop()
    append(log, line("/a"))
    reader.start()
    append(log, line("/b"))
    reader.hears("/a", "/b")
    assert caplog.text.count(f"from its end, at byte {len(line('/old'))}.") == 1


@pytest.mark.parametrize("directory", ["there", "missing"])
def test_a_log_that_is_not_there_yet_is_read_from_its_start(
    tmp_path: Path, read: Callable[..., Reader], directory: str
) -> None:
    log = tmp_path / directory / "uploads.log"
    (tmp_path / "there").mkdir()
    reader = read(log)
    assert reader.status()["error"] == ("No such file or directory" if "m" in directory else None)
    assert offsets(reader) == []
    reader.stop()
    log.parent.mkdir(exist_ok=True)
    append(log, line("/a"))
    reader.start()
    append(log, line("/b"))
    reader.hears("/a", "/b")
    assert reader.status()["error"] is None


def test_a_log_that_may_not_be_read_yet_is_at_first_sight_then(
    log: Path, read: Callable[..., Reader]
) -> None:
    log.symlink_to("elsewhere")  # root may read all there is but that
    reader = read(log)
    assert "symbolic" in reader.status()["error"]
    append(log.with_name("new"), line("/old"))
    log.with_name("new").rename(log)
    eventually(lambda: offsets(reader) == [log.stat().st_size] if reader.marks else False)
    append(log, line("/a"))
    reader.hears("/a")


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_file_is_said(log: Path, read: Callable[..., Reader], kind: str) -> None:
    log.mkdir() if kind == "directory" else os.mkfifo(log)
    assert read(log).status()["error"] == "not a regular file"


def test_all_that_waits_is_heard_before_the_start_is_over(reader: Reader, log: Path) -> None:
    reader.stop()
    append(log, *[line(f"/{number}") for number in range(5000)])
    reader.start()
    assert reader.paths == [f"/{number}" for number in range(5000)]


def test_several_logs_are_read_each_on_its_own(tmp_path: Path, read: Callable[..., Reader]) -> None:
    """Also where one's name begins as the other's, as that of a renamed one does."""
    names = ("one/uploads.log", "one/uploads.log.sftp", "other/uploads.log")
    logs = [tmp_path / name for name in names]
    logs[0].parent.mkdir()
    logs[2].parent.mkdir()
    for log in logs:
        log.touch()
    reader = read(*logs)
    reader.stop()
    for log in logs:
        append(log, line(f"{log}/a"))
        rotate(log)
        append(log, line(f"{log}/b"))
    reader.start()
    assert sorted(reader.paths) == sorted(f"{log}/{name}" for log in logs for name in "ab")
    reader.restart()
    assert len(reader.paths) == 6


# Restart.


def test_a_restart_repeats_nothing_and_leaves_nothing_out(reader: Reader, log: Path) -> None:
    for number in range(10):
        reader.stop()
        append(log, line(f"/{number}/a"))
        reader.start()
        append(log, line(f"/{number}/b"))
        reader.hears(*[f"/{n}/{name}" for n in range(number + 1) for name in "ab"])


def test_a_log_with_another_inode_is_known_by_its_bytes(reader: Reader, log: Path) -> None:
    append(log, line("/a"))
    reader.hears("/a")
    reader.stop()
    copy = log.with_name("new")
    shutil.copy(log, copy)
    copy.rename(log)
    append(log, line("/b"))
    reader.start()
    reader.hears("/a", "/b")


def test_another_log_with_the_same_inode_is_read_from_its_start(reader: Reader, log: Path) -> None:
    append(log, line("/a"))
    reader.hears("/a")
    reader.stop()
    log.write_bytes(line("/b") * 2)
    reader.start()
    reader.hears("/a", "/b", "/b")


def test_old_lines_are_not_heard_again_where_their_file_is_not_known_again(
    reader: Reader, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when somebody edited it."""
    append(log, line("/a", at=time.time() - 60))
    reader.hears("/a")
    assert reader.status()["error"] is None
    reader.stop()
    log.unlink()
    append(log, line("/edited", at=time.time() - 70), line("/a", at=time.time() - 60), line("/b"))
    reader.start()
    # One of the same second as the last may be another; to hear it again does no harm.
    reader.hears("/a", "/a", "/b")
    assert "Lines may be missing" in caplog.text
    assert "no file holds the lines that came after" in reader.status()["error"]


def test_what_says_nothing_is_not_written_down_each_time(reader: Reader, log: Path) -> None:
    before = reader.marks.copy()
    append(log, *[line("/a", command="DELE")] * 10)
    eventually(lambda: reader.status()["records"] == 10)
    assert reader.marks == before
    append(log, line("/b"))
    reader.hears("/b")
    assert offsets(reader) == [log.stat().st_size]


def test_a_rename_is_told_across_a_restart_in_its_midst(reader: Reader, log: Path) -> None:
    append(log, line("/a.part", command="RNFR", status="350", transfer="-"))
    eventually(lambda: reader.status()["records"] == 1)
    reader.restart()
    append(log, line("/a", command="RNTO", status="250", transfer="-"))
    eventually(lambda: reader.heard)
    assert (reader.heard[0].old_path, reader.heard[0].path) == ("/a.part", "/a")


# Rotation.


def test_old_sessions_write_on_to_a_renamed_log_and_are_heard(reader: Reader, log: Path) -> None:
    with log.open("ab", buffering=0) as session:
        session.write(line("/a"))
        old = rotate(log)
        append(log, line("/b"))
        reader.hears("/a", "/b")
        session.write(line("/c"))
        reader.hears("/a", "/b", "/c")
        assert offsets(reader) == [old.stat().st_size, log.stat().st_size]
    append(log, line("/d"))
    eventually(lambda: offsets(reader) == [log.stat().st_size])
    reader.hears("/a", "/b", "/c", "/d")


def test_old_sessions_are_heard_after_a_restart(reader: Reader, log: Path) -> None:
    with log.open("ab", buffering=0) as session:
        rotate(log)
        append(log, line("/a"))
        reader.hears("/a")
        reader.stop()
        session.write(line("/b"))
        append(log, line("/c"))
        reader.start()
        assert reader.paths == ["/a", "/b", "/c"]
        session.write(line("/d"))
        reader.hears("/a", "/b", "/c", "/d")


def test_a_log_that_is_renamed_and_removed_is_read_to_its_end(reader: Reader, log: Path) -> None:
    with log.open("ab", buffering=0) as session:
        rotate(log).unlink()
        session.write(line("/a"))
        append(log, line("/b"))
        eventually(lambda: len(reader.heard) == 2)
        session.write(line("/c"))
        eventually(lambda: len(reader.heard) == 3)
    assert sorted(reader.paths) == ["/a", "/b", "/c"]


def test_several_rotations_while_down_leave_nothing_out(reader: Reader, log: Path) -> None:
    """The oldest has a session still, so it is written last of all."""
    append(log, line("/a"))
    reader.hears("/a")
    reader.stop()
    with log.open("ab", buffering=0) as session:
        for number in range(5, 0, -1):
            append(log, line(f"/{number}"))
            rotate(log, number)
        append(log, line("/0"))
        session.write(line("/last"))
        reader.start()
        assert sorted(reader.paths) == [*[f"/{n}" for n in range(6)], "/a", "/last"]
        session.write(line("/more"))
        eventually(lambda: "/more" in reader.paths)
    reader.restart()
    assert len(reader.paths) == 9


def test_several_rotations_while_it_cannot_write_leave_nothing_out(
    reader: Reader, log: Path
) -> None:
    """The journal's disk is full, so that nothing is read."""
    reader.writable = False
    append(log, line("/a"))
    eventually(lambda: reader.refused)
    for number in (3, 2, 1):
        rotate(log, number)
        append(log, line(f"/{number}"))
    reader.writable = True
    eventually(lambda: len(reader.heard) == 4)
    assert sorted(reader.paths) == ["/1", "/2", "/3", "/a"]


def test_the_copy_of_a_file_that_was_not_begun_yet_is_not_read_as_well(
    reader: Reader, log: Path
) -> None:
    reader.writable = False
    append(log, line("/a"))
    eventually(lambda: reader.refused)
    rotate(log, 1)
    append(log, line("/b"), line("/c"))
    shutil.copy(log, log.with_name("uploads.log.2"))
    append(log, line("/d"))
    reader.writable = True
    reader.hears("/a", "/b", "/c", "/d")


def test_files_that_were_read_before_are_not_read_again(
    log: Path, read: Callable[..., Reader]
) -> None:
    """Neither those rotated long ago nor a copy that somebody made, whatever their times."""
    for number in (9, 8):
        append(log.with_name(f"uploads.log.{number}"), line(f"/old{number}"))
    log.touch()
    reader = read(log)
    append(log, line("/a"))
    reader.hears("/a")
    reader.stop()
    shutil.copy(log, log.with_name("uploads.log.backup"))
    rotate(log)
    append(log, line("/b"))
    for old in log.parent.glob("uploads.log.*"):
        os.utime(old)
    reader.start()
    reader.hears("/a", "/b")


def test_a_log_is_read_to_its_end_after_it_was_packed(reader: Reader, log: Path) -> None:
    """logrotate without delaycompress, while down."""
    append(log, line("/a"))
    reader.hears("/a")
    reader.stop()
    append(log, line("/b"))
    for number in (2, 1):
        old = rotate(log, number)
        old.with_name(f"{old.name}.gz").write_bytes(gzip.compress(old.read_bytes()))
        old.unlink()
        append(log, line(f"/{number}"))
    reader.start()
    assert sorted(reader.paths) == ["/1", "/2", "/a", "/b"]
    eventually(lambda: offsets(reader) == [log.stat().st_size])


@pytest.mark.root
def test_where_we_may_not_ask_who_writes_it_an_old_log_is_kept_until_it_is_forsaken(
    public_path: Path,
) -> None:
    """A lease is for the file's owner: here another user reads a log of root's."""
    log = public_path / "uploads.log"
    log.touch()
    script = f"""
import os
from pathlib import Path
from tests.support.translog import Reader
from watchman.sources.transferlog import files as logfiles
os.setresuid(12345, 12345, 12345)
reader = Reader(Path({str(log)!r}))
reader.start()
while word := input():
    if word == "a day goes by":
        reader.ahead += logfiles.FORSAKEN
    else:
        reader.restart()
    print(*reader.paths, len(reader.marks[{str(log)!r}]["files"]), flush=True)
reader.stop()
"""
    with (
        log.open("ab", buffering=0) as session,
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def told(word: str = "go on") -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            print(word, file=process.stdin)
            return process.stdout.readline().strip()

        told()
        old = rotate(log)
        # In this order, as both may be read at once or one by one.
        session.write(line("/b"))
        append(log, line("/a"))
        assert eventually(told) == "/b /a 2"
        session.write(line("/c"))
        # Times of a file tell nothing: they are its server's, or anybody's.
        os.utime(old, (0, 0))
        assert told() == "/b /a /c 2"
        eventually(lambda: told("a day goes by") == "/b /a /c 1")
        print("", file=process.stdin)
        assert process.wait(10) == 0


# copytruncate.


def test_a_log_that_is_copied_and_truncated_is_read_on(reader: Reader, log: Path) -> None:
    with log.open("ab", buffering=0) as session:
        for number in range(3):
            session.write(line(f"/{number}/a"))
            reader.hears(*[f"/{n}/{name}" for n in range(number) for name in "ab"], f"/{number}/a")
            copytruncate(log)
            session.write(line(f"/{number}/b"))
            reader.hears(*[f"/{n}/{name}" for n in range(number + 1) for name in "ab"])


@pytest.mark.parametrize("regrown", [0, 1, 50])
@pytest.mark.parametrize("packed", [False, True])
def test_after_a_restart_the_rest_of_the_copy_is_read_first(
    reader: Reader, log: Path, regrown: int, packed: bool
) -> None:
    append(log, line("/a"))
    reader.hears("/a")
    reader.stop()
    append(log, line("/b"))
    copy = copytruncate(log)
    if packed:
        copy.with_name(f"{copy.name}.gz").write_bytes(gzip.compress(copy.read_bytes()))
        copy.unlink()
    append(log, *[line(f"/{number}") for number in range(regrown)])
    reader.start()
    reader.hears("/a", "/b", *[f"/{number}" for number in range(regrown)])
    reader.restart()
    assert len(reader.paths) == 2 + regrown


def test_the_rest_of_the_copy_is_read_also_while_running(reader: Reader, log: Path) -> None:
    """Written, copied, truncated and regrown before it was looked at."""
    append(log, line("/a"))
    reader.hears("/a")
    reader.writable = False
    append(log, line("/b"))
    eventually(lambda: reader.refused)
    append(log, line("/c"))
    copytruncate(log)
    append(log, *[line(f"/{number}") for number in range(50)])
    reader.writable = True
    reader.hears("/a", "/b", "/c", *[f"/{number}" for number in range(50)])


def test_a_copy_of_what_was_not_begun_is_read_after_a_restart(reader: Reader, log: Path) -> None:
    append(log, line("/a"))
    reader.hears("/a")
    copytruncate(log)
    eventually(lambda: offsets(reader)[-1] == 0)
    reader.stop()
    append(log, line("/b"))
    copytruncate(log, 2)
    reader.start()
    reader.hears("/a", "/b")


def test_copies_of_what_was_not_begun_are_read_once(reader: Reader, log: Path) -> None:
    """However soon the log is truncated again, read or not."""
    wanted = [f"/{number:02}" for number in range(40)]
    for number, path in enumerate(wanted):
        append(log, line(path))
        copytruncate(log, number)
    eventually(lambda: len(reader.heard) >= len(wanted))
    assert sorted(reader.paths) == wanted
    eventually(lambda: len(offsets(reader)) == 1)
    assert sorted(reader.paths) == wanted


# Lines that are not ours.


def test_refused_lines_are_counted_reported_once_and_not_believed(
    reader: Reader, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        append(
            log,
            line("/forged", token="guessed"),
            line("/usr"),
            line("/a")[:20],
            line("/etc"),
            b"\xff\0garbage\n",
        )
    reader.hears(*["/usr", "/etc"] * 5)
    assert {n.kind for n in reader.heard} == {Kind.COMPLETED}
    eventually(lambda: reader.status()["refused"] == 5 * 3)
    assert caplog.text.count("holds a line without our token") == 1
    assert caplog.text.count("holds a line cut short") == 1


def test_a_log_of_nothing_but_foreign_lines_is_a_problem(reader: Reader, log: Path) -> None:
    append(log, line("/a", token="another"))
    eventually(lambda: reader.status()["error"])
    assert "token" in reader.status()["error"]
    append(log, line("/a"))
    eventually(lambda: reader.status()["error"] is None)


def test_no_token_is_said(reader: Reader, log: Path, caplog: pytest.LogCaptureFixture) -> None:
    append(log, line("/a", token="somebodys-secret"), line("/a-secret|b"), line("/c"))
    reader.hears("/c")
    assert "holds a line" in caplog.text
    assert "secret" not in caplog.text


def test_foreign_lines_after_a_record_are_no_part_of_its_name(
    reader: Reader, log: Path, tmp_path: Path
) -> None:
    for name in ("a.csv", "b\nc.csv"):
        (tmp_path / name).touch()
    append(log, line(tmp_path / "a.csv") + b"127.0.0.1 UNKNOWN alice STOR\n")
    append(log, line(str(tmp_path / "b\nc.csv")) + b"127.0.0.1 UNKNOWN alice STOR\n")
    reader.hears(tmp_path / "a.csv", tmp_path / "b\nc.csv")
    assert reader.status()["refused"] == 2


# A journal that cannot be written, and the end.


def test_what_could_not_be_made_durable_is_submitted_again(reader: Reader, log: Path) -> None:
    before = offsets(reader)
    reader.writable = False
    append(log, line("/a"), line("/b"))
    eventually(lambda: reader.refused)
    assert (offsets(reader), reader.heard) == (before, [])
    reader.writable = True
    reader.hears("/a", "/b")


def test_it_tells_until_when_all_was_submitted_that_a_log_held(reader: Reader, log: Path) -> None:
    reader.writable = False
    append(log, line("/a"))
    eventually(lambda: reader.refused)
    now = time.monotonic()
    look(reader)
    assert reader.caught_up[-1] < now
    reader.writable = True
    reader.hears("/a")
    look(reader)
    eventually(lambda: reader.caught_up[-1] > now)
    # It reads when asked, and not for ever.
    now, before = time.monotonic(), len(reader.caught_up)
    look(reader)
    eventually(lambda: reader.caught_up[-1] > now)
    eventually(lambda: time.monotonic() > now + 0.5)
    assert len(reader.caught_up) - before <= 3


def look(reader: Reader) -> None:
    assert reader.source is not None
    reader.source.read()


def test_a_start_with_a_journal_that_cannot_be_written_is_not_held_up(
    reader: Reader, log: Path
) -> None:
    reader.stop()
    append(log, line("/a"))
    reader.writable = False
    reader.start()
    reader.stop()
    assert reader.heard == []
    reader.writable = True
    reader.start()
    reader.hears("/a")


def test_it_stops_in_the_midst_of_many_lines_and_goes_on_there(reader: Reader, log: Path) -> None:
    reader.stop()
    append(log, b"".join(line(f"/{number}") for number in range(20_000)))
    reader.on_submit = lambda _: reader.source.stop() if reader.source else None
    reader.start()
    reader.stop()
    assert 0 < len(reader.heard) < 1000
    reader.on_submit = lambda _: None
    reader.start()
    assert reader.paths == [f"/{number}" for number in range(20_000)]


def test_logrotate_is_followed(reader: Reader, log: Path, tmp_path: Path) -> None:
    """With the shipped stanza's way, and with others that there are."""
    need("logrotate")
    ways = ["create\ncompress\ndelaycompress", "nocreate\ncompress", "copytruncate\ncompress"]
    ways += ["dateext\ndateformat -%s\ncreate", "copytruncate"]
    wanted = []
    with log.open("ab", buffering=0) as session:
        for number, way in enumerate(ways):
            for path in (f"/{number}/a", f"/{number}/b"):
                append(log, line(path))
                wanted.append(path)
            session.write(line(f"/{number}/c"))
            wanted.append(f"/{number}/c")
            stanza = tmp_path / "stanza"
            stanza.write_text(f"{log} {{\nrotate 9\n{way}\n}}\n")
            subprocess.run(
                ["logrotate", "--force", "--state", tmp_path / "state", stanza],
                env={"PATH": PATH},
                check=True,
                timeout=30,
            )
            eventually(lambda: len(reader.heard) >= len(wanted), timeout=30)
            assert sorted(reader.paths) == sorted(wanted), way
    eventually(lambda: len(offsets(reader)) == 1)
    reader.restart()
    assert sorted(reader.paths) == sorted(wanted)


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(
    "way",
    [
        "extension .log\ncreate",
        "extension .log\ncreate\ncompress",
        "olddir {log}/old\ncreate",
        "olddir {beside}\ncreate\ncompress",
        "olddir {beside}\ncreate\ndateext\ndateformat -%s",
        "olddir {beside}\ncopytruncate\ncompress",
        "extension .log\ncopytruncate",
        "create\ncompress\ncompresscmd /usr/bin/xz\ncompressext .packed",
    ],
)
def test_a_rotated_log_is_known_by_what_it_holds_whatever_it_is_called(
    reader: Reader, log: Path, tmp_path: Path, way: str, down: bool
) -> None:
    """Twice in a row, so that one of them was the log for a while without our seeing it."""
    need("logrotate", "xz")
    places = {"log": log.parent, "beside": tmp_path / "old-logs"}
    for directory in (log.parent / "old", places["beside"]):
        directory.mkdir()
    options = way.format_map(places)
    stanza = tmp_path / "stanza"
    stanza.write_text(f"{log} {{\nrotate 9\n{options}\n}}\n")
    append(log, line("/read"))
    reader.hears("/read")
    if down:
        reader.stop()
    wanted = ["/read"]
    for number in range(2):
        for path in (f"/{number}/a", f"/{number}/b"):
            append(log, line(path, transfer="success"))
            wanted.append(path)
        if not down:
            count = len(wanted)
            eventually(lambda count=count: len(reader.paths) >= count)
        subprocess.run(
            ["logrotate", "--force", "--state", tmp_path / "state", stanza],
            env={"PATH": PATH},
            check=True,
            timeout=30,
        )
        # The next one has another name. logrotate asks time(2), which may be milliseconds late.
        following = int(time.time()) + 1.1
        eventually(lambda following=following: "%s" not in way or time.time() > following)
    append(log, line("/last"))
    wanted.append("/last")
    if down:
        reader.start()
    eventually(lambda: len(reader.paths) >= len(wanted))
    reader.restart()
    assert sorted(reader.paths) == sorted(wanted)
    assert reader.status()["error"] is None


def test_a_log_that_is_nowhere_any_more_is_a_problem(reader: Reader, log: Path) -> None:
    append(log, line("/a"))
    reader.hears("/a")
    reader.stop()
    log.unlink()
    append(log, line("/b"))
    reader.start()
    reader.hears("/a", "/b")
    assert "no file holds the lines that came after" in reader.status()["error"]
    reader.restart()
    assert reader.status()["error"] is None
