import contextlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyinotify
import pytest

from tests.support.deadline import eventually
from tests.support.watching import Clock, Watching, tree_too_deep
from watchman.config.settings import WatchSettings
from watchman.sources.inotify.tree import Node
from watchman.sources.inotify.watcher import Watcher
from watchman.uploads.upload import Kind, Notification, Source

Start = Callable[..., Watching]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a watcher with a scanner, waits until all is covered and scanned; stops them."""
    started: list[Watching] = []

    def start(
        *watches: WatchSettings, waiting: bool = True, clock: Clock | None = None
    ) -> Watching:
        started.append(Watching(watches, clock=clock).start())
        if waiting:
            eventually(
                lambda: all(led.sweeps[-1:] == [True] for led in started[-1].ledgers.values())
            )
            started[-1].notifications.clear()
            started[-1].rescans.clear()
        return started[-1]

    yield start
    for watching in started:
        watching.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


def settled(watching: Watching, root: Path) -> None:
    """Wait until the watcher has handled all that happened below `root` before."""
    mark = root / f"mark{time.monotonic_ns()}"
    mark.write_bytes(b"")
    eventually(lambda: str(mark) in watching.paths())
    watching.notifications[:] = [n for n in watching.notifications if n.path != str(mark)]


def completed(path: Path, source: Source = Source.INOTIFY, *, closed: bool = True) -> Notification:
    return Notification(Kind.COMPLETED, str(path), source, closed=closed)


def test_a_closed_file_is_complete(start: Start, root: Path) -> None:
    watching = start(WatchSettings("in", str(root)))
    (root / "a.csv").write_text("1")
    eventually(lambda: watching.notifications == [completed(root / "a.csv")])


def test_a_file_being_written_is_not_reported_before_it_is_closed(start: Start, root: Path) -> None:
    watching = start(WatchSettings("in", str(root)))
    with (root / "a.csv").open("w") as file:
        file.write("1")
        file.flush()
        settled(watching, root)
        assert watching.notifications == []
    eventually(lambda: watching.notifications == [completed(root / "a.csv")])


def test_names_may_hold_any_bytes(start: Start, root: Path) -> None:
    watching = start(WatchSettings("in", str(root)))
    names = [b"caf\xe9", b"new\nline", b" ", b"\xff\xfe", b"-rf", "grün".encode()]
    expected = set()
    for directory in names:
        path = os.path.join(os.fsencode(root), directory)
        os.mkdir(path)
        for name in names:
            expected.add(os.fsdecode(os.path.join(path, name)))
            with open(os.path.join(path, name), "wb"):
                pass
    eventually(lambda: watching.paths() == expected)
    watching.notifications.clear()
    for file in expected:
        with open(file, "wb"):
            pass
    eventually(lambda: watching.paths(Source.INOTIFY) == expected)


def test_a_renamed_file_is_reported_with_its_old_name(start: Start, root: Path) -> None:
    (root / "a").write_text("1")
    (root / "sub").mkdir()
    watching = start(WatchSettings("in", str(root)))
    (root / "a").rename(root / "sub/b")
    expected = Notification(
        Kind.RENAMED, str(root / "sub/b"), Source.INOTIFY, old_path=str(root / "a")
    )
    eventually(lambda: watching.notifications == [expected])


def test_a_file_renamed_across_two_watches_is_reported_with_its_old_name(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (root / "a").write_text("1")
    watching = start(WatchSettings("in", str(root)), WatchSettings("out", str(tmp_path / "out")))
    (root / "a").rename(tmp_path / "out/a")
    eventually(lambda: watching.renamed() == {(str(root / "a"), str(tmp_path / "out/a"))})


def test_a_file_moved_in_or_renamed_from_an_excluded_name_is_complete(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("1")
    watching = start(WatchSettings("in", str(root)))
    (root / "b.filepart").write_text("1")
    (root / "b.filepart").rename(root / "b")
    (tmp_path / "a").rename(root / "a")
    moved = [completed(root / name, closed=False) for name in ("b", "a")]
    eventually(lambda: watching.notifications == moved)


def test_a_file_renamed_to_an_excluded_name_or_moved_out_is_not_reported(
    start: Start, root: Path, tmp_path: Path
) -> None:
    for name in "ab":
        (root / name).write_text("1")
    watching = start(WatchSettings("in", str(root)))
    (root / "a").rename(root / ".a")
    (root / "b").rename(tmp_path / "b")
    settled(watching, root)
    assert watching.notifications == []


def test_whatever_appears_is_told_of_by_whichever_call(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("1")
    watching = start(WatchSettings("in", str(root)))
    (root / "link").hardlink_to(tmp_path / "a")
    with open(os.open(root, os.O_TMPFILE | os.O_WRONLY), "w") as unnamed:
        unnamed.write("1")
        os.link(f"/proc/self/fd/{unnamed.fileno()}", root / "named", src_dir_fd=unnamed.fileno())
    for number in range(200):
        (root / f"{number}.part").hardlink_to(tmp_path / "a")
        (root / f"{number}").hardlink_to(root / f"{number}.part")
        (root / f"{number}.part").unlink()
    wanted = {str(root / name) for name in ("link", "named", *map(str, range(200)))}
    eventually(lambda: {n.path for n in watching.appeared} == wanted)
    assert all(
        n == completed(root / Path(n.path).name, closed=False)._replace(appeared=True)
        for n in watching.appeared
    )


def test_a_small_file_is_told_of_once(start: Start, root: Path) -> None:
    """Its events come in one read, or else what was created is closed a moment later."""
    watching = start(WatchSettings("in", str(root)))
    watching.has_room.clear()
    (root / "first").write_text("1")
    time.sleep(0.1)  # the watcher waits with it, if it was that quick
    for number in range(300):
        (root / f"{number}").write_text("1")
    watching.has_room.set()
    eventually(lambda: len(watching.paths(Source.INOTIFY)) == 301)
    assert len(watching.appeared) <= 2


def test_what_is_read_together_is_told_together_each_file_once(root: Path, tmp_path: Path) -> None:
    told: list[list[str]] = []
    reading, has_room = threading.Event(), threading.Event()

    def submit(notifications: Sequence[Notification]) -> None:
        told.append([Path(n.path).name for n in notifications if n.closed])
        reading.set()
        has_room.wait()

    watcher = Watcher(
        [WatchSettings("in", str(root))],
        submit=submit,
        rescan=lambda _watch, _subpath: None,
        excluded=lambda _watch, subpath: subpath.startswith("."),
    )
    watcher.start()
    try:
        eventually(lambda: watcher.status()["in"]["state"] == "watching")
        (tmp_path / "first").write_text("1")
        (tmp_path / "first").rename(root / "first")
        reading.wait()
        for name in ("a", "b", ".c", "a"):
            (root / name).write_text("1")
        (root / "b").rename(root / "d")
        (root / "d").write_text("2")
        has_room.set()
        eventually(lambda: "d" in told[-1])
        assert told[-1] == ["b", "a", "d"]
    finally:
        watcher.stop()
        watcher.join()


def test_symlinked_directories_are_not_followed(start: Start, root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "elsewhere")
    watching = start(WatchSettings("in", str(root)))
    (root / "later").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/a").write_text("1")
    (root / "b").write_text("1")
    settled(watching, root)
    assert watching.notifications == [completed(root / "b")]
    assert watching.directories() == 1


def test_a_root_may_be_a_symlink_and_paths_are_below_it(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(root)
    watching = start(WatchSettings("in", str(tmp_path / "link")))
    (root / "a").write_text("1")
    eventually(lambda: watching.notifications == [completed(tmp_path / "link/a")])


@pytest.mark.parametrize("attempt", range(3))
def test_no_file_in_quickly_made_directories_is_missed(
    start: Start, root: Path, attempt: int
) -> None:
    watching = start(WatchSettings("in", str(root)))
    script = "for i in $(seq 300); do mkdir -p $i/b/c/d; echo 1 > $i/b/c/d/f; done"
    subprocess.run(["sh", "-c", script], cwd=root, check=True)
    expected = {str(root / f"{i}/b/c/d/f") for i in range(1, 301)}
    eventually(lambda: watching.paths() == expected)
    eventually(lambda: watching.directories() == 1201)


def test_a_directory_moved_in_is_watched_and_all_its_files_are_found(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "new/deep/deeper").mkdir(parents=True)
    for sub in ("new", "new/deep", "new/deep/deeper"):
        (tmp_path / sub / "f").write_text("1")
    watching = start(WatchSettings("in", str(root)))
    (tmp_path / "new").rename(root / "new")
    found = {str(root / sub / "f") for sub in ("new", "new/deep", "new/deep/deeper")}
    eventually(lambda: watching.paths(Source.SCAN) == found)
    (root / "new/deep/deeper/g").write_text("1")
    eventually(lambda: completed(root / "new/deep/deeper/g") in watching.notifications)
    assert watching.renamed() == set()


def test_a_directory_moved_out_is_not_watched_any_more(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (root / "old/deep/deeper").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root)))
    assert watching.directories() == 4
    (root / "old").rename(tmp_path / "old")
    (tmp_path / "old/f").write_text("1")
    (tmp_path / "old/deep/deeper/f").write_text("1")
    eventually(lambda: watches_of(watching) == 1)
    (tmp_path / "old/deep/f").write_text("1")
    settled(watching, root)
    assert watching.notifications == []


def watches_of(watching: Watching) -> int:
    """How many watches the kernel holds for the watcher."""
    fd = watching.watcher._inotify._fd
    return Path(f"/proc/self/fdinfo/{fd}").read_text().count("inotify wd:")


def test_a_directory_renamed_keeps_its_watches_and_is_scanned(start: Start, root: Path) -> None:
    (root / "old/deep").mkdir(parents=True)
    (root / "old/deep/before").write_text("1")
    watching = start(WatchSettings("in", str(root)))
    (root / "old").rename(root / "new")
    (root / "new/deep/after").write_text("1")
    eventually(
        lambda: (
            watching.notifications[:1]
            == [
                Notification(
                    Kind.RENAMED,
                    str(root / "new"),
                    Source.INOTIFY,
                    old_path=str(root / "old"),
                    is_directory=True,
                )
            ]
        )
    )
    expected = {str(root / "new/deep/before"), str(root / "new/deep/after")}
    eventually(lambda: watching.paths() == expected)
    assert ("in", "new") in watching.rescans
    assert watching.directories() == watches_of(watching) == 3


def test_a_directory_renamed_across_two_watches_belongs_to_the_other(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (root / "a/b").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root)), WatchSettings("out", str(tmp_path / "out")))
    (root / "a").rename(tmp_path / "out/a")
    (tmp_path / "out/a/b/f").write_text("1")
    eventually(lambda: str(tmp_path / "out/a/b/f") in watching.paths())
    eventually(lambda: watching.rescans == [("out", "a")])
    assert watching.renamed() == {(str(root / "a"), str(tmp_path / "out/a"))}
    assert (watching.directories("in"), watching.directories("out")) == (1, 3)


def test_a_directory_renamed_from_an_excluded_name_is_one_moved_in(
    start: Start, root: Path
) -> None:
    (root / ".dstXXXX/deep").mkdir(parents=True)
    (root / ".dstXXXX/deep/f").write_text("1")
    watching = start(WatchSettings("in", str(root)))
    assert watching.directories() == 1
    (root / ".dstXXXX").rename(root / "dir")
    eventually(lambda: watching.paths() == {str(root / "dir/deep/f")})
    assert watching.renamed() == set()
    assert watching.directories() == 3


def test_a_directory_renamed_to_an_excluded_name_is_one_moved_out(start: Start, root: Path) -> None:
    (root / "dir/deep").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root)))
    (root / "dir").rename(root / ".dir")
    (root / ".dir/deep/f").write_text("1")
    eventually(lambda: watches_of(watching) == 1)
    settled(watching, root)
    assert watching.notifications == []


def test_directories_are_counted_again_only_after_a_change(
    start: Start, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def count(node: Node) -> int:
        counted.append(node)
        return whole(node)

    whole = Node.count
    monkeypatch.setattr(Node, "count", count)
    (root / "a/b").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root)))
    assert watching.directories() == 3
    counted.clear()
    assert [watching.directories() for _ in range(3)] == [3, 3, 3]
    assert not counted
    (root / "a").rename(tmp_path / "away")
    eventually(lambda: watching.directories() == 1)
    (tmp_path / "away").rename(root / "c")
    eventually(lambda: watching.directories() == 3)
    (root / "c/b").rmdir()
    eventually(lambda: watching.directories() == 2)


def test_every_file_is_reported_under_its_last_name_while_directories_are_renamed(
    start: Start, root: Path
) -> None:
    """A writer in a nested directory, while it and those around it get new names."""
    (root / "a0/b0/c0").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root)))
    here = os.open(root / "a0/b0/c0", os.O_RDONLY)
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, dir_fd=here))
            number += 1
            time.sleep(0.0005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for i in range(60):
            (root / f"a{i}/b{i}/c{i}").rename(root / f"a{i}/b{i}/c{i + 1}")
            (root / f"a{i}/b{i}").rename(root / f"a{i}/b{i + 1}")
            (root / f"a{i}").rename(root / f"a{i + 1}")
            (root / f"a{i + 1}/b{i + 1}/new").mkdir()
            (root / f"a{i + 1}/b{i + 1}/new").rename(root / f"a{i + 1}/new{i}")
            (root / f"a{i + 1}/new{i}/f").write_text("1")
    finally:
        done.set()
        writer.join()
        os.close(here)
    expected = {os.path.join(above, name) for above, _, names in os.walk(root) for name in names}
    assert len(expected) > 60
    eventually(lambda: expected <= watching.paths())
    settled(watching, root)
    eventually(lambda: watching.directories() == watches_of(watching) == 64)
    watching.notifications.clear()
    for path in expected:
        Path(path).write_text("2")
    eventually(lambda: watching.paths(Source.INOTIFY) == expected)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_done_to_directories_each_is_watched_under_its_name(
    start: Start, root: Path, tmp_path: Path, seed: int
) -> None:
    """Made, renamed, moved in and out and across three watches, excluded and removed at random."""
    chance = random.Random(seed)
    tops = [root, tmp_path / "other", tmp_path / "outside"]
    for top in tops[1:]:
        top.mkdir()
    inner = root / "a/b"
    watching = start(
        WatchSettings("in", str(root)),
        WatchSettings("other", str(tops[1])),
        WatchSettings("inner", str(inner)),
        waiting=False,
    )
    for number in range(400):
        directories = [Path(above) for top in tops for above, _, _ in os.walk(top)]
        one, other = chance.choice(directories), chance.choice(directories)
        name, deeper = chance.choice(["a", "b", "c", ".x"]), chance.choice("abc")
        with contextlib.suppress(OSError):  # not all that chance proposes can be done
            match chance.choice(["make", "make", "make", "rename", "rename", "remove", "write"]):
                case "make":
                    (one / name / deeper).mkdir(parents=True)
                case "rename" if one not in tops:
                    one.rename(other / name)
                case "remove" if one not in tops:
                    shutil.rmtree(one)
                case "write":
                    (one / f"{number}").write_text("1")
    watched, files = {"in": 0, "other": 0, "inner": 0}, set()
    for watch, top in zip(("in", "other"), tops, strict=False):
        for above, names, inside in os.walk(top):
            names[:] = [name for name in names if name != ".x"]
            watched["inner" if Path(above).is_relative_to(inner) else watch] += 1
            files |= {os.path.join(above, name) for name in inside}
    eventually(lambda: {watch: watching.directories(watch) for watch in watched} == watched)
    eventually(lambda: files <= watching.paths())
    watching.notifications.clear()
    for path in files:
        Path(path).write_text("2")
    eventually(lambda: watching.paths(Source.INOTIFY) == files)
    eventually(lambda: watches_of(watching) == sum(watched.values()))


def test_a_directory_made_again_under_the_same_name_is_watched(start: Start, root: Path) -> None:
    watching = start(WatchSettings("in", str(root)))
    script = "for i in $(seq 100); do mkdir a; rmdir a; done; mkdir a; echo 1 > a/f"
    subprocess.run(["sh", "-c", script], cwd=root, check=True)
    eventually(lambda: watching.paths() == {str(root / "a/f")})
    (root / "a/g").write_text("1")
    eventually(lambda: completed(root / "a/g") in watching.notifications)
    eventually(lambda: watching.directories() == watches_of(watching) == 2)


def test_two_directories_that_exchange_their_names_are_reported_right(
    start: Start, root: Path
) -> None:
    for name in "ab":
        (root / name / f"sub{name}").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root)))
    # Only the kernel's rename2 can exchange at once; this is as near as rename(2) comes.
    (root / "a").rename(root / "c")
    (root / "b").rename(root / "a")
    (root / "c").rename(root / "b")
    settled(watching, root)
    watching.notifications.clear()
    (root / "a/subb/f").write_text("1")
    (root / "b/suba/f").write_text("1")
    eventually(
        lambda: watching.paths(Source.INOTIFY) == {str(root / "a/subb/f"), str(root / "b/suba/f")}
    )


def test_twenty_thousand_quick_files_are_all_reported(start: Start, root: Path) -> None:
    watching = start(WatchSettings("in", str(root)))
    script = "import sys\nfor i in range(20000): open(f'{sys.argv[1]}/{i}', 'w').close()"
    subprocess.run([sys.executable, "-I", "-S", "-c", script, str(root)], check=True)
    # What is asked for often must not keep the watcher's thread from its work.
    eventually(lambda: len(watching.notifications) >= 20000, timeout=60)
    eventually(lambda: len(watching.paths()) == 20000, timeout=30)


def test_the_inner_of_two_nested_watches_owns_its_directory(start: Start, root: Path) -> None:
    (root / "a/inner/deep").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root)), WatchSettings("inner", str(root / "a/inner")))
    assert (watching.directories("in"), watching.directories("inner")) == (2, 2)
    (root / "a/inner/deep/f").write_text("1")
    eventually(lambda: watching.notifications == [completed(root / "a/inner/deep/f")])
    (root / "a/inner").rename(root / "a/other")
    eventually(lambda: watching.state("inner") == "missing")
    (root / "a/other/deep/g").write_text("1")
    eventually(lambda: str(root / "a/other/deep/g") in watching.paths())
    eventually(lambda: (watching.directories("in"), watching.directories("inner")) == (4, 0))
    (root / "a/other").rename(root / "a/inner")
    eventually(lambda: watching.state("inner") == "watching")
    (root / "a/inner/deep/h").write_text("1")
    eventually(lambda: str(root / "a/inner/deep/h") in watching.paths())
    eventually(lambda: (watching.directories("in"), watching.directories("inner")) == (2, 2))


def test_without_rec_only_the_directory_itself_is_watched(start: Start, root: Path) -> None:
    (root / "old").mkdir()
    watching = start(WatchSettings("in", str(root), rec=False))
    (root / "new").mkdir()
    for name in ("old/f", "new/f", "f"):
        (root / name).write_text("1")
    settled(watching, root)
    assert watching.notifications == [completed(root / "f")]
    assert watching.directories() == 1


def test_without_auto_add_directories_that_were_there_are_watched_and_new_ones_are_not(
    start: Start, root: Path
) -> None:
    (root / "old/deep").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root), auto_add=False))
    (root / "new").mkdir()
    for name in ("new/f", "old/deep/f"):
        (root / name).write_text("1")
    settled(watching, root)
    assert watching.notifications == [completed(root / "old/deep/f")]
    (root / "old").rename(root / "old2")
    (root / "old2/deep/g").write_text("1")
    eventually(lambda: str(root / "old2/deep/g") in watching.paths())
    assert watching.directories() == 3


def test_a_missing_root_is_waited_for_and_scanned_when_it_comes(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "later"
    with caplog.at_level(logging.INFO):
        watching = start(WatchSettings("in", str(path)), waiting=False)
        eventually(lambda: watching.state() == "missing")
        (tmp_path / "made").mkdir()
        (tmp_path / "made/f").write_text("1")
        (tmp_path / "made").rename(path)
        eventually(lambda: watching.paths() == {str(path / "f")})
        (path / "g").write_text("1")
        eventually(lambda: completed(path / "g") in watching.notifications)
    assert sum("Waiting for it" in r.message for r in caplog.records) == 1
    assert watching.state() == "watching"


@pytest.mark.parametrize("how", ["deleted", "moved away", "moved with its parent"])
def test_a_root_that_vanishes_and_comes_back_is_watched_anew(
    start: Start, root: Path, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "parent/root"
    (path / "sub").mkdir(parents=True)
    watching = start(WatchSettings("in", str(path)))
    match how:
        case "deleted":
            shutil.rmtree(path)
        case "moved away":
            path.rename(tmp_path / "elsewhere")
        case _:
            path.parent.rename(tmp_path / "elsewhere")
    eventually(lambda: watching.state() == "missing")
    eventually(lambda: watches_of(watching) == 0)
    path.mkdir(parents=True)
    (path / "f").write_text("1")
    eventually(lambda: watching.paths() == {str(path / "f")})
    (path / "g").write_text("1")
    eventually(lambda: completed(path / "g") in watching.notifications)


def test_a_root_replaced_by_another_directory_is_watched_anew(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "other/sub").mkdir(parents=True)
    (tmp_path / "other/sub/f").write_text("1")
    watching = start(WatchSettings("in", str(root)))
    root.rename(tmp_path / "away")
    (tmp_path / "other").rename(root)
    (tmp_path / "away/g").write_text("1")
    eventually(lambda: watching.paths() == {str(root / "sub/f")})
    eventually(lambda: watching.directories() == watches_of(watching) == 2)


@pytest.mark.root
def test_after_an_overflow_everything_is_found_and_the_map_is_right(
    start: Start, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "stays/renamed").mkdir(parents=True)
    (root / "goes/deep").mkdir(parents=True)
    queue = Path("/proc/sys/fs/inotify/max_queued_events")
    usual = queue.read_text()
    queue.write_text("16")
    try:
        # An instance keeps the limit that it was made with.
        watching = start(WatchSettings("in", str(root)))
    finally:
        queue.write_text(usual)
    script = """
        for i in $(seq 500); do echo 1 > f$i; done
        mv stays/renamed stays/other; mv goes ../gone; mkdir -p new/deep; echo 1 > new/deep/f
        for i in $(seq 500); do echo 1 > stays/other/f$i; done
    """
    watching.has_room.clear()
    subprocess.run(["sh", "-c", script], cwd=root, check=True)
    watching.has_room.set()
    eventually(lambda: "overflowed" in caplog.text)
    expected = {str(root / f"f{i}") for i in range(1, 501)}
    expected |= {str(root / f"stays/other/f{i}") for i in range(1, 501)}
    expected.add(str(root / "new/deep/f"))
    eventually(lambda: expected <= watching.paths())
    eventually(lambda: watching.directories() == watches_of(watching) == 5)
    watching.notifications.clear()
    (tmp_path / "gone/deep/f").write_text("1")
    (root / "stays/other/f").write_text("1")
    (root / "new/deep/g").write_text("1")
    late = {str(root / "stays/other/f"), str(root / "new/deep/g")}
    eventually(lambda: late <= watching.paths(Source.INOTIFY))
    assert str(root / "goes/deep/f") not in watching.paths()


def test_an_unreadable_directory_is_reported_and_the_others_are_watched(root: Path) -> None:
    for name in ("closed", "open"):
        (root / name).mkdir()
    (root / "closed").chmod(0)
    # Root reads everything, unless it gives up these rights.
    rights = "-dac_override,-dac_read_search"
    prefix = ["setpriv", "--bounding-set", rights] if os.geteuid() == 0 else []
    script = """if True:
        import json, logging, sys
        from tests.support.deadline import eventually
        from tests.support.watching import Watching
        from watchman.config.settings import WatchSettings
        logging.basicConfig(level="ERROR")
        watching = Watching([WatchSettings("in", sys.argv[1])]).start()
        eventually(lambda: watching.ledgers["in"].sweeps == [False])
        assert watching.state() == "starting"
        eventually(lambda: watching.state() == "incomplete")
        open(sys.argv[1] + "/open/f", "w").close()
        eventually(watching.paths)
        print(json.dumps([watching.watcher.status()["in"], sorted(watching.paths())]))
        watching.stop()
    """
    command = [*prefix, sys.executable, "-W", "ignore", "-c", script, str(root)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    finally:
        (root / "closed").chmod(0o755)
    status, paths = json.loads(run.stdout)
    assert (status["state"], status["directories"], status["unwatched"]) == ("incomplete", 2, 1)
    assert paths == [str(root / "open/f")]
    assert f"'{root / 'closed'}' cannot be watched: Permission denied" in run.stderr


def test_a_directory_that_is_given_away_after_it_was_made_is_watched_soon(root: Path) -> None:
    """As root makes one for a new user; the daemon, who is not root, is too early for it."""
    rights = "-dac_override,-dac_read_search"
    prefix = ["setpriv", "--bounding-set", rights] if os.geteuid() == 0 else []
    script = """if True:
        import os, sys
        from tests.support.deadline import eventually
        from tests.support.watching import Watching
        from watchman.config.settings import WatchSettings
        watching = Watching([WatchSettings("in", sys.argv[1])]).start()
        eventually(lambda: watching.state() == "watching")
        made = sys.argv[1] + "/made"
        os.mkdir(made, 0)
        eventually(lambda: watching.state() == "incomplete")
        os.chmod(made, 0o755)
        eventually(lambda: watching.state() == "watching")
        open(made + "/f", "w").close()
        print(eventually(watching.paths))
        watching.stop()
    """
    command = [*prefix, sys.executable, "-W", "ignore", "-c", script, str(root)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    assert str(root / "made/f") in run.stdout


def test_directories_whose_path_no_call_can_name_are_refused_and_the_others_watched(
    start: Start,
) -> None:
    with tree_too_deep() as directory:
        watching = start(WatchSettings("in", directory), waiting=False)
        eventually(lambda: watching.state() == "incomplete")
        assert watching.directories() == (4095 - len(directory)) // 2 + 1
        assert watching.watcher.status()["in"]["unwatched"] == 1
        Path(directory, "d/d/f").write_text("1")
        eventually(lambda: completed(Path(directory, "d/d/f")) in watching.notifications)
        subprocess.run(["rm", "-rf", os.path.join(directory, "d")], check=True)
        eventually(lambda: watching.directories() == watches_of(watching) == 1)
        assert watching.state() == "watching"


def test_a_symlink_that_takes_the_place_of_a_directory_leads_nowhere(
    start: Start, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret/deep").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root)))
    for i in range(50):
        (root / f"d{i}").mkdir()
        (root / f"d{i}").rmdir()
        (root / f"d{i}").symlink_to(tmp_path / "secret")
    settled(watching, root)
    (tmp_path / "secret/deep/f").write_text("1")
    (tmp_path / "secret/f").write_text("1")
    settled(watching, root)
    assert watching.paths() == set()
    assert watching.directories() == watches_of(watching) == 1


def test_events_are_read_while_a_large_tree_is_covered(start: Start, root: Path) -> None:
    for i in range(60):
        for j in range(100):
            (root / f"big/{i}/{j}").mkdir(parents=True)
    watching = start(WatchSettings("in", str(root)))
    (root / "big").rename(root / "big2")  # its tree is compared with the disk, step by step
    (root / "f").write_text("1")
    eventually(lambda: completed(root / "f") in watching.notifications)
    assert watching.rescans == []
    eventually(lambda: watching.rescans == [("in", "big2")])
    assert watching.directories() == watches_of(watching) == 6062


def test_a_fault_of_a_collaborator_does_not_end_the_thread(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [ValueError("bad day")]
    watching = Watching([WatchSettings("in", str(root))])

    def submit(notifications: Sequence[Notification]) -> None:
        if faults:
            raise faults.pop()
        for notification in notifications:
            watching.submit(notification)

    other = Watcher(
        [WatchSettings("in", str(root))],
        submit=submit,
        rescan=watching._rescan,
        excluded=lambda _watch, _subpath: False,
    )
    watching.scanner.start()
    other.start()
    try:
        eventually(lambda: other.status()["in"]["state"] == "watching")
        (root / "a").write_text("1")
        eventually(lambda: watching.paths() == {str(root / "a")})
        (root / "b").write_text("1")
        eventually(lambda: completed(root / "b") in watching.notifications)
        assert "bad day" in caplog.text
    finally:
        other.stop()
        other.join()
        watching.scanner.stop()
        watching.scanner.join()


def test_stop_ends_the_thread_at_once_and_closes_everything(root: Path) -> None:
    for i in range(2000):
        (root / f"{i}").mkdir()
    before = os.listdir("/proc/self/fd")
    watching = Watching([WatchSettings("in", str(root))]).start()
    began = time.monotonic()
    watching.stop()
    assert time.monotonic() - began < 0.5
    assert os.listdir("/proc/self/fd") == before


def test_the_inotify_descriptor_is_not_inherited_and_pyinotify_keeps_silent(
    start: Start, root: Path
) -> None:
    watching = start(WatchSettings("in", str(root)))
    assert not os.get_inheritable(watching.watcher._inotify._fd)
    assert pyinotify.log.handlers == []
