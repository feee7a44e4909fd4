"""Completions and manual pages: as our parsers are now, and as shells and man take them."""

import os
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.servers.brokers import ROOT
from tests.support import generated
from tests.support.needs import need

SHARE = ROOT / "docs/share"

BASH = SHARE / "bash-completion/completions"
ZSH = SHARE / "zsh/site-functions"
FISH = SHARE / "fish/vendor_completions.d"


#: What is typed, and what the line becomes.
TYPED = {
    "watchman sta": "watchman status ",
    "watchman status --qui": "watchman status --quiet",
    "watchman check --proftpd pro": "watchman check --proftpd proftpd.conf",
    "watchman-send --same": "watchman-send --same-id",
    "watchman-send up": "watchman-send upload.csv",
}

#: Control-U, which erases a line.
ERASE = b"\x15"


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


def complete(command: list[str], begin: str, directory: Path) -> None:
    """Type lines into a shell on a terminal, and wait until each has become what is wanted."""
    terminal, shell_side = os.openpty()
    with subprocess.Popen(
        # A session whose terminal it is.
        ["setsid", "-c", *command],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "TERM": "dumb"},
        stdin=shell_side,
        stdout=shell_side,
        stderr=shell_side,
    ) as shell:
        os.close(shell_side)
        try:
            os.write(terminal, begin.encode())
            for begun, wanted in TYPED.items():
                os.write(terminal, f"{begun}\t".encode())
                wait_for(terminal, wanted)
                os.write(terminal, ERASE)
        finally:
            shell.kill()
            os.close(terminal)


def wait_for(terminal: int, text: str) -> None:
    shown = b""
    deadline = time.monotonic() + 20
    while text.encode() not in shown:
        assert time.monotonic() < deadline, shown.decode(errors="replace")
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where files are that can be completed."""
    (tmp_path / "proftpd.conf").touch()
    (tmp_path / "upload.csv").touch()
    return tmp_path


def test_bash_completes(place: Path) -> None:
    need("bash")
    begin = "".join(f"source {file}\n" for file in BASH.iterdir())
    complete(["bash", "--norc", "--noprofile", "-i"], begin, place)


def test_zsh_completes(place: Path) -> None:
    need("zsh")
    begin = f"fpath=({ZSH} $fpath); autoload -U compinit; compinit -D -u\n"
    complete(["zsh", "-f", "-i"], begin, place)


def test_fish_completes(place: Path) -> None:
    need("fish")
    asked = "; ".join(f"complete -C '{begun}'" for begun in TYPED)
    sourced = "; ".join(f"source {file}" for file in FISH.iterdir())
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{sourced}; {asked}"],
        cwd=place,
        env={"PATH": os.environ["PATH"], "HOME": str(place)},
        capture_output=True,
        text=True,
    )
    found = {line.partition("\t")[0] for line in done.stdout.splitlines()}
    assert {wanted.split()[-1] for wanted in TYPED.values()} <= found, done.stderr


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
