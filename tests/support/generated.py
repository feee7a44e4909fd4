"""Completions and manual pages, which our parsers' options become: `make generated` writes them."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator

import shtab
from argparse_manpage.manpage import Manpage

from tests.servers.brokers import ROOT
from watchman import __version__
from watchman.commands import main, send

#: Where the completion of a program is installed, below `docs/share`, by shell.
COMPLETIONS = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/site-functions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}

#: Arguments that are files, by what help calls them.
FILES = ("FILE", "PATH")

#: What the manual of each program says beside its help.
MORE = {
    "ENVIRONMENT": {
        "WATCHMAN_CONFIG": "The INI file, where no -c names one.",
        "WATCHMAN_SOCKET": "The daemon's socket, where no --socket names one.",
    },
    "FILES": {
        "/etc/watchman/watchman.ini": "The INI file, where nothing names another.",
        "/run/watchman/watchman.sock": "The daemon's socket, where nothing names another.",
    },
}


#: What makes the parser of each program, with all its commands.
PROGRAMS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "watchman": lambda: main.parser_for(tuple(main.COMMANDS)),
    "watchman-send": send.parser,
}


def files() -> dict[str, str]:
    """The text of each file, by its path below `docs/share`."""
    made = {}
    for program, parser in PROGRAMS.items():
        for shell, place in COMPLETIONS.items():
            text = shtab.complete(_completing_files(parser()), shell=shell)
            made[place.format(program)] = text.rstrip("\n") + "\n"
        made[f"man/man1/{program}.1"] = _manual(program)
    return made


def write() -> None:
    for name, text in files().items():
        path = ROOT / "docs/share" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _completing_files(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    for action in parser._actions:
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _completing_files(command)
    return parser


def _manual(program: str) -> str:
    """The page as it is, or with the date of today where anything else has changed."""
    path = ROOT / "docs/share/man/man1" / f"{program}.1"
    old = path.read_text() if path.exists() else ""
    dated = re.match(r'\.TH \S+ "1" "([^"]*)"', old)
    if dated and _page(program, dated[1]) == old:
        return old
    return _page(program, time.strftime("%Y-%m-%d"))


def _page(program: str, date: str) -> str:
    parser = PROGRAMS[program]()
    purpose = " ".join((parser.description or "").split()).rstrip(".")
    page = Manpage(
        parser,
        _data={
            "date": date,
            "description": purpose[0].lower() + purpose[1:],
            "project_name": "watchman",
            "version": __version__,
            "manual_title": "watchman's manual",
        },
    )
    for heading, text in _sections(parser.epilog or ""):
        page.add_section(heading, ">", text)
    for heading, items in MORE.items():
        entries = [f".TP\n.B {_text(name)}\n{_text(what)}" for name, what in items.items()]
        page.add_section(heading, ">", "\n".join(entries))
    [other] = PROGRAMS.keys() - {program}
    page.add_section("SEE ALSO", ">", f".BR {_text(other)} (1)")
    for group in parser._action_groups:
        if any(isinstance(one, argparse._SubParsersAction) for one in group._group_actions):
            group.title = "commands"
    # Its pieces have become sections. And man reads no date whose hyphens are escaped.
    parser.epilog = None
    return str(page).replace(_text(date), date, 1)


def _sections(epilog: str) -> Iterator[tuple[str, str]]:
    """What follows after the options in a help: `examples:` with its lines becomes a section."""
    heading = "NOTES"
    for paragraph in epilog.strip("\n").split("\n\n"):
        title, _, rest = paragraph.partition("\n")
        if title.endswith(":") and rest.startswith(" "):
            heading = "EXIT STATUS" if title == "exit codes:" else title[:-1].upper()
            yield heading, f".nf\n{_text(rest)}\n.fi\n"
        else:
            yield heading, f".PP\n{_text(paragraph)}\n"


def _text(text: str) -> str:
    """As roff has it: no line is taken for a request, and a hyphen stays one."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


if __name__ == "__main__":
    write()
