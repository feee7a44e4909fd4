"""Where records of the transfer log begin and end, and what they say."""

import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import translog
from tests.support.translog import TOKEN
from watchman.errors import ForeignRecord
from watchman.sources.transferlog.lines import LONGEST, RENAMING, Interpreter, cut, parse, whole
from watchman.uploads.upload import Kind, Notification, Source

SECRET = f"{TOKEN}|".encode()

#: Two of the same are the same, also when a second goes by.
line = partial(translog.line, at=1_790_000_000)


def say(interpreter: Interpreter, text: bytes) -> Notification | None:
    record = parse(text, SECRET)
    return interpreter.notification(record, record.path)


def understand(text: bytes) -> Notification | None:
    return say(Interpreter(), text)


def refusal(text: bytes) -> str:
    with pytest.raises(ForeignRecord) as caught:
        parse(text, SECRET)
    return str(caught.value)


# What a record says.


def test_a_good_upload_is_told_with_all_that_proftpd_knows() -> None:
    assert understand(line("/srv/ftp/a b.csv", size=12, at=1_600_000_000)) == Notification(
        Kind.COMPLETED,
        "/srv/ftp/a b.csv",
        Source.LOG,
        user="alice",
        client="127.0.0.1",
        protocol="ftp",
        size=12,
        session="4711.",
        at=1_600_000_000,
    )


@pytest.mark.parametrize("command", ["STOR", "APPE", "STOU"])
@pytest.mark.parametrize(
    ("status", "transfer", "kind"),
    [
        ("226", "success", Kind.COMPLETED),
        ("250", "success", Kind.COMPLETED),
        ("-", "success", Kind.COMPLETED),  # scp -O
        ("426", "failed", Kind.FAILED),
        ("426", "cancelled", Kind.FAILED),
        ("150", "timeout", Kind.FAILED),
        ("550", "failed", Kind.FAILED),
        ("-", "failed", Kind.FAILED),
        ("226", "failed", Kind.FAILED),
        ("552", "success", Kind.FAILED),
        ("226", "-", Kind.FAILED),
    ],
)
def test_an_upload_is_good_only_if_status_and_transfer_are(
    command: str, status: str, transfer: str, kind: Kind
) -> None:
    told = understand(line("/a", command=command, status=status, transfer=transfer))
    assert told is not None
    assert told.kind is kind
    assert bool(told.reason) is (kind is Kind.FAILED)


@pytest.mark.parametrize("command", ["DELE", "MFMT", "MKD", "RMD", "SITE", "SITE CPTO", "SETSTAT"])
def test_what_is_no_upload_says_nothing(command: str) -> None:
    assert understand(line("/a", command=command, status="250", transfer="-", size="-")) is None


def test_what_has_no_path_says_nothing() -> None:
    assert understand(line("-")) is None


def test_a_rename_is_told_with_both_names() -> None:
    interpreter = Interpreter()
    assert say(interpreter, line("/a.part", command="RNFR", status="350", transfer="-")) is None
    assert say(interpreter, line("/b", command="RNFR", pid=4, status="350", transfer="-")) is None
    told = say(interpreter, line("/a", command="RNTO", status="250", transfer="-"))
    assert told is not None
    assert (told.kind, told.old_path, told.path) == (Kind.RENAMED, "/a.part", "/a")


def test_a_rename_that_was_refused_or_never_begun_says_nothing() -> None:
    interpreter = Interpreter()
    assert say(interpreter, line("/a", command="RNTO", status="250", transfer="-")) is None
    say(interpreter, line("/a.part", command="RNFR", status="350", transfer="-"))
    assert say(interpreter, line("/a", command="RNTO", status="550", transfer="-")) is None
    assert say(interpreter, line("/a", command="RNTO", status="250", transfer="-")) is None


def test_renames_that_are_never_ended_are_forgotten_one_by_one() -> None:
    interpreter = Interpreter()
    for pid in range(RENAMING + 1):
        say(interpreter, line(f"/{pid}", pid=pid, command="RNFR", status="350", transfer="-"))
    oldest, newest = (
        say(interpreter, line("/a", pid=pid, command="RNTO", status="250", transfer="-"))
        for pid in (0, RENAMING)
    )
    assert oldest is None
    assert newest is not None
    assert newest.old_path == f"/{RENAMING}"


@pytest.mark.parametrize(
    "name",
    [b"a|b|c.csv", b"'\"`$(x).csv", b"\xe9\xff.csv", b"%u %{x}", b"a\nb.csv", b"\r\t\x1b[m", b"|"],
)
def test_a_name_of_any_bytes_arrives_as_it_is(name: bytes) -> None:
    told = understand(line(b"/srv/" + name))
    assert told is not None
    assert os.fsencode(told.path) == b"/srv/" + name


# What is no record.


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (line("/a", token="another"), "without our token"),
        (line("/a")[1:], "without our token"),
        (b"\n" + line("/a"), "without our token"),
        (line("/a")[:-1], "cut short"),
        (SECRET, "cut short"),
        (line("/a")[:40], "cut short"),
        (line("/" + "a" * 5000)[:LONGEST], "over-long"),
        (line("/" + "a" * 5000)[:LONGEST] + b"x\n", "over-long"),
        (line("a"), "not in our LogFormat"),
        (line(""), "not in our LogFormat"),
        (line("/a\0b"), "not in our LogFormat"),
        (line("/a", pid=-1), "not in our LogFormat"),
        (line("/a", size="x"), "not in our LogFormat"),
        (line("/a", status="22"), "not in our LogFormat"),
        (SECRET + line("/a"), "not in our LogFormat"),
        (line("/a").replace(b"|ftp|", b"|"), "not in our LogFormat"),
        (line("/a").replace(b"|ftp|", b"|ftp|x|"), "not in our LogFormat"),
        (SECRET + os.urandom(1000).replace(b"|", b"") + b"\n", "not in our LogFormat"),
    ],
)
def test_what_is_not_a_whole_line_of_ours_is_refused(text: bytes, why: str) -> None:
    assert refusal(text) == why


