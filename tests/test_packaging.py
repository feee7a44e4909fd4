"""The wheel: what it holds, and what it tells an installer."""

import email
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message

import pytest
from packaging.requirements import Requirement

from tests.brokers import ROOT
from tests.checkout import copy
from watchman import __version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy, since building leaves scraps beside the sources."""
    source = copy(tmp_path_factory.mktemp("source"))
    built = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", str(built), str(source)]
    subprocess.run(pip, check=True, stdin=subprocess.DEVNULL)
    (file,) = built.glob("watchman_ftp-*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"watchman_ftp-{__version__}.dist-info/{name}").decode()


def headers(wheel: zipfile.ZipFile) -> Message:
    return email.message_from_string(metadata(wheel, "METADATA"))


def test_the_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "watchman").rglob("*.py")}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == modules


def test_the_wheel_makes_both_commands(wheel: zipfile.ZipFile) -> None:
    lines = metadata(wheel, "entry_points.txt").split("\n")
    assert "watchman = watchman.commands.main:main" in lines
    assert "watchman-send = watchman.commands.send:main" in lines


def test_the_wheel_says_what_it_needs(wheel: zipfile.ZipFile) -> None:
    told = headers(wheel)
    assert told["Requires-Python"] == ">=3.11"
    needs = [Requirement(need) for need in told.get_all("Requires-Dist", [])]
    always = [need for need in needs if "extra" not in str(need.marker)]
    assert {need.name: str(need.marker or "") for need in always} == {
        "celery": "",
        "pyinotify": "",
        "pyasyncore": 'python_version >= "3.12"',
    }


def test_the_wheel_carries_licence_and_readme(wheel: zipfile.ZipFile) -> None:
    told = headers(wheel)
    assert "BSD-3-Clause" in (told["License-Expression"], told["License"])
    assert [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert (ROOT / "README.rst").read_text().strip() in metadata(wheel, "METADATA")
