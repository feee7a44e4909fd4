"""The ledger remembers what was decided about the files that stay."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from watchman.store import ledger as ledger_module
from watchman.store.decision import Decision, key
from watchman.store.ledger import Ledger
from watchman.store.ledgerfile import ENTRY
from watchman.uploads.upload import FileState


def state(inode: int, size: int = 1, ctime: int = 100, mtime: int = 100) -> FileState:
    return FileState(1, inode, size, ctime, mtime)


def open_ledger(
    tmp_path: Path, *, baseline: int = 0, clock: Callable[[], float] = time.time
) -> Ledger:
    (tmp_path / "watch").mkdir(exist_ok=True)
    ledger = Ledger(str(tmp_path / "ledger"), str(tmp_path / "watch"), clock=clock)
    if not ledger.open():
        ledger.begin(baseline)
    return ledger


def test_the_first_sight_of_a_watch_is_told_once(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"), "/watch")
    assert not ledger.open()
    ledger.begin(0)
    ledger.close()
    assert Ledger(str(tmp_path / "ledger"), "/watch").open()


def test_decisions_survive_flushes_and_restarts(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    decided = {n: state(n, size=random.randrange(1 << 50), ctime=n) for n in range(5_000)}
    for n, seen in decided.items():
        ledger.put(f"d/{n}.csv", seen)
        if n % 1_000 == 0:
            ledger.flush()
    ledger.close()
    ledger = open_ledger(tmp_path)
    for n, seen in decided.items():
        assert ledger.get(f"elsewhere/{n}.csv", seen) == Decision(seen.size, seen.ctime)
    assert ledger.get("5000.csv", state(5_000)) is None
    assert (tmp_path / "ledger").stat().st_size < 5_000 * ENTRY.size + 200


def test_a_scan_passes_over_a_changed_ctime_and_not_a_changed_write(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.put("a", state(1, size=5, ctime=100, mtime=90))
    assert ledger.known("a", state(1, size=5, ctime=100, mtime=90))
    assert ledger.known("a", state(1, size=5, ctime=200, mtime=90)), "chmod"
    assert ledger.known("a", state(1, size=5, ctime=200, mtime=10)), "touch -r"
    assert ledger.known("a", state(1, size=5, ctime=200, mtime=900)), "a time in the future"
    assert not ledger.known("a", state(1, size=6, ctime=200, mtime=200)), "another size"
    assert not ledger.known("a", state(1, size=5, ctime=200, mtime=200)), "written again"
    assert not ledger.known("a", state(2, size=5, ctime=100, mtime=90)), "another inode"
    assert not ledger.known("b", state(1, size=5, ctime=100, mtime=90)), "another name"


def test_a_decision_taken_back_is_as_if_never_made(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.put("a", state(1, size=5))
    before = ledger.get("a", state(1))
    ledger.put("a", state(1, size=6))
    ledger.restore("a", state(1), before)
    assert ledger.get("a", state(1)) == Decision(5, 100)
    ledger.put("b", state(2))
    ledger.restore("b", state(2), None)
    assert ledger.get("b", state(2)) is None


def test_what_was_there_before_the_watch_stays_known_after_a_whole_scan(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, baseline=1_000)
    assert ledger.known("old", state(1, ctime=999))
    assert not ledger.known("new", state(2, ctime=1_000))
    sweep = ledger.sweep()
    assert sweep.known("old", state(1, ctime=999))
    sweep.finish(complete=True)
    ledger.close()
    ledger = open_ledger(tmp_path)
    decision = ledger.get("old", state(1))
    assert decision is not None
    assert decision.existing
    # Its baseline is over: a clock that is set back loses nothing.
    assert not ledger.known("newer", state(3, ctime=500))


def test_a_whole_scan_forgets_what_it_did_not_see(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.put("stays", state(1))
    ledger.put("goes", state(2))
    ledger.flush()
    scan(ledger, {"stays": state(1)})
    sweep = ledger.sweep()
    assert sweep.known("stays", state(1))
    ledger.put("came meanwhile", state(3))
    sweep.finish(complete=True)
    assert ledger.get("stays", state(1)) is not None
    assert ledger.get("goes", state(2)) is None
    assert ledger.get("came meanwhile", state(3)) is not None


def test_what_is_as_the_file_has_it_is_told_at_once_and_kept(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    paths = {name: tmp_path / "watch" / name for name in ("stays", "grows", "comes", "decided")}
    for name in ("stays", "grows", "decided"):
        paths[name].write_text("1")
        ledger.put(name, FileState.of(paths[name].stat()))
    ledger.flush()
    ledger.put("decided", FileState.of(paths["decided"].stat()))
    paths["grows"].write_text("12")
    paths["comes"].write_text("1")
    sweep = ledger.sweep()
    assert not sweep.unchanged("stays", paths["stays"].stat()), "its filesystem is not known yet"
    told = {}
    for name, path in paths.items():
        sweep.known(name, FileState.of(path.stat()))
        told[name] = sweep.unchanged(name, path.stat())
    assert told == {"stays": True, "grows": False, "comes": False, "decided": False}
    sweep.finish(complete=True)
    assert ledger.known("stays", FileState.of(paths["stays"].stat()))
    sweep = ledger.sweep()
    sweep.known("stays", FileState.of(paths["stays"].stat()))
    ledger.put("late", state(9))
    ledger.flush()
    assert not sweep.unchanged("stays", paths["stays"].stat()), "that is another file now"


def scan(ledger: Ledger, files: dict[str, FileState]) -> None:
    sweep = ledger.sweep()
    for name, seen in files.items():
        assert sweep.known(name, seen)
    sweep.finish(complete=True)


def test_an_empty_mount_point_or_another_disk_forgets_nothing(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.put("stays", state(1))
    ledger.flush()
    scan(ledger, {"stays": state(1)})
    disk, point = tmp_path / "disk", tmp_path / "watch"
    point.rename(disk)
    point.mkdir()
    for _ in range(2):
        scan(ledger, {})
        ledger.close()
        ledger = open_ledger(tmp_path)
        assert ledger.get("stays", state(1)) is not None
    point.rmdir()
    disk.rename(point)
    ledger.put("other", state(2))
    ledger.flush()
    scan(ledger, {"other": state(2)})
    assert ledger.get("stays", state(1)) is None, "gone from the same disk"


@pytest.mark.parametrize("scanned", [True, False])
def test_what_another_root_makes_it_forget_is_known_again_when_the_first_is_back(
    tmp_path: Path, *, scanned: bool
) -> None:
    ledger = open_ledger(tmp_path)
    disk, point = tmp_path / "disk", tmp_path / "watch"
    first = {str(n): state(n) for n in range(1_000)}
    for name, seen in first.items():
        ledger.put(name, seen)
    if scanned:
        scan(ledger, first)  # nothing of it is in the file yet
    point.rename(disk)
    point.mkdir()
    ledger.put("other", state(5_000))
    for _ in range(4):
        scan(ledger, {"other": state(5_000)})
        ledger.close()
        ledger = open_ledger(tmp_path)
    assert ledger.get("7", first["7"]) is None
    point.rename(tmp_path / "elsewhere")
    disk.rename(point)
    ledger.sweep().finish(complete=False)
    for _ in range(4):
        scan(ledger, first)
        ledger.close()
        ledger = open_ledger(tmp_path)
    assert ledger.get("other", state(5_000)) is None
    (tmp_path / "elsewhere").rename(tmp_path / "watch" / "elsewhere")


def test_what_another_root_makes_it_forget_is_forgotten_for_good_in_the_end(
    tmp_path: Path,
) -> None:
    now = [1.0]
    ledger = open_ledger(tmp_path, clock=lambda: now[0])
    ledger.put("first", state(1))
    ledger.flush()
    scan(ledger, {"first": state(1)})
    disk, point = tmp_path / "disk", tmp_path / "watch"
    point.rename(disk)
    point.mkdir()
    for _ in range(3):
        ledger.put("other", state(2))
        ledger.flush()
        scan(ledger, {"other": state(2)})
    assert (tmp_path / "ledger.away").exists()
    now[0] += ledger_module.KEEP
    ledger.put("gone", state(3))
    ledger.flush()
    scan(ledger, {"other": state(2)})
    assert not (tmp_path / "ledger.away").exists()
    assert ledger.get("gone", state(3)) is None


@pytest.mark.parametrize("disturbance", ["incomplete", "moved", "flushed"])
def test_a_disturbed_scan_forgets_nothing(tmp_path: Path, disturbance: str) -> None:
    ledger = open_ledger(tmp_path)
    ledger.put("goes", state(2))
    ledger.flush()
    scan(ledger, {"goes": state(2)})
    sweep = ledger.sweep()
    ledger.put("came meanwhile", state(3))
    if disturbance == "moved":
        ledger.disturb()
    if disturbance == "flushed":
        ledger.flush()
    sweep.finish(complete=disturbance != "incomplete")
    assert ledger.get("goes", state(2)) is not None
    assert ledger.get("came meanwhile", state(3)) is not None


def test_a_ledger_that_cannot_be_read_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = open_ledger(tmp_path)
    ledger.put("a", state(1))
    ledger.close()
    file = tmp_path / "ledger"
    file.write_bytes(file.read_bytes()[:-1])
    assert not Ledger(str(file), "/watch").open()
    assert "set aside" in caplog.text
    assert (tmp_path / "ledger.bad").exists()


def test_a_full_ledger_asks_for_a_flush(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for n in range(ledger_module.DELTA):
        assert not ledger.full()
        ledger.put(str(n), state(n))
    assert ledger.full()
    ledger.flush()
    assert not ledger.full()


@pytest.mark.parametrize("flushed", [False, True])
def test_what_is_forgotten_is_as_if_never_decided(tmp_path: Path, *, flushed: bool) -> None:
    ledger = open_ledger(tmp_path)
    for name in ("a", "b"):
        ledger.put(name, state(1))
    if flushed:
        ledger.flush()
    ledger.forget("a", state(1))
    ledger.forget("never seen", state(1))
    for _ in range(2):
        assert ledger.get("a", state(1)) is None
        assert not ledger.known("a", state(1))
        assert ledger.known("b", state(1))
        ledger.close()
        ledger = open_ledger(tmp_path)
    ledger.put("a", state(1))
    assert ledger.known("a", state(1))


def test_a_scan_under_way_does_not_bring_back_what_is_forgotten(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.put("a", state(1))
    ledger.flush()
    sweep = ledger.sweep()
    assert sweep.known("a", state(1))
    ledger.forget("a", state(1))
    sweep.finish(complete=True)
    assert ledger.get("a", state(1)) is None
    ledger.close()
    assert open_ledger(tmp_path).get("a", state(1)) is None


def test_a_scan_that_changes_nothing_leaves_the_file_alone(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for n in range(1_000):
        ledger.put(str(n), state(n))
    ledger.flush()
    scan(ledger, {str(n): state(n) for n in range(1_000)})
    before = (tmp_path / "ledger").stat()
    scan(ledger, {str(n): state(n) for n in range(1_000)})
    assert (tmp_path / "ledger").stat() == before
    scan(ledger, {str(n): state(n) for n in range(999)})
    assert (tmp_path / "ledger").stat().st_size == before.st_size - ENTRY.size
    assert ledger.get("999", state(999)) is None


def test_what_is_decided_and_flushed_during_a_scan_outdoes_what_the_scan_saw(
    tmp_path: Path,
) -> None:
    ledger = open_ledger(tmp_path, baseline=1_000)
    sweep = ledger.sweep()
    assert sweep.known("a", state(1, size=5, ctime=999))
    ledger.put("a", state(1, size=6, ctime=2_000, mtime=2_000))
    ledger.flush()
    sweep.finish(complete=True)
    assert ledger.known("a", state(1, size=6, ctime=2_000, mtime=2_000))


def test_decisions_are_as_in_a_plain_dict_whatever_is_done(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    plain: dict[int, FileState] = {}
    chance = random.Random(5)
    for _ in range(400):
        some = chance.sample(range(3_000), 100)
        match chance.randrange(6):
            case 0:
                for n in some:
                    ledger.forget(str(n), state(n))
                    plain.pop(n, None)
            case 1:
                ledger.flush()
            case 2:
                ledger.close()
                ledger = open_ledger(tmp_path)
            case 3:
                # What is in memory stays there: the journal has it, too.
                ledger.flush()
                for n in some:
                    plain.pop(n, None)
                for _ in range(2):  # the first one makes sure of the root
                    scan(ledger, {str(n): seen for n, seen in plain.items()})
            case _:
                for n in some:
                    plain[n] = state(n, ctime=chance.randrange(1 << 60))
                    ledger.put(str(n), plain[n])
        for n in some:
            decided = Decision(1, plain[n].ctime) if n in plain else None
            assert ledger.get(str(n), state(n)) == decided
    assert len(plain) > 100


@pytest.mark.parametrize("seen_by_scan", [False, True])
def test_a_scan_writes_nothing_down_that_may_yet_be_taken_back(
    tmp_path: Path, *, seen_by_scan: bool
) -> None:
    """A decision is in memory before the journal has it, and a scan may end in between."""
    ledger = open_ledger(tmp_path)
    sweep = ledger.sweep()
    if seen_by_scan:
        ledger.put("new", state(1))
    assert sweep.known("new", state(1)) is seen_by_scan
    ledger.put("new", state(1))
    sweep.finish(complete=True)
    assert ledger.known("new", state(1))
    assert not open_ledger(tmp_path).known("new", state(1)), "killed before it was durable"
    ledger.restore("new", state(1), None)
    assert not ledger.known("new", state(1)), "the journal could not be written"


def test_a_scan_keeps_what_was_decided_before_it(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.put("old", state(1))
    ledger.flush()
    for _ in range(2):
        sweep = ledger.sweep()
        assert sweep.known("old", state(1))
        ledger.put("new", state(2))
        assert sweep.known("new", state(2))
        sweep.finish(complete=True)
    assert ledger.known("new", state(2))
    ledger.flush()
    ledger = open_ledger(tmp_path)
    assert ledger.known("old", state(1))
    assert ledger.known("new", state(2))


@pytest.mark.parametrize("flushed", [False, True])
def test_what_waits_without_a_record_is_forgotten_and_what_is_settled_is_not(
    tmp_path: Path, *, flushed: bool
) -> None:
    ledger = open_ledger(tmp_path)
    for name in ("lost", "recorded", "settled", "rewritten"):
        ledger.put(name, state(1), waiting=True)
    ledger.put("decided", state(1))
    if flushed:
        ledger.close()
        ledger = open_ledger(tmp_path)
    ledger.settle("settled", state(1))
    # Of an upload that was overwritten before its turn.
    ledger.settle("rewritten", state(1, size=6))
    recorded = {key("recorded", 1), key("rewritten", 1)}
    assert ledger.doubt(recorded.__contains__) == 1
    ledger.close()
    ledger = open_ledger(tmp_path)
    found = {
        name
        for name in ("lost", "recorded", "settled", "rewritten", "decided")
        if ledger.known(name, state(1))
    }
    assert found == {"recorded", "settled", "rewritten", "decided"}
    # Those that wait do so over restarts.
    assert ledger.doubt(lambda _: False) == 2


def test_an_heir_knows_what_others_know_unless_it_knows_better(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    for directory in (outer, inner):
        directory.mkdir()
    heir = open_ledger(outer)
    other = open_ledger(inner, baseline=50)
    heir.put("mine", state(1, ctime=300))
    heir.put("mine newer", state(2, ctime=300))
    other.put("mine newer", state(2, ctime=200))
    heir.put("theirs newer", state(3, ctime=100))
    other.put("theirs newer", state(3, ctime=200, size=7))
    other.put("theirs", state(4, ctime=200), waiting=True)
    heir.adopt([other])
    heir = open_ledger(outer)
    decisions = {
        name: heir.get(name, state(inode))
        for inode, name in enumerate(("mine", "mine newer", "theirs newer", "theirs"), 1)
    }
    assert decisions == {
        "mine": Decision(1, 300),
        "mine newer": Decision(1, 300),
        "theirs newer": Decision(7, 200),
        "theirs": Decision(1, 200, waiting=True),
    }
    assert heir.get("of no one", state(5, ctime=10)) is None
