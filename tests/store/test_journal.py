"""The journal keeps what it said is durable, whatever happens to its last bytes."""

import contextlib
import os
import resource
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from watchman.errors import JournalCorrupt, JournalTooNew, JournalUnwritable
from watchman.store.journal import OFFSET_BITS, Journal
from watchman.store.records import decode, encode
from watchman.store.segments import VERSION


def open_journal(directory: Path, **options: int) -> tuple[Journal, list[tuple[int, dict]]]:
    journal = Journal(str(directory / "journal"), str(directory / "history"), **options)
    return journal, list(journal.replay())


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "journal").iterdir())


def test_what_was_written_is_replayed_in_order_with_its_positions(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    positions = journal.write([{"event": "a", "n": n} for n in range(3)])
    positions += journal.write([{"event": "b", "path": "/x/\udcff\n"}])
    journal.close()

    journal, records = open_journal(tmp_path)
    assert [position for position, _ in records] == positions
    assert [record["event"] for _, record in records] == ["a", "a", "a", "b"]
    assert journal.read(positions[3]) == {"event": "b", "path": "/x/\udcff\n"}


def test_a_journal_of_a_newer_version_is_left_as_it_is(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, segment_size=100)
    for n in range(3):
        journal.write([{"n": n, "long": "x" * 100}])
    journal.close()
    for segment in segments(tmp_path):
        assert decode(segment.read_bytes().splitlines(keepends=True)[0])["version"] == VERSION
    newest = segments(tmp_path)[-1]
    newer = encode({"event": "segment", "version": VERSION + 1}) + encode({"n": 3}) + b"unfinished"
    newest.write_bytes(newer)
    with pytest.raises(JournalTooNew, match=f"of version {VERSION + 1}"):
        open_journal(tmp_path)
    assert newest.read_bytes() == newer


def test_a_journal_of_before_there_were_versions_is_read(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal/00000001.jsonl").write_bytes(encode({"n": 1}))
    journal, found = open_journal(tmp_path)
    assert [record for _, record in found] == [{"n": 1}]
    (position,) = journal.write([{"n": 2}])
    assert journal.read(position) == {"n": 2}
    journal.close()


def test_a_record_longer_than_one_read_is_read_back(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    record = {"event": "long", "path": "/" + "\udcff" * 60_000}
    (position,) = journal.write([record])
    assert journal.read(position) == record


def test_a_batch_cut_at_any_byte_loses_nothing_of_the_batches_before(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.write([{"event": "kept", "n": n} for n in range(3)])
    (file,) = segments(tmp_path)
    kept = file.stat().st_size
    journal.write([{"event": "cut", "n": n} for n in range(3)])
    journal.close()
    whole = file.read_bytes()
    for length in range(kept, len(whole)):
        file.write_bytes(whole[:length])
        journal, records = open_journal(tmp_path)
        assert [r["event"] for _, r in records][:3] == ["kept"] * 3
        assert len(records) == 3 + whole[kept:length].count(b"\n")
        assert journal.damaged == 0
        # And it goes on from there.
        journal.write([{"event": "after"}])
        journal.close()
        _, records = open_journal(tmp_path)
        assert records[-1][1] == {"event": "after"}


def test_a_bad_line_in_the_middle_is_reported_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, _ = open_journal(tmp_path)
    journal.write([{"event": "r", "n": n} for n in range(3)])
    journal.close()
    (file,) = segments(tmp_path)
    head, first, bad, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(head + first + bad.replace(b'"n":1', b'"n":7') + last)

    journal, records = open_journal(tmp_path)
    assert [record["n"] for _, record in records] == [0, 2]
    assert journal.damaged == 1
    assert f"offset {len(head + first)}" in caplog.text


@pytest.mark.parametrize("rewritten", [False, True])
def test_what_a_closed_segment_loses_between_two_lines_is_missed(
    tmp_path: Path, rewritten: bool
) -> None:
    journal, _ = open_journal(tmp_path, segment_size=1000)
    positions = journal_of(journal, 100)
    if rewritten:
        for position in positions[::5]:
            journal.hold(position)
        rewrite_all(journal)
    journal.close()
    *closed, last = segments(tmp_path)
    assert len(closed) > 2
    journal, _ = open_journal(tmp_path, segment_size=1000)
    assert journal.damaged == 0
    for file in closed:
        lines = file.read_bytes().splitlines(keepends=True)
        for kept in [lines[:n] for n in range(len(lines))] + [lines[:2] + lines[3:]]:
            file.write_bytes(b"".join(kept))
            journal, _ = open_journal(tmp_path, segment_size=1000)
            assert journal.damaged == 1
        file.write_bytes(b"".join(lines))
    # Of the last one nobody was told.
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-1]))
    journal, _ = open_journal(tmp_path, segment_size=1000)
    assert journal.damaged == 0


def test_a_journal_from_before_segments_told_their_length_is_read(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, segment_size=1000)
    journal_of(journal, 100)
    journal.close()
    for file in segments(tmp_path)[1:]:
        head, *lines = file.read_bytes().splitlines(keepends=True)
        assert b'"before"' in head
        file.write_bytes(b"".join(lines))
    journal, records = open_journal(tmp_path, segment_size=1000)
    assert [record["n"] for _, record in records] == list(range(100))
    assert journal.damaged == 0


def test_a_full_disk_leaves_nothing_of_the_batch_behind(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path)
    journal.write([{"event": "kept"}])
    size = segments(tmp_path)[0].stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A write beyond the limit is cut short at it, then EFBIG, as ENOSPC on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(JournalUnwritable):
            journal.write([{"event": "lost"}])
        assert segments(tmp_path)[0].stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.write([{"event": "after"}])
    journal.close()
    _, records = open_journal(tmp_path)
    assert [record["event"] for _, record in records] == ["kept", "after"]


def test_segments_are_retired_oldest_first_once_nothing_of_them_is_held(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, segment_size=100)
    positions = [journal.write([{"event": "r", "pad": "x" * 100}])[0] for _ in range(4)]
    assert [position >> OFFSET_BITS for position in positions] == [1, 2, 3, 4]
    journal.hold(positions[0])
    journal.hold(positions[2])
    assert not journal.retirable()

    journal.release(positions[0])
    journal.retire(history=3600)
    assert [file.name for file in segments(tmp_path)] == ["00000003.jsonl", "00000004.jsonl"]
    assert sorted(os.listdir(tmp_path / "history")) == ["00000001.jsonl", "00000002.jsonl"]
    assert journal.read(positions[2])["event"] == "r"

    journal.retire(history=-1)
    assert os.listdir(tmp_path / "history") == []


def test_the_story_of_a_path_spans_history_and_journal(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, segment_size=100)
    for n in range(3):
        journal.write([{"event": "r", "path": f"/a/{n % 2}\udcff", "n": n}])
    journal.retire(history=3600)
    assert os.listdir(tmp_path / "history")
    assert [record["n"] for record in journal.records({"/a/0\udcff"}, ())] == [0, 2]


def test_what_is_held_outlives_the_rest_of_its_segments(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, segment_size=1000)
    positions = journal_of(journal, 100)
    kept = positions[3::10]
    for position in kept:
        journal.hold(position)
    before = size(tmp_path)
    rewrite_all(journal)
    assert size(tmp_path) < before / 3
    assert [journal.read(position)["n"] for position in kept] == list(range(3, 100, 10))
    # What was not held cannot be read; the history has it.
    with pytest.raises(JournalCorrupt):
        journal.read(positions[4])
    assert [record["n"] for record in journal.records({"pad"}, ())] == list(range(100))

    # A second time: positions are those of old.
    for position in kept[::2]:
        journal.release(position)
    journal_of(journal, 100)
    rewrite_all(journal)
    assert [journal.read(position)["n"] for position in kept[1::2]] == [13, 33, 53, 73, 93]
    journal.close()

    journal, records = open_journal(tmp_path, segment_size=1000)
    replayed = [record["n"] for _, record in records]
    assert replayed[:5] == [13, 33, 53, 73, 93]
    assert [journal.read(position)["n"] for position, _ in records] == replayed
    assert len([*journal.records({"pad"}, ())]) == 200


def test_a_segment_of_which_nothing_is_held_leaves_wherever_it_stands(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, segment_size=1000)
    positions = journal_of(journal, 100)
    journal.hold(positions[0])
    rewrite_all(journal)
    assert [file.name for file in segments(tmp_path)[:-1]] == ["00000001.jsonl"]
    journal.release(positions[0])
    journal.retire(history=3600)
    assert len(segments(tmp_path)) == 1
    assert [record["n"] for record in journal.records({"pad"}, ())] == list(range(100))


def test_a_journal_whose_records_are_mostly_held_is_left_as_it_is(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, segment_size=1000)
    for position in journal_of(journal, 100)[::2]:
        journal.hold(position)
    assert not journal.wasteful()


def test_a_segment_that_cannot_be_rewritten_stays_whole(tmp_path: Path) -> None:
    journal, _ = open_journal(tmp_path, segment_size=1000)
    positions = journal_of(journal, 100)
    kept = positions[2::10]
    for position in kept:
        journal.hold(position)
    assert journal.wasteful()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            journal.compact()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [journal.read(position)["n"] for position in positions] == list(range(100))
    journal.close()
    _, records = open_journal(tmp_path, segment_size=1000)
    assert [record["n"] for _, record in records] == list(range(100))
    assert not list((tmp_path / "journal").glob("*.new"))


def journal_of(journal: Journal, count: int) -> list[int]:
    """Write records that fill some segments, a few in each batch."""
    batches = [range(n, min(n + 3, count)) for n in range(0, count, 3)]
    return [
        position
        for batch in batches
        for position in journal.write([{"event": "r", "is": "pad", "n": n} for n in batch])
    ]


def rewrite_all(journal: Journal) -> None:
    assert journal.wasteful()
    while journal.wasteful():
        journal.compact()


def size(directory: Path) -> int:
    return sum(file.stat().st_size for file in segments(directory))


class Compacting(RuleBasedStateMachine):
    """Records of uploads that are accepted and settled, and a journal that keeps itself small."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="watchman-"))
        self.count = 0
        self.waiting: dict[str, int] = {}
        self.open()

    def open(self) -> list[str]:
        """Replay as the pipeline does; return what waits, in order."""
        self.journal = Journal(
            str(self.directory / "journal"), str(self.directory / "history"), segment_size=300
        )
        found: dict[str, int] = {}
        for position, record in self.journal.replay():
            found.pop(record["id"], None)
            if record["event"] == "accepted":
                found[record["id"]] = position
        assert self.journal.damaged == 0
        for position in found.values():
            self.journal.hold(position)
        self.waiting = found
        return list(found)

    @rule(count=st.integers(1, 12))
    def accept(self, count: int) -> None:
        ids = [str(self.count + n) for n in range(count)]
        self.count += count
        for upload_id, position in zip(
            ids, self.journal.write(written("accepted", ids)), strict=True
        ):
            self.journal.hold(position)
            self.waiting[upload_id] = position

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.waiting) or ["none"]), unique=True))
        ids = [upload_id for upload_id in ids if upload_id in self.waiting]
        self.journal.write(written("done", ids))
        for upload_id in ids:
            self.journal.release(self.waiting.pop(upload_id))

    @rule()
    def settle_most(self) -> None:
        ids = [upload_id for upload_id in self.waiting if int(upload_id) % 7]
        self.journal.write(written("done", ids))
        for upload_id in ids:
            self.journal.release(self.waiting.pop(upload_id))

    @rule()
    def clear(self) -> None:
        if self.journal.retirable():
            self.journal.retire(history=3600)
        if self.journal.wasteful():
            self.journal.compact()

    @rule(room=st.integers(0, 400))
    def fill_the_disk(self, room: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with contextlib.suppress(JournalUnwritable):
                self.journal.write(written("done", ["none"] * 9))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    @rule()
    def crash(self) -> None:
        before = list(self.waiting)
        self.journal.close()
        assert self.open() == before

    @invariant()
    def what_waits_can_be_read(self) -> None:
        for upload_id, position in self.waiting.items():
            assert self.journal.read(position)["id"] == upload_id

    def teardown(self) -> None:
        self.journal.close()
        told = [r["id"] for r in self.journal.records({"accepted"}, ()) if r is not None]
        assert told == [str(n) for n in range(self.count)]
        shutil.rmtree(self.directory)


def written(event: str, ids: Iterable[str]) -> list[dict[str, str]]:
    return [{"event": event, "id": upload_id} for upload_id in ids]


TestCompacting = Compacting.TestCase
TestCompacting.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
