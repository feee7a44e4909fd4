import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.deadline import eventually
from tests.support.users import BOB
from tests.support.watching import Clock, Heard, MemoryLedger, excluded, tree_too_deep
from watchman.config.settings import WatchSettings
from watchman.sources.scan import scan, scanner
from watchman.sources.scan.scan import FRESH, STEP
from watchman.sources.scan.scanner import FULL, PROGRESS, Scanner
from watchman.uploads.upload import FileState, Kind, Notification, Source


class Scanning(Heard):
    """A scanner at work, and what it submits."""

    def __init__(self, *watches: WatchSettings, clock: Clock | None = None) -> None:
        super().__init__()
        self.ledgers = {watch.name: MemoryLedger() for watch in watches}
        clocks = {} if clock is None else {"clock": clock}
        self.scanner = Scanner(
            watches,
            submit=self.submit,
            takes=self.takes,
            excluded=excluded,
            ledgers=self.ledgers,
            **clocks,
        )
        self.scanner.start()

    def scan(self, watch: str = "in") -> bool:
        """Scan a whole watch; whether it was complete."""
        sweeps = self.ledgers[watch].sweeps
        before = len(sweeps)
        self.scanner.request(watch)
        eventually(lambda: sweeps[before:] and sweeps[before] is not None)
        return bool(sweeps[before])

    def status(self, watch: str = "in") -> dict[str, object]:
        return self.scanner.status()[watch]


Start = Callable[..., Scanning]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Scanning] = []

    def start(*watches: WatchSettings, clock: Clock | None = None) -> Scanning:
        started.append(Scanning(*watches, clock=clock))
        return started[-1]

    yield start
    for scanning in started:
        scanning.scanner.stop()
        scanning.scanner.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