def test_a_name_that_fills_the_longest_line_is_believed() -> None:
    path = "/" + "a" * (LONGEST - len(line("/")))
    assert len(line(path)) == LONGEST
    told = understand(line(path))
    assert told is not None
    assert told.path == path


# Where a record ends.


def test_records_are_cut_at_the_token_alone() -> None:
    data = [line("/a"), line("/b\nc"), b"foreign\n"]
    pieces, length = cut(b"".join([*data, line("/d")]), SECRET, more=False)
    assert pieces == [line("/a"), line("/b\nc") + b"foreign\n", line("/d")]
    assert length == sum(map(len, [*data, line("/d")]))


def test_an_over_long_line_does_not_swallow_the_next_one() -> None:
    glued = line("/" + "a" * 5000)[:LONGEST]
    pieces, _ = cut(glued + line("/b"), SECRET, more=False)
    assert pieces == [glued, line("/b")]


def test_what_stands_before_the_first_token_is_a_piece_of_its_own() -> None:
    pieces, _ = cut(b"the end of a line\n" + line("/a"), SECRET, more=False)
    assert pieces == [b"the end of a line\n", line("/a")]


def test_a_line_that_is_still_being_written_is_left() -> None:
    for length in range(len(SECRET), len(line("/b"))):
        pieces, used = cut(line("/a") + line("/b")[:length], SECRET, more=False)
        assert pieces == [line("/a")]
        assert used == len(line("/a"))
    # Without a whole token it might be the rest of a name with a newline.
    assert cut(line("/a") + SECRET[:-1], SECRET, more=False) == ([], 0)


def test_a_newline_at_the_end_of_a_block_may_be_one_within_a_name() -> None:
    assert cut(line("/a\nb")[:-2], SECRET, more=True) == ([], 0)
    assert cut(line("/a\nb")[:-2], SECRET, more=False)[0] == [line("/a")]


def test_garbage_without_newlines_is_not_collected_but_a_token_at_its_end_is() -> None:
    garbage = b"\xff" * 10_000
    begun = SECRET[:4]
    _, used = cut(garbage + begun, SECRET, more=True)
    assert used >= len(garbage) + len(begun) - len(SECRET)
    rest = (garbage + begun)[used:] + SECRET[4:] + line("/a")[len(SECRET) :]
    assert cut(rest, SECRET, more=False)[0][-1] == line("/a")


#: Names as SFTP takes them, of bytes that could be mistaken.
names = st.lists(
    st.sampled_from([b"\n", b"|", b"a", b"\xff", TOKEN.encode(), b"226|success"]), max_size=8
).map(lambda parts: b"/" + b"".join(parts))


@given(st.lists(names, min_size=1, max_size=20), st.integers(min_value=1, max_value=60))
def test_records_are_the_same_whatever_blocks_they_arrive_in(paths: list[bytes], step: int) -> None:
    """Each block is all that is there then: so blocks end where lines do, or within one."""
    paths = [path for path in paths if SECRET not in path]
    data = b"".join(line(path) for path in paths)
    found: list[bytes] = []
    offset = 0
    for end in [*range(step, len(data), step), len(data)]:
        pieces, length = cut(data[offset:end], SECRET, more=end < len(data))
        found += pieces
        offset += length
    assert [os.fsencode(parse(piece, SECRET).path) for piece in found] == paths
    assert offset == len(data)


@given(st.lists(st.sampled_from([*SECRET.split(b"-"), SECRET, line("/a"), b"\n", b"\0" * 3000])))
def test_whatever_is_in_a_log_it_is_read_on(chunks: list[bytes]) -> None:
    data = b"".join(chunks)
    pieces, length = cut(data, SECRET, more=True)
    assert b"".join(pieces) == data[:length]
    assert len(data) - length <= LONGEST


# What follows a record.


def test_lines_that_follow_a_record_belong_to_its_name_if_there_is_such_a_file(
    tmp_path: Path,
) -> None:
    def path(name: str) -> str:
        return str(tmp_path / name)

    text = path("a.csv\nfor\neign")
    assert whole(text) == text  # neither is there
    (tmp_path / "a.csv").touch()
    assert whole(text) == path("a.csv")
    (tmp_path / "a.csv\nfor").touch()
    assert whole(text) == path("a.csv\nfor")
    (tmp_path / "a.csv\nfor\neign").touch()
    assert whole(text) == text
    assert whole(path("missing")) == path("missing")
    assert whole(path("missing") + "\n\0\0\n\0") == path("missing")


def test_a_forged_line_in_a_name_is_that_name(tmp_path: Path) -> None:
    """With SFTP a name may hold newlines: here one, and a whole line but for the token."""
    (tmp_path / "victim.csv").touch()
    forged = line(tmp_path / "victim.csv", token="guessed").decode().replace("/", ":")
    name = tmp_path / f"x\n{forged}"
    name.touch()
    pieces, _ = cut(line(str(name)), SECRET, more=False)
    (told,) = [understand(piece) for piece in pieces]
    assert told is not None
    assert told.path == str(name)
    assert whole(told.path) == str(name)


def test_a_token_in_a_name_makes_two_pieces_that_are_both_refused() -> None:
    """Who knows the token can forge; a name that happens to hold it cannot."""
    pieces, _ = cut(line(f"/a{TOKEN}|b.csv"), SECRET, more=False)
    assert [refusal(piece) for piece in pieces] == ["cut short", "not in our LogFormat"]
