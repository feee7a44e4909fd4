"""`make run` in a fresh checkout, word for word; and what stands behind it and `make test`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.support.checkout import PYTHON, copy, environment
from tests.support.deadline import eventually

#: The last line that is printed before it waits.
ENDED = "Ctrl-C ends both."


def processes_in(directory: Path) -> set[int]:
    """The processes whose working directory it is."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == directory:
                found.add(int(process.name))
        except OSError:
            continue
    return found


class MakeRun:
    """A running `make run` whose output goes to a pipe."""

    def __init__(self, checkout: Path, **variables: str) -> None:
        self.lines: list[tuple[float, str]] = []
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            ["make", "run", f"PYTHON={PYTHON}"],
            cwd=checkout,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append((time.monotonic() - self.began, line))

    @property
    def output(self) -> str:
        return "".join(line for _, line in self.lines)

    def wait_for(self, text: str, timeout: float = 30.0) -> float:
        """The seconds since the start after which a line held `text`."""

        def find() -> list[float]:
            assert self.process.poll() is None, f"ended by itself:\n{self.output}"
            return [seconds for seconds, line in self.lines if text in line]

        try:
            return eventually(find, timeout=timeout)[0]
        except AssertionError as e:
            raise AssertionError(f"{text!r}: {e}\n{self.output}") from e

    def wait(self) -> int:
        """Its exit code, once all of it has gone and the pipe is closed."""
        code = self.process.wait(20)
        self.reader.join(20)
        assert not self.reader.is_alive(), "somebody still holds the pipe"
        return code


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests of this file, since an installation takes long."""
    return copy(tmp_path_factory.mktemp("clone"))


@pytest.fixture
def installed(checkout: Path) -> Path:
    done = make_environment(checkout)
    assert done.returncode == 0, done.stderr
    return checkout


@pytest.fixture
def make_run(checkout: Path) -> Iterator[Callable[..., MakeRun]]:
    runs = []

    def start(**variables: str) -> MakeRun:
        runs.append(MakeRun(checkout, **variables))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
    eventually(lambda: not processes_in(checkout))


@pytest.mark.timeout(300)
def test_make_run_shows_how_a_file_becomes_a_task(
    checkout: Path, make_run: Callable[..., MakeRun]
) -> None:
    run = make_run()
    begun = run.wait_for("Starting the daemon", timeout=240)
    assert run.wait_for(ENDED) - begun < 10

    path = checkout / "var/incoming/example.csv"
    chain = [
        r"Writing var/incoming/example\.csv",
        rf"Accepted upload ([0-9a-f-]+), noticed by (?:inotify|scan): '{path}'",
        rf"Received task \1: .*'{path}'",
        r"cp FILE var/incoming/",
        r"\.venv/bin/watchman -c watchman\.ini\.example status",
    ]
    found = re.search(".*".join(chain), run.output, re.S)
    assert found, run.output
    # The worker may be quicker than the daemon's log.
    eventually(lambda: f"Sent upload {found[1]} to broker demo" in run.output)
    assert "root" not in run.output.replace(str(checkout), "")

    (checkout / "more.csv").write_text("1\n")
    subprocess.run(["cp", "more.csv", "var/incoming/"], cwd=checkout, check=True)
    eventually(lambda: re.search("Received task .*/more.csv", run.output))

    status = [".venv/bin/watchman", "-c", "watchman.ini.example", "status"]
    subprocess.run(status, cwd=checkout, check=True, capture_output=True)

    # As Ctrl-C does it: to make and all that it started.
    os.killpg(run.process.pid, signal.SIGINT)
    run.wait()
    assert "Stopped." in run.output
    assert "Traceback" not in run.output
    assert not processes_in(checkout)


def test_a_second_run_installs_nothing_and_is_quick(
    installed: Path, make_run: Callable[..., MakeRun]
) -> None:
    # No index and no proxy that answers: it has to do without a network.
    run = make_run(PIP_NO_INDEX="1", PIP_PROXY="http://127.0.0.1:9")
    assert run.wait_for("Starting the daemon") < 3
    assert run.wait_for(ENDED) < 13
    assert "Installing" not in run.output
    run.process.terminate()
    run.wait()
    assert "Stopped." in run.output


@pytest.mark.parametrize("victim", ["make", "demo"])
def test_a_run_that_is_killed_leaves_nothing_behind(
    victim: str, installed: Path, make_run: Callable[..., MakeRun]
) -> None:
    run = make_run()
    run.wait_for(ENDED)
    pids = processes_in(installed)
    if victim == "demo":
        (pid,) = (pid for pid in pids if b"watchman.demo\0" in command_line(pid))
    else:
        pid = run.process.pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not processes_in(installed), timeout=20)
    run.wait()

    again = make_run()
    again.wait_for(ENDED)
    again.process.terminate()
    again.wait()


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_daemon_that_cannot_start_ends_the_run(
    installed: Path, make_run: Callable[..., MakeRun]
) -> None:
    first = make_run()
    first.wait_for(ENDED)
    second = make_run()
    assert second.wait() == 2
    assert "holds the spool" in second.output
    assert "The daemon ended by itself." in second.output
    assert first.process.poll() is None
    first.process.terminate()
    first.wait()


def test_a_reader_that_goes_away_ends_the_run(installed: Path) -> None:
    script = f"make run PYTHON={PYTHON} | head -n 3"
    done = subprocess.run(
        ["sh", "-c", script], cwd=installed, env=environment(), capture_output=True, timeout=60
    )
    assert done.stdout.count(b"\n") == 3
    assert done.stderr == b""
    assert not processes_in(installed)


def make_environment(
    checkout: Path, *, python: Path = PYTHON, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [".ci/make-environment", str(python), ".venv"],
        cwd=checkout,
        env=environment(**(variables or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.timeout(300)
def test_a_changed_setup_is_installed_again(installed: Path) -> None:
    with (installed / "setup.py").open("a") as file:
        file.write("# changed\n")
    assert make_environment(installed).stdout == "Installing watchman from PyPI into .venv\n"
    assert make_environment(installed).stdout == ""


def break_interpreter(venv: Path) -> None:
    (venv / "bin/python").unlink()
    (venv / "bin/python").symlink_to("/nowhere/python3")


def break_packages(venv: Path) -> None:
    (package,) = venv.glob("lib/*/site-packages/celery")
    shutil.rmtree(package)


def move_it(venv: Path) -> None:
    stamp = venv / "installed"
    stamp.write_text(f"/elsewhere{stamp.read_text()}")


@pytest.mark.parametrize("damage", [break_interpreter, break_packages, move_it])
def test_a_broken_environment_is_noticed(
    damage: Callable[[Path], None], installed: Path, tmp_path: Path
) -> None:
    venv = installed / ".venv"
    whole = shutil.copytree(venv, tmp_path / "venv", symlinks=True)
    damage(venv)
    # Without an index it gets no further.
    done = make_environment(installed, variables={"PIP_NO_INDEX": "1"})
    assert done.returncode == 1
    assert done.stdout.startswith("Making .venv with Python 3.")
    shutil.rmtree(venv)
    whole.rename(venv)


@pytest.mark.timeout(300)
def test_a_half_made_environment_is_made_again(installed: Path) -> None:
    (installed / ".venv/installed").unlink()
    assert make_environment(installed).stdout.startswith("Making .venv with Python 3.")
    assert make_environment(installed).stdout == ""


def test_a_python_that_is_too_old_is_refused_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\necho 3.9.2\nexit 1\n")
    old.chmod(0o755)
    done = make_environment(ROOT, python=old)
    assert done.returncode == 1
    assert done.stderr.startswith("watchman needs Python 3.11 or later,")
    assert "is 3.9.2" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.root
def test_without_venv_root_and_sudo_one_line_says_what_to_type(tmp_path: Path) -> None:
    """As an ordinary user whose Python has no ensurepip, as on a fresh Debian."""
    missing = tmp_path / "ensurepip.py"
    missing.write_text("raise ImportError\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "id", "dirname", "cksum", "cat"):
        (programs / name).symlink_to(str(shutil.which(name)))
    nowhere = tmp_path / "venv"
    script = [ROOT / ".ci/make-environment", PYTHON, nowhere]
    done = subprocess.run(
        ["/usr/bin/unshare", "--user", "--map-user=1000", *script],
        cwd=ROOT,
        env={"PATH": str(programs), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"Missing Debian packages. Type, as root: apt-get install python3\.\d+-venv\n", done.stderr
    )
    assert not nowhere.exists()


SAMPLE = """\
import pytest

def test_that_runs():
    assert True

@pytest.mark.root
def test_that_needs_root():
    assert True

@pytest.mark.skipif("WITHOUT_SKIPS" not in __import__("os").environ, reason="a sample")
def test_that_is_left_out():
    assert True
"""


def run_sample(
    directory: Path, *options: str, prefix: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    sample = directory / "test_sample.py"
    sample.write_text(SAMPLE)
    pytest_here = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*prefix, *pytest_here, f"--config-file={ROOT}/pyproject.toml", *options, str(sample)],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
    )


def test_a_test_that_was_left_out_fails_ci_and_nothing_else(tmp_path: Path) -> None:
    assert run_sample(tmp_path).returncode == 0
    done = run_sample(tmp_path, "--no-skips")
    assert done.returncode == 1
    assert re.search(r"^[12] tests were left out, and none may be\.$", done.stdout, re.M)


@pytest.mark.root
def test_without_root_the_last_line_says_how_many_tests_need_it(tmp_path: Path) -> None:
    # Not root to whoever asks, though our files stay readable.
    done = run_sample(tmp_path, prefix=("unshare", "--user", "--map-user=1000"), WITHOUT_SKIPS="1")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "1 tests need root: run sudo make test"