def test_regular_files_on_every_level_are_submitted(start: Start, root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    files = {root / "f", root / "a/f", root / "a/b/f"}
    for path in files:
        path.write_text("1")
    scanning = start(WatchSettings("in", str(root)))
    assert scanning.scan()
    assert {found._replace(patience=0.0, owner=None) for found in scanning.notifications} == {
        Notification(Kind.COMPLETED, str(path), Source.SCAN) for path in files
    }
    assert scanning.status()["files"] == 3


def test_what_is_found_is_submitted_as_to_be_waited_for(start: Start, root: Path) -> None:
    """However old it looks: word of a rename may be on its way."""
    for name, seconds in (("old.csv", 0), ("new.csv", None), ("future.csv", 8_580_000_000)):
        (root / name).write_text("1")
        if seconds is not None:
            os.utime(root / name, (seconds, seconds))
    scanning = start(WatchSettings("in", str(root)))
    assert scanning.scan()
    assert [n.patience for n in scanning.notifications] == [FRESH] * 3


def test_known_files_are_not_submitted_and_vanished_ones_are_forgotten(
    start: Start, root: Path
) -> None:
    for name in "abc":
        (root / name).write_text("1")
    scanning = start(WatchSettings("in", str(root)))
    scanning.ledgers["in"].decide(root, "a", "b", "c")
    (root / "b").write_text("22")
    (root / "c").unlink()
    assert scanning.scan()
    assert scanning.paths() == {str(root / "b")}
    assert scanning.ledgers["in"].decided.keys() == {"a"}


def test_names_may_hold_any_bytes(start: Start, root: Path) -> None:
    names = [b"caf\xe9", b"new\nline", b" ", b"\xff\xfe"]
    expected = set()
    for directory in names:
        path = os.path.join(os.fsencode(root), directory)
        os.mkdir(path)
        for name in names:
            expected.add(os.fsdecode(os.path.join(path, name)))
            with open(os.path.join(path, name), "wb"):
                pass
    scanning = start(WatchSettings("in", str(root)))
    assert scanning.scan()
    assert scanning.paths() == expected


def test_symlinks_fifos_and_what_is_excluded_are_passed_over(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/f").write_text("1")
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "file").symlink_to(tmp_path / "elsewhere/f")
    os.mkfifo(root / "fifo")
    (root / ".hidden/deep").mkdir(parents=True)
    for name in (".hidden/deep/f", "f.part", "f"):
        (root / name).write_text("1")
    scanning = start(WatchSettings("in", str(root)))
    assert scanning.scan()
    assert scanning.paths() == {str(root / "f")}


def test_a_root_may_be_a_symlink_and_paths_are_below_it(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(root)
    (root / "f").write_text("1")
    scanning = start(WatchSettings("in", str(tmp_path / "link")))
    assert scanning.scan()
    assert scanning.paths() == {str(tmp_path / "link/f")}


def test_without_rec_only_the_directory_itself_is_scanned(start: Start, root: Path) -> None:
    (root / "a").mkdir()
    for name in ("a/f", "f"):
        (root / name).write_text("1")
    scanning = start(WatchSettings("in", str(root), rec=False))
    scanning.scanner.request("in", "a")
    assert scanning.scan()
    assert scanning.paths() == {str(root / "f")}


def test_the_inner_of_two_nested_watches_owns_its_directory(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (root / "a/inner").mkdir(parents=True)
    (root / "aliased").mkdir()
    (tmp_path / "alias").symlink_to(root / "aliased")
    for name in ("a/inner/f", "aliased/f", "f"):
        (root / name).write_text("1")
    scanning = start(
        WatchSettings("in", str(root)),
        WatchSettings("inner", str(root / "a/inner")),
        WatchSettings("alias", str(tmp_path / "alias")),
    )
    assert scanning.scan("in")
    assert scanning.paths() == {str(root / "f")}
    assert scanning.scan("inner")
    assert scanning.scan("alias")
    assert scanning.paths() == {
        str(root / "f"),
        str(root / "a/inner/f"),
        str(tmp_path / "alias/f"),
    }


def test_a_subtree_is_scanned_alone_and_ends_no_sweep(start: Start, root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    for name in ("f", "a/f", "a/b/f"):
        (root / name).write_text("1")
    scanning = start(WatchSettings("in", str(root)))
    scanning.ledgers["in"].decide(root, "a/b/f")
    scanning.scanner.request("in", "a")
    eventually(lambda: scanning.paths() == {str(root / "a/f")})
    assert scanning.ledgers["in"].sweeps == []


def test_a_subtree_that_is_gone_or_a_symlink_by_now_is_passed_over(
    start: Start, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/f").write_text("1")
    (root / "out").symlink_to(tmp_path)
    scanning = start(WatchSettings("in", str(root)))
    for subpath in ("gone", "out", "out/elsewhere", "../elsewhere"):
        scanning.scanner.request("in", subpath)
    assert scanning.scan()
    assert scanning.notifications == []
    assert caplog.messages == []


def test_a_symlink_swapped_in_for_a_directory_is_never_followed(
    start: Start, root: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    (secret / "sub").mkdir(parents=True)
    (secret / "sub/f").write_text("1")
    (secret / "f").write_text("1")
    for i in range(20):
        (root / f"d{i}/sub").mkdir(parents=True)
        (root / f"d{i}/sub/own").write_text("1")
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for i in range(20):
                (root / f"d{i}").rename(tmp_path / f"away{i}")
                (root / f"d{i}").symlink_to(secret)
                (root / f"d{i}").unlink()
                (tmp_path / f"away{i}").rename(root / f"d{i}")

    swapping = threading.Thread(target=swap)
    swapping.start()
    scanning = start(WatchSettings("in", str(root)))
    try:
        for _ in range(50):
            scanning.scan()
    finally:
        done.set()
        swapping.join()
    names = {os.path.basename(path) for path in scanning.paths()}
    assert names == {"own"}


def open_below(directory: str) -> int:
    """How many descriptors of ours are open at and below a directory."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{fd}").startswith(directory)
    return found


def test_a_tree_too_deep_to_be_named_is_reported_and_the_rest_is_scanned(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    with tree_too_deep() as directory:
        Path(directory, "z").write_text("1")
        scanning = start(WatchSettings("in", directory))
        assert not scanning.scan()
        assert open_below(directory) == 0
        assert len(scanning.paths()) == (4095 - len(f"{directory}/d/f")) // 2 + 2
        assert str(Path(directory, "z")) in scanning.paths()
        assert all(os.path.exists(path) for path in scanning.paths())
        assert "too long" in str(scanning.status()["error"])
        assert "too long" in caplog.text


def test_a_scan_holds_few_descriptors_in_a_deep_tree(start: Start, root: Path) -> None:
    path = root
    for _ in range(300):
        path /= "d"
        path.mkdir()
        (path / "e").mkdir()
        (path / "e/f").write_text("1")
    held: list[int] = []

    class Counting(MemoryLedger):
        def known(self, subpath: str, state: FileState) -> bool:
            held.append(len(os.listdir("/proc/self/fd")))
            return super().known(subpath, state)

    scanning = start(WatchSettings("in", str(root)))
    scanning.ledgers["in"] = Counting()
    before = len(os.listdir("/proc/self/fd"))
    scanning.scanner.request("in", "d")
    eventually(lambda: len(scanning.paths()) == 300)
    assert max(held) - before < 50


def test_an_unreadable_directory_makes_a_scan_incomplete_and_the_rest_is_scanned(
    root: Path,
) -> None:
    for name in ("closed", "open"):
        (root / name).mkdir()
        (root / name / "f").write_text("1")
    (root / "closed").chmod(0)
    # Root reads everything, unless it gives up these rights.
    rights = "-dac_override,-dac_read_search"
    prefix = ["setpriv", "--bounding-set", rights] if os.geteuid() == 0 else []
    script = """if True:
        import json, sys
        from tests.sources.test_scanner import Scanning
        from watchman.config.settings import WatchSettings
        scanning = Scanning(WatchSettings("in", sys.argv[1]))
        print(json.dumps([scanning.scan(), sorted(scanning.paths()), scanning.status()["error"]]))
    """
    command = [*prefix, sys.executable, "-W", "ignore", "-c", script, str(root)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    finally:
        (root / "closed").chmod(0o755)
    complete, paths, error = json.loads(run.stdout)
    assert not complete
    assert paths == [str(root / "open/f")]
    assert error == f"'{root / 'closed'}': Permission denied"


def test_a_missing_root_forgets_nothing(start: Start, root: Path, tmp_path: Path) -> None:
    (root / "f").write_text("1")
    scanning = start(WatchSettings("in", str(root)))
    scanning.ledgers["in"].decide(root, "f")
    root.rename(tmp_path / "away")
    assert not scanning.scan()
    assert scanning.ledgers["in"].decided.keys() == {"f"}
    assert "No such file" in str(scanning.status()["error"])


def test_an_empty_directory_in_the_place_of_the_root_forgets_nothing(
    start: Start, root: Path, tmp_path: Path
) -> None:
    """As a mount point whose filesystem is away: however often it is scanned."""
    (root / "f").write_text("1")
    scanning = start(WatchSettings("in", str(root)))
    scanning.ledgers["in"].decide(root, "f")
    assert scanning.scan()
    root.rename(tmp_path / "away")
    root.mkdir()
    assert not scanning.scan()
    assert not scanning.scan()
    assert scanning.ledgers["in"].decided.keys() == {"f"}
    root.rmdir()
    (tmp_path / "away").rename(root)
    assert scanning.scan()
    assert scanning.paths() == set()


def test_another_full_root_counts_from_its_second_scan_on(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (root / "f").write_text("1")
    scanning = start(WatchSettings("in", str(root)))
    assert scanning.scan()
    root.rename(tmp_path / "away")
    root.mkdir()
    (root / "g").write_text("1")
    assert [scanning.scan(), scanning.scan()] == [False, True]


def test_each_watch_is_scanned_again_after_its_period(start: Start, root: Path) -> None:
    clock = Clock(time.monotonic)
    scanning = start(WatchSettings("in", str(root), rescan=3600), clock=clock)
    assert scanning.scan()
    (root / "f").write_text("1")
    clock.advance(3601)
    scanning.scanner.request("in", "nothing")  # so that it looks at the clock
    eventually(lambda: scanning.paths() == {str(root / "f")})
    eventually(lambda: scanning.ledgers["in"].sweeps == [True, True])


def test_a_new_directory_need_not_wait_for_the_scan_of_a_whole_watch(
    start: Start, root: Path
) -> None:
    (root / "a").mkdir()
    for i in range(3000):
        (root / f"a/{i}").write_bytes(b"")
    asked: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    class Halting(MemoryLedger):
        def known(self, subpath: str, state: FileState) -> bool:
            asked.append(subpath)
            begun.set()
            go_on.wait(10)
            return super().known(subpath, state)

    scanning = start(WatchSettings("in", str(root)))
    scanning.ledgers["in"] = Halting()
    scanning.scanner.request("in")
    assert begun.wait(10)
    (root / "new").mkdir()
    (root / "new/f").write_text("1")
    scanning.scanner.request("in", "new")
    go_on.set()
    eventually(lambda: scanning.ledgers["in"].sweeps == [True])
    assert asked.index("new/f") < 1000 < len(asked)


def test_stop_interrupts_a_scan_and_it_does_not_count(root: Path) -> None:
    for i in range(100):
        (root / f"{i}").mkdir()
        for j in range(100):
            (root / f"{i}/{j}").write_bytes(b"")
    scanning = Scanning(WatchSettings("in", str(root)))
    scanning.scanner.request("in")
    eventually(scanning.paths)
    began = time.monotonic()
    scanning.scanner.stop()
    scanning.scanner.join()
    assert time.monotonic() - began < 0.5
    assert scanning.ledgers["in"].sweeps == [False]
    assert len(scanning.paths()) < 10000


def test_a_fault_of_a_collaborator_ends_the_scan_and_it_is_tried_again(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "f").write_text("1")
    heard = Heard()
    ledgers = {"in": MemoryLedger()}
    faults = [ValueError("bad day")]

    def submit(notification: Notification) -> None:
        if faults:
            raise faults.pop()
        heard.submit(notification)

    clock = Clock(time.monotonic)
    watches = [WatchSettings("in", str(root))]
    tried = Scanner(
        watches,
        submit=submit,
        takes=lambda *_: True,
        excluded=excluded,
        ledgers=ledgers,
        clock=clock,
    )
    tried.start()
    try:
        tried.request("in")
        eventually(lambda: "bad day" in caplog.text)
        assert ledgers["in"].sweeps == [False]
        clock.advance(scanner.RETRY)
        tried.request("in", "nothing")  # so that it looks at the clock
        eventually(lambda: heard.paths() == {str(root / "f")})
    finally:
        tried.stop()
        tried.join()


def test_a_scan_says_what_it_found(
    start: Start, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "f").write_text("1")
    with caplog.at_level(logging.INFO):
        scanning = start(WatchSettings("in", str(root)))
        assert scanning.scan()
        eventually(lambda: "Scanned watch in: 1 files" in caplog.text)
    before = time.time()
    assert before - 60 < float(str(scanning.status()["last_scan"])) <= before
    assert scanning.status()["scanning"] is False


def test_a_long_scan_says_how_far_it_is(
    start: Start, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for n in range(STEP):
        (root / f"{n}").touch()
    clock = Clock(time.monotonic)
    scanning = start(WatchSettings("in", str(root)), clock=clock)
    scanning.has_room.clear()
    scanning.scanner.request("in")
    eventually(lambda: scanning.status()["scanning"])
    clock.advance(PROGRESS)
    scanning.has_room.set()
    eventually(lambda: scanning.status()["last_scan"])
    assert f"Scanning watch in: {STEP} files seen" in caplog.text


@pytest.mark.root
def test_a_scan_passes_by_the_files_of_whom_too_many_wait_and_comes_back(
    start: Start, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for n in range(10):
        (root / f"{n}").touch()
        (root / f"sub{n}").mkdir()
        (root / f"sub{n}/other").touch()
        os.chown(root / f"sub{n}/other", BOB, BOB)
    clock = Clock(time.monotonic)
    scanning = start(WatchSettings("in", str(root)), clock=clock)
    scanning.room = 4
    assert not scanning.scan()
    first = list(scanning.notifications)
    assert Counter(n.owner for n in first) == {0: 4, BOB: 4}
    assert scanning.status()["error"]
    for _ in range(3):
        clock.advance(FULL)
    assert len(scanning.ledgers["in"].sweeps) == 1, "it waits until there is room"
    scanning.ledgers["in"].decide(root, *(n.path.removeprefix(f"{root}/") for n in first))
    scanning.room = 100
    eventually(lambda: clock.advance(FULL) or scanning.status()["last_scan"])
    assert len(scanning.notifications) == len(scanning.paths()) == 20
    assert not scanning.status()["error"]
    assert caplog.text.count("passes by") == 1


@pytest.mark.root
def test_a_scan_submits_the_rest_of_whoever_has_many_files_once_all_others_were_seen(
    start: Start, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "FIRST", 10)
    monkeypatch.setattr(scan, "MOST", 40)
    for n in range(50):
        (root / f"{n}").touch()
    others = root / "others"
    others.mkdir()
    for n in range(5):
        (others / f"{n}").touch()
        os.chown(others / f"{n}", BOB, BOB)
    scanning = start(WatchSettings("in", str(root)))
    assert not scanning.scan()
    owners = [found.owner for found in scanning.notifications]
    assert owners == 10 * [0] + 5 * [BOB] + 30 * [0]
    first = scanning.paths()
    scanning.ledgers["in"].decide(root, *(path.removeprefix(f"{root}/") for path in first))
    eventually(lambda: scanning.status()["last_scan"])
    assert len(scanning.paths()) == len(scanning.notifications) == 55


def test_stop_waits_for_no_subtree_that_is_still_to_be_scanned(root: Path) -> None:
    for n in range(100):
        (root / f"{n}").mkdir()
        (root / f"{n}/f").touch()
    (root / "f").touch()
    found: list[Notification] = []
    tickets = threading.Semaphore(0)

    def submit(notification: Notification) -> None:
        tickets.acquire()
        found.append(notification)

    scanner = Scanner(
        [WatchSettings("in", str(root))],
        submit=submit,
        takes=lambda *_: True,
        excluded=excluded,
        ledgers={"in": MemoryLedger()},
    )
    scanner.start()
    scanner.request("in")
    eventually(lambda: scanner.status()["in"]["scanning"])
    for n in range(100):
        scanner.request("in", f"{n}")
    for count in (1, 2):
        tickets.release()
        eventually(lambda count=count: len(found) == count)
    scanner.stop()
    tickets.release(1_000)
    scanner.join()
    assert len(found) <= 4


def test_a_root_that_came_just_now_is_scanned_with_a_sweep_of_its_own(
    start: Start, root: Path
) -> None:
    (root / "f").touch()
    scanning = start(WatchSettings("in", str(root)))
    ledger = scanning.ledgers["in"]
    ledger.is_of_root = False
    scanning.scanner.request("in")
    eventually(lambda: len(ledger.sweeps) > 1)
    assert ledger.sweeps[0] is False
    assert scanning.paths() == set()
    ledger.is_of_root = True
    eventually(lambda: ledger.sweeps[-1] is True)
    assert len(scanning.notifications) == 1
