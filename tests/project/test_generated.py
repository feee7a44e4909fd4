"""Completions and manual pages: as our parsers are now, and as shells and man take them."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.support import generated
from tests.support.needs import need

SHARE = ROOT / "share"

BASH = SHARE / "bash-completion/completions"
ZSH = SHARE / "zsh/site-functions"
FISH = SHARE / "fish/vendor_completions.d"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return generated.files()


def test_what_is_shared_is_what_the_parsers_make(made: Mapping[str, str]) -> None:
    """Where it is not: `make generated`."""
    for name, text in made.items():
        assert (SHARE / name).read_text() == text, f"make generated writes {name} again"
        assert set(os.listdir((SHARE / name).parent)) == {
            Path(other).name for other in made if Path(other).parent == Path(name).parent
        }


def test_shells_can_read_their_completions() -> None:
    need("bash", "zsh", "fish")
    for shell, place in (("bash", BASH), ("zsh", ZSH), ("fish", FISH)):
        for file in place.iterdir():
            done = subprocess.run([shell, "-n", file], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), file


def typed(command: list[str], lines: list[str], directory: Path, wanted: str) -> None:
    """Type into a shell on a terminal, and wait until the terminal shows what is wanted."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(directory)
        environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "TERM": "dumb"}
        os.execvpe(command[0], command, environment)
    shown = b""
    deadline = time.monotonic() + 20
    try:
        for line in lines:
            os.write(terminal, line.encode())
        while wanted.encode() not in shown:
            assert time.monotonic() < deadline, shown.decode(errors="replace")
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 4096)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


#: What is typed, and what the line becomes.
TYPED = {
    "watchman sta": "watchman status ",
    "watchman queue --lim": "watchman queue --limit",
    "watchman check --proftpd pro": "watchman check --proftpd proftpd.conf",
    "watchman-send --same": "watchman-send --same-id",
    "watchman-send up": "watchman-send upload.csv",
}


@pytest.mark.parametrize("begun", TYPED)
def test_bash_completes(begun: str, tmp_path: Path) -> None:
    need("bash")
    (tmp_path / "proftpd.conf").touch()
    (tmp_path / "upload.csv").touch()
    bash = ["bash", "--norc", "--noprofile", "-i"]
    sourced = [f"source {file}\n" for file in BASH.iterdir()]
    # Not what is typed, but what readline makes of it.
    typed(bash, [*sourced, "PS1=; echo; clear\n", f"{begun}\t"], tmp_path, TYPED[begun])


@pytest.mark.parametrize("begun", TYPED)
def test_zsh_completes(begun: str, tmp_path: Path) -> None:
    need("zsh")
    (tmp_path / "proftpd.conf").touch()
    (tmp_path / "upload.csv").touch()
    lines = [f"fpath=({ZSH} $fpath); autoload -U compinit; compinit -D -u\n", f"{begun}\t"]
    typed(["zsh", "-f", "-i"], lines, tmp_path, TYPED[begun])


@pytest.mark.parametrize("begun", TYPED)
def test_fish_completes(begun: str, tmp_path: Path) -> None:
    need("fish")
    (tmp_path / "proftpd.conf").touch()
    (tmp_path / "upload.csv").touch()
    sourced = "; ".join(f"source {file}" for file in FISH.iterdir())
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{sourced}; complete -C '{begun}'"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    found = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert TYPED[begun].split()[-1] in found, done.stderr


def test_man_takes_the_manuals_without_a_warning() -> None:
    need("mandoc", "man")
    for page in (SHARE / "man/man1").iterdir():
        lint = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True
        )
        assert (lint.returncode, lint.stdout) == (0, "")
        man = subprocess.run(["man", "-l", "--warnings", page], capture_output=True, text=True)
        assert (man.returncode, man.stderr) == (0, "")


def test_the_manual_tells_of_each_command(made: Mapping[str, str]) -> None:
    page = (SHARE / "man/man1/watchman.1").read_text().replace("\\-", "-")
    for command in generated.main.COMMANDS:
        assert f"usage: watchman {command}" in page
    for heading in ("COMMANDS", "EXAMPLES", "EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"):
        assert f"{heading}\n" in page
