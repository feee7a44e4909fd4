"""Wheel and sdist: what they hold and tell, and that they work where nothing else is installed."""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.project.test_docs import DOCS
from tests.servers.brokers import ROOT
from tests.support import generated
from tests.support.checkout import copy, environment
from watchman import __version__

NAME = f"watchman_ftp-{__version__}"

#: What is installed beside the package, by its place in the checkout.
SHARED = {
    "watchman.ini.example": "share/watchman/watchman.ini.example",
    "supervisord.conf": "share/watchman/supervisord.conf",
    "proftpd/watchman-hook": "share/watchman/watchman-hook",
    "proftpd/watchman.conf": "share/watchman/watchman.conf",
    "proftpd/watchman.logrotate": "share/watchman/watchman.logrotate",
    "proftpd/watchman.tmpfiles": "share/watchman/watchman.tmpfiles",
    "docs/share/systemd/watchman.service": "share/watchman/watchman.service",
    "docs/share/supervisor/watchman.supervisor": "share/watchman/watchman.supervisor",
    "docs/share/prometheus/watchman.rules.yml": "share/watchman/prometheus/watchman.rules.yml",
    "docs/share/grafana/watchman.json": "share/watchman/grafana/watchman.json",
    "README.rst": "share/doc/watchman/README.rst",
    "CHANGES.rst": "share/doc/watchman/CHANGES.rst",
    "CONTRIBUTING.rst": "share/doc/watchman/CONTRIBUTING.rst",
    "LICENSE": "share/doc/watchman/LICENSE",
    "docs/bench.svg": "share/doc/watchman/docs/bench.svg",
}
SHARED |= {
    f"docs/{page.name}": f"share/doc/watchman/docs/{page.name}" for page in DOCS.glob("*.rst")
}
SHARED |= {f"docs/share/{name}": f"share/{name}" for name in generated.files()}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from, since building leaves scraps beside the sources."""
    return copy(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def sources(clone: Path) -> set[str]:
    """The files of a clone, before anything was built in it."""
    return {str(path.relative_to(clone)) for path in clone.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(clone: Path, sources: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sdist is, and the wheel that was made from it alone."""
    directory = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "build", "--outdir", str(directory), str(clone)]
    done = subprocess.run(build, env=environment(), stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as opened:
        yield opened


@pytest.fixture(scope="module")
def sdist(built: Path) -> Iterator[tarfile.TarFile]:
    with tarfile.open(built / f"{NAME}.tar.gz") as opened:
        yield opened


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"{NAME}.dist-info/{name}").decode()


def headers(wheel: zipfile.ZipFile) -> Message:
    return email.message_from_string(metadata(wheel, "METADATA"))


def test_the_sdist_holds_all_that_a_clone_holds(sdist: tarfile.TarFile, sources: set[str]) -> None:
    held = {name.partition("/")[2] for name in sdist.getnames() if sdist.getmember(name).isfile()}
    made = {name for name in held if name.partition("/")[0] == "watchman_ftp.egg-info"}
    assert held - made - {"PKG-INFO", "setup.cfg"} == sources
    assert {"tests/project/test_packaging.py", "proftpd/watchman-hook", "supervisord.conf"} <= held


def test_what_is_executable_stays_so_in_the_sdist(sdist: tarfile.TarFile) -> None:
    for name in ("proftpd/watchman-hook", ".ci/run"):
        assert sdist.getmember(f"{NAME}/{name}").mode & 0o111 == 0o111, name


def test_the_tests_of_the_sdist_run_in_it(sdist: tarfile.TarFile, tmp_path: Path) -> None:
    sdist.extractall(tmp_path, filter="data")
    one = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/config/test_rules.py",
    ]
    done = subprocess.run(one, cwd=tmp_path / NAME, env=environment(), capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


def test_the_wheel_holds_every_module_what_is_shared_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "watchman").rglob("*.py")}
    shared = {f"{NAME}.data/data/{place}" for place in SHARED.values()}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == modules | shared


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
        "prometheus_client": "",
        "rich": "",
        "pyinotify": "",
        "pyasyncore": 'python_version >= "3.12"',
    }


def test_the_wheel_carries_licence_and_readme(wheel: zipfile.ZipFile) -> None:
    told = headers(wheel)
    assert "BSD-3-Clause" in (told["License-Expression"], told["License"])
    assert [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert (ROOT / "README.rst").read_text().strip() in metadata(wheel, "METADATA")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", [f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"])
def test_it_works_where_nothing_else_is_installed(file: str, built: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    own = environment(HOME=str(tmp_path))
    own.pop("PYTHONPATH", None)

    def call(*command: Path | str) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    call(sys.executable, "-m", "venv", "--without-pip", venv)
    # Most of the time goes into what nobody imports here.
    install = ("install", "--quiet", "--use-pep517", "--no-compile", built / file)
    call(sys.executable, "-m", "pip", "--python", venv, *install)
    assert call(venv / "bin/watchman", "--version") == f"watchman {__version__}\n"
    assert "usage: watchman-send" in call(venv / "bin/watchman-send", "--help")

    for source, place in SHARED.items():
        assert (venv / place).read_bytes() == (ROOT / source).read_bytes()
    assert os.access(venv / "share/watchman/watchman-hook", os.X_OK)

    # All that it imports and cannot find would show now; its paths are relative to where it is.
    example = tmp_path / "watchman.ini"
    example.write_bytes((venv / "share/watchman/watchman.ini.example").read_bytes())
    assert "0 errors" in call(venv / "bin/watchman", "-c", example, "check")
