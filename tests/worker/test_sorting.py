"""Files are sorted into folders beside them: the right one, and in nobody's place."""

import os
from pathlib import Path

import pytest

from watchman.worker import sorting
from watchman.worker.announced import Announced

ID = "6f1e0c2a-9b52-4c60-8f4e-0a1f5f3a9d10"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.csv"
    path.write_text("ours")
    return path


def announced(path: Path) -> Announced:
    inode = path.stat().st_ino if path.exists() else None
    return Announced(ID, str(path), str(path), inode=inode)


def sort(path: Path) -> bool:
    mark = sorting.mark_of(str(path))
    assert mark is not None
    return sorting.sort(announced(path), "accepted", mark)


def test_a_taken_name_stays_as_it_is(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "accepted"
    folder.mkdir()
    (folder / "a.csv").write_text("first")
    assert sort(path)
    path.write_text("ours, too")
    assert sort(path)
    held = {file.name: file.read_text() for file in folder.iterdir()}
    assert held == {"a.csv": "first", "a@6f1e0c2a.csv": "ours", f"a@{ID}.csv": "ours, too"}
    path.write_text("no more names")
    with pytest.raises(FileExistsError):
        sort(path)


def test_what_was_linked_and_not_unlinked_is_completed(path: Path, tmp_path: Path) -> None:
    """As a crash leaves it on a filesystem that cannot rename without replacing."""
    (tmp_path / "accepted").mkdir()
    os.link(path, tmp_path / "accepted" / "a.csv")
    assert sort(path)
    assert not path.exists()
    assert [file.name for file in (tmp_path / "accepted").iterdir()] == ["a.csv"]


def test_another_file_of_that_name_is_left(path: Path, tmp_path: Path) -> None:
    mark = sorting.mark_of(str(path))
    assert mark is not None
    upload = announced(path)
    (tmp_path / "new").write_text("ours")
    (tmp_path / "new").rename(path)
    assert not sorting.sort(upload, "accepted", mark)
    assert path.read_text() == "ours"


def test_a_symlink_in_the_place_of_the_folder_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "accepted").symlink_to("elsewhere")
    with pytest.raises(OSError, match="accepted"):
        sort(path)
    assert path.exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    path = tmp_path / f"{'ä' * 125}.csv"
    path.write_text("ours")
    (tmp_path / "accepted").mkdir()
    (tmp_path / "accepted" / path.name).write_text("first")
    assert sort(path)
    [name] = {file.name for file in (tmp_path / "accepted").iterdir()} - {path.name}
    assert name.endswith("ä@6f1e0c2a.csv")


def test_a_sorted_file_is_known_by_its_inode(path: Path, tmp_path: Path) -> None:
    upload = announced(path)
    assert not sorting.is_sorted(upload, "accepted")
    assert sort(path)
    assert sorting.is_sorted(upload, "accepted")
    (tmp_path / "accepted" / "a.csv").rename(tmp_path / "kept")
    (tmp_path / "accepted" / "a.csv").write_text("another")
    assert not sorting.is_sorted(upload, "accepted")


def test_a_name_of_any_bytes_is_text_and_bytes() -> None:
    header = {"id": ID, "path": "/srv/caf\udce9.csv", "original": "/in/ä.csv", "size": 3}
    upload = Announced.of("task", header, ["/elsewhere"], {})
    assert (upload.id, upload.size, upload.user) == (ID, 3, "")
    assert (upload.path, upload.path_bytes) == ("/srv/caf\udce9.csv", b"/srv/caf\xe9.csv")
    assert upload.original_bytes == "/in/ä.csv".encode()


def test_without_a_header_the_arguments_have_the_path() -> None:
    assert Announced.of("task", None, ["/a"], {}).path == "/a"
    assert Announced.of("task", None, [], {"path": "/a"}) == (
        "task",
        "/a",
        "/a",
        *[""] * 4,
        *[None] * 2,
    )
    with pytest.raises(ValueError, match="no path"):
        Announced.of("task", {"id": ID}, [3], {})
