"""Names that a move gives."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.test_rules import FTP, INNER, names, settings
from watchman.config.moves import NAME_MAX, claim_name, copy_name, destination_of, unique_name
from watchman.config.rules import Rules
from watchman.config.settings import MoveSettings, WatchSettings
from watchman.errors import Obstructed
from watchman.uploads.beneath import below, is_below, subpath_of

STORAGE = MoveSettings("storage", "/srv/ftp", "/mnt/storage")
ALICE = MoveSettings("alice", "/srv/ftp/alice", "/mnt/alice", unique="always")


def test_a_unique_name_keeps_the_suffix() -> None:
    assert unique_name("foo.txt", 1596705456400) == "foo@1596705456400.txt"
    assert unique_name("foo.tar.gz", 1) == "foo.tar@1.gz"
    assert unique_name("foo", 1) == "foo@1"
    assert unique_name(".foo", 1) == ".foo@1"


@given(
    name=st.binary(min_size=1, max_size=255)
    .filter(lambda name: b"/" not in name and b"\0" not in name)
    .map(os.fsdecode),
    milliseconds=st.integers(0, 10**13),
)
def test_a_unique_name_is_a_name_and_another_one(name: str, milliseconds: int) -> None:
    unique = unique_name(name, milliseconds)
    assert 0 < len(os.fsencode(unique)) <= NAME_MAX
    assert "/" not in unique
    assert unique != name
    assert unique != unique_name(name, milliseconds + 1)


@given(names)
def test_a_file_goes_to_the_same_place_below_the_destination(name: str) -> None:
    assert destination_of(STORAGE, f"/srv/ftp/a/b/{name}", 1) == f"/mnt/storage/a/b/{name}"
    assert destination_of(STORAGE, f"/srv/ftp/{name}", 1) == f"/mnt/storage/{name}"


def test_a_name_may_always_be_made_unique() -> None:
    assert destination_of(ALICE, "/srv/ftp/alice/a.csv", 12) == "/mnt/alice/a@12.csv"


def test_the_root_directory_is_above_everything() -> None:
    assert is_below("/srv", "/")
    assert is_below("/", "/")
    assert not is_below("/srv2", "/srv")
    root = MoveSettings("root", "/", "/mnt/storage")
    assert destination_of(root, "/srv/a.csv", 1) == "/mnt/storage/srv/a.csv"


def test_a_move_with_another_source_by_now_has_no_destination_for_a_file_of_the_old_one() -> None:
    with pytest.raises(Obstructed, match="not below the source of"):
        destination_of(ALICE, "/srv/ftp/bob/a.csv", 1)


plain_paths = st.lists(st.sampled_from(["a", "b", "a b", "..a"]), max_size=4).map(
    lambda names: "/" + "/".join(names)
)


@given(plain_paths, plain_paths)
def test_a_subpath_is_what_relpath_says_and_below_puts_it_back(path: str, root: str) -> None:
    subpath = subpath_of(path, root)
    assert is_below(path, root) is (subpath is not None)
    if subpath is None:
        assert os.path.relpath(path, root).split("/")[0] == ".."
    else:
        assert os.path.relpath(path, root) == (subpath or ".")
        assert below(root, subpath) == path


def test_the_longest_source_above_a_path_moves_it() -> None:
    rules = Rules(settings(FTP, moves=(STORAGE, ALICE)))
    for path, move in (
        ("/srv/ftp/a.csv", STORAGE),
        ("/srv/ftp/alice/a.csv", ALICE),
        ("/srv/ftp/alice2/a.csv", STORAGE),
        ("/srv/other/a.csv", None),
    ):
        assert rules.move_for(path) == move, path


def test_what_the_mover_has_in_hand_is_no_upload_whatever_the_ini_file_says() -> None:
    watch = WatchSettings("ftp", "/srv/ftp", exclude_defaults=False)
    rules = Rules(settings(watch))
    upload_id = "0c4a2b1e-9f2c-4b7e-8c59-1f1f9a4a9d10"
    for name in (claim_name(upload_id), copy_name(upload_id)):
        assert rules.excluded(watch, f"a/{name}") == ".watchman-*"
    assert claim_name(upload_id) != copy_name(upload_id)
    assert rules.excluded(watch, ".htaccess") is None


def test_nothing_below_a_destination_is_an_upload() -> None:
    done = MoveSettings("done", "/srv/ftp/in", "/srv/ftp/inner/done")
    rules = Rules(settings(FTP, INNER, moves=(done,)))
    for watch, subpath in ((FTP, "inner/done"), (FTP, "inner/done/a/a.csv"), (INNER, "done/a.csv")):
        assert rules.excluded(watch, subpath) == "[move:done], whose destination it lies below"
    for watch, subpath in ((FTP, "inner"), (FTP, "inner/done2/a.csv"), (INNER, "donea.csv")):
        assert rules.excluded(watch, subpath) is None
