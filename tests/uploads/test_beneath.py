"""A look at a file follows no symlink, opens no device, and knows of writers."""

import os
from pathlib import Path

import pytest

from watchman.errors import NotBelowWatch
from watchman.uploads import beneath
from watchman.uploads.upload import FileState


def seen(root: Path, subpath: str) -> beneath.Look:
    """What a file looked like, closed again."""
    with beneath.look(str(root), subpath) as look:
        return look


def test_a_regular_file_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    file = tmp_path / "a" / "b" / "c.csv"
    file.write_bytes(b"123")
    with beneath.look(str(tmp_path), "a/b/c.csv") as look:
        assert look.sample() == beneath.sample(str(tmp_path), "a/b/c.csv", look.state)
        file.write_bytes(b"1234")
        assert look.sample() == 0, "it has changed since"
        file.write_bytes(b"123")
    look = seen(tmp_path, "a/b/c.csv")
    assert look.state == FileState.of(file.stat()) == beneath.state(str(tmp_path), "a/b/c.csv")
    assert look.writing is False


def test_a_writer_is_seen_until_it_closes(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.write(b"x")
        assert seen(tmp_path, "f").writing is True
    assert seen(tmp_path, "f").writing is False


def test_a_symlink_is_followed_at_the_root_and_nowhere_below(tmp_path: Path) -> None:
    (tmp_path / "real" / "d").mkdir(parents=True)
    (tmp_path / "real" / "d" / "f").write_text("x")
    (tmp_path / "root").symlink_to("real")
    (tmp_path / "real" / "link").symlink_to("d")
    (tmp_path / "real" / "d" / "flink").symlink_to("f")
    assert seen(tmp_path / "root", "d/f").state.size == 1
    for subpath in ("link/f", "d/flink", "d/../d/f", "d/f/f"):
        with pytest.raises(NotBelowWatch):
            beneath.look(str(tmp_path / "root"), subpath)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("fifo", "dir", "dangling"):
        with pytest.raises(NotBelowWatch):
            beneath.look(str(tmp_path), name)
    with pytest.raises(FileNotFoundError):
        beneath.look(str(tmp_path), "nothing")


@pytest.mark.root
def test_a_file_of_another_gives_no_lease(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    file.chmod(0o644)
    for directory in (tmp_path, *tmp_path.parents[:-1]):
        directory.chmod(directory.stat().st_mode | 0o755)
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        os._exit(0 if seen(tmp_path, "f").writing is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("x")
    (tmp_path / "l").symlink_to("d")
    before = sorted(os.listdir("/proc/self/fd"))
    for subpath in ("d/f", "d/g", "l/f", "d", "x/y"):
        try:
            seen(tmp_path, subpath)
        except (NotBelowWatch, OSError):
            continue
    assert sorted(os.listdir("/proc/self/fd")) == before
