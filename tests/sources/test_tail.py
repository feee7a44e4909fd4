"""A file that grows is read on from where it was read to, and known again by its bytes."""

import gzip
import json
import os
from functools import partial
from pathlib import Path

import pytest

from tests.support import translog
from tests.support.translog import TOKEN, append
from watchman.sources.transferlog.lines import LONGEST
from watchman.sources.transferlog.tail import BEFORE, READ_SIZE, Position, Tail

SECRET = f"{TOKEN}|".encode()

#: Two of the same are the same, also when a second goes by.
line = partial(translog.line, at=1_790_000_000)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "uploads.log"


def rest(tail: Tail) -> list[bytes]:
    """All that there is to read."""
    found = []
    while pieces := tail.read(SECRET):
        found += pieces
    return found


def lines(count: int, first: int = 0) -> list[bytes]:
    return [line(f"/srv/ftp/{number}.csv") for number in range(first, first + count)]


def test_what_is_appended_is_read_once(log: Path) -> None:
    written = lines(1000)
    append(log, *written)
    tail = Tail(str(log))
    assert rest(tail) == written
    append(log, *lines(1, 1000))
    assert rest(tail) == lines(1, 1000)
    assert rest(tail) == []
    assert tail.offset == log.stat().st_size
    tail.close()


def test_a_block_is_bounded_whatever_is_in_the_file(log: Path) -> None:
    log.write_bytes(b"\n" * 100_000 + b"x" * 100_000 + b"".join(lines(1000)))
    tail = Tail(str(log))
    while pieces := tail.read(SECRET):
        assert sum(map(len, pieces)) <= READ_SIZE
    assert tail.offset == log.stat().st_size
    tail.close()


def test_lines_after_garbage_and_over_long_ones_are_read(log: Path) -> None:
    over_long = line("/" + "a" * 5000)[:LONGEST]
    append(log, os.urandom(50_000).replace(SECRET, b""), *lines(1), over_long, *lines(1, 1))
    tail = Tail(str(log))
    assert rest(tail)[-3:] == [*lines(1), over_long, *lines(1, 1)]
    tail.close()


def test_a_line_is_read_when_it_is_whole(log: Path) -> None:
    (whole,) = lines(1)
    append(log, whole[:30])
    tail = Tail(str(log))
    assert rest(tail) == []
    assert tail.position.offset == 0
    append(log, whole[30:])
    assert rest(tail) == [whole]
    tail.close()


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_a_position_is_found_again_in_the_file_and_in_copies_of_it(log: Path, count: int) -> None:
    append(log, *lines(count))
    tail = Tail(str(log))
    rest(tail)
    position = Position(*json.loads(json.dumps(tail.position)))
    tail.close()
    append(log, *lines(3, count))
    copy = log.with_name("copy")
    copy.write_bytes(log.read_bytes())
    packed = log.with_name("copy.gz")
    packed.write_bytes(gzip.compress(log.read_bytes()))
    for path in (log, copy, packed):
        again = Tail(str(path))
        assert again.holds(position)
        again.seek(position.offset)
        assert rest(again) == lines(3, count)
        again.close()


@pytest.mark.parametrize("grown", [0, 10, 1000])
def test_another_file_does_not_hold_a_position(log: Path, grown: int) -> None:
    append(log, *lines(10))
    tail = Tail(str(log))
    rest(tail)
    position = tail.position
    tail.close()
    log.write_bytes(b"".join(lines(grown, 5000)))
    other = Tail(str(log))
    assert not other.holds(position)
    other.close()


@pytest.mark.parametrize("regrown", [0, 1, 10, 100])
def test_a_truncated_file_is_seen_however_far_it_has_regrown(log: Path, regrown: int) -> None:
    append(log, *lines(10))
    tail = Tail(str(log))
    rest(tail)
    assert tail.is_intact()
    os.truncate(log, 0)
    append(log, *lines(regrown, 500))
    assert not tail.is_intact()
    assert rest(tail) == []
    tail.seek(0)
    assert tail.is_intact()
    assert rest(tail) == lines(regrown, 500)
    tail.close()


def test_few_bytes_before_an_offset_are_enough(log: Path) -> None:
    log.write_bytes(b"x")
    tail = Tail(str(log))
    tail.seek(1)
    log.write_bytes(b"y" * BEFORE)
    assert not tail.is_intact()
    tail.close()


def test_what_has_it_open_is_known(log: Path) -> None:
    append(log, *lines(1))
    tail = Tail(str(log))
    assert tail.has_writers() is False
    with log.open("ab"):
        assert tail.has_writers() is True
        os.rename(log, log.with_name("renamed"))
        assert tail.has_writers() is True
    assert tail.has_writers() is False
    tail.close()


def test_a_packed_file_has_no_writers(log: Path) -> None:
    packed = log.with_name("uploads.log.1.gz")
    packed.write_bytes(gzip.compress(b"".join(lines(1))))
    tail = Tail(str(packed))
    assert tail.has_writers() is False
    tail.close()


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink", "half gzip", "none"])
def test_what_is_no_log_is_an_oserror_and_makes_nobody_wait(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("log.gz" if "gzip" in kind else "log")
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "symlink":
            path.symlink_to(__file__)
        case "half gzip":
            path.write_bytes(gzip.compress(os.urandom(10_000))[:5000])
    with pytest.raises(OSError, match=r"regular file|symbolic|gzip|marker|No such"):
        Tail(str(path))


def test_no_descriptor_is_left_open(log: Path) -> None:
    packed = log.with_name("a.gz")
    packed.write_bytes(gzip.compress(b"x"))
    log.write_bytes(b"x")
    before = os.listdir("/proc/self/fd")
    for path in (log, packed):
        Tail(str(path)).close()
    for path in (log.parent, log.with_name("none")):
        with pytest.raises(OSError, match=r"regular file|symbolic|gzip|marker|No such"):
            Tail(str(path))
    assert os.listdir("/proc/self/fd") == before
