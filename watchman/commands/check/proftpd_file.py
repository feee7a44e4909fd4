"""Reads ProFTPD's configuration as ProFTPD does: which directives count, and for which server."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

#: The modules that Debian's ProFTPD has without LoadModule. They are taken if `proftpd -l` does not
#: tell which ones the installed ProFTPD has.
COMPILED_IN = (
    "core xfer rlimit auth_unix auth_file auth ls log site delay facts dso auth_pam cap ctrls lang"
)

#: Most files that include one another.
DEEPEST = 20

#: A word or a comment. A word is in quotes, or ends at a blank. Within quotes a backslash takes the
#: next character as it is. A comment begins where a word could begin.
WORD = re.compile(r'"((?:\\.|[^"\\])*)"?|(#.*)|(\S+)')

#: The values of a switch that is on, and of one that is off.
ON, OFF = ("on", "yes", "true", "1"), ("off", "no", "false", "0")


@dataclass(frozen=True, slots=True)
class Directive:
    """A line of the configuration. A section that begins there is a directive, too.

    `place` is FILE:LINE. `around` are the sections that the line stands in, the outermost first.
    Names of sections are in lower case.
    """

    name: str
    values: tuple[str, ...]
    place: str
    around: tuple[Directive, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.name, *self.values))

    def within(self, name: str) -> Directive | None:
        """Return the section of this name that the directive stands in, None if it is in none."""
        return next((section for section in self.around if section.name == name), None)


@dataclass(frozen=True, slots=True)
class Server:
    """The main server or a virtual host. `place` is where it begins.

    The directives of <Global> come before the server's own. The last one counts, so the server's
    own go before those of <Global>.
    """

    place: str
    name: str
    directives: tuple[Directive, ...]

    def all(self, name: str) -> list[Directive]:
        """Return all directives of a name."""
        return [one for one in self.directives if one.name == name]

    def last(self, name: str) -> Directive | None:
        """Return the last directive of a name, which is the one that counts, None if none is."""
        return next((one for one in reversed(self.directives) if one.name == name), None)

    def on(self, name: str) -> bool:
        """Whether the switch `name` is on."""
        one = self.last(name)
        return one is not None and "".join(one.values).lower() in ON


class Configuration:
    """A configuration file of ProFTPD with all that it includes."""

    def __init__(self, file: str) -> None:
        self.file = file
        #: The directives that count.
        self.directives: list[Directive] = []
        #: Those that do not count, each with the section that is not for this ProFTPD.
        self.skipped: list[tuple[Directive, Directive]] = []
        #: What is wrong: place and message.
        self.problems: list[tuple[str, str]] = []
        self.files: list[str] = []
        self.modules = _compiled_in()
        #: The sections around the line that is being read.
        self._around: list[Directive] = []
        #: The first of these sections that is not for this ProFTPD.
        self._barring: Directive | None = None
        self._read(file, f"{file}:1", [])

    def servers(self) -> list[Server]:
        """Return the main server, then the virtual hosts."""
        everywhere = [one for one in self.directives if one.within("global")]
        own = [one for one in self.directives if not one.within("global")]
        hosts = [one for one in self.directives if one.name == "virtualhost"]
        return [
            Server(
                host.place if host else f"{self.file}:1",
                f"<VirtualHost {' '.join(host.values)}>" if host else "the main server",
                (*everywhere, *(one for one in own if one.within("virtualhost") is host)),
            )
            for host in (None, *hosts)
        ]

    def _read(self, path: str, place: str, above: list[str]) -> None:
        """Read one file. It is included at `place`; `above` are the files that led to it."""
        if path in above or len(above) > DEEPEST:
            self.problems.append((place, f"{path} includes itself"))
            return
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except OSError as e:
            self.problems.append((place, f"{path} cannot be read: {e.strerror}"))
            return
        self.files.append(path)
        for number, line in _joined(lines):
            self._line(line, f"{path}:{number}", [*above, path])

    def _line(self, line: str, place: str, above: list[str]) -> None:
        is_section = line.startswith("<")
        if line.startswith("</"):
            name = line[2:].rstrip("> \t").lower()
            if not self._around or self._around[-1].name != name:
                self.problems.append((place, f"</{name}> ends nothing"))
            elif self._around.pop() is self._barring:
                self._barring = None
            return
        name, *values = words(line[1:].rstrip().removesuffix(">") if is_section else line) or [""]
        one = Directive(
            name.lower() if is_section else name, tuple(values), place, tuple(self._around)
        )
        if is_section:
            self._around.append(one)
            if self._barring is None and self._is_for_another(one):
                self._barring = one
        if self._barring is not None:
            self.skipped.append((one, self._barring))
            return
        self.directives.append(one)
        if name == "LoadModule":
            self.modules.update(values[:1])
        elif name == "Include" and values:
            for path in _included(values[0]):
                self._read(path, place, above)

    def _is_for_another(self, section: Directive) -> bool:
        """Whether a section is for another ProFTPD than the installed one, so does not count."""
        if section.name not in ("ifmodule", "ifdefine") or not section.values:
            return False
        # -D on ProFTPD's command line defines names. We cannot see it, and take no name as defined.
        wanted = section.values[0]
        there = section.name == "ifmodule" and wanted.lstrip("!") in self.modules
        return there == wanted.startswith("!")


def _compiled_in() -> set[str]:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["proftpd", "-l"], env={**os.environ, "PATH": path}, capture_output=True, timeout=10
        )
        found = {name for name in done.stdout.decode().split() if name.endswith(".c")}
        if found:
            return found
    return {f"mod_{name}.c" for name in COMPILED_IN.split()}


def _included(pattern: str) -> list[str]:
    """Return the files that an Include names: a file, all of a directory, or those of a pattern."""
    if os.path.isdir(pattern):
        found = [os.path.join(pattern, name) for name in os.listdir(pattern)]
    elif glob.has_magic(pattern):
        found = glob.glob(pattern, include_hidden=True)
    else:
        return [pattern]
    return sorted(filter(os.path.isfile, found))


def _joined(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, without blank lines and comments.

    A line that ends with a backslash is joined with the next one.
    """
    begun, first = "", 0
    for number, line in enumerate([*lines, ""], 1):
        text = begun + line.rstrip() if begun else line.strip()
        first = first if begun else number
        begun = ""
        if text.startswith("#"):
            continue
        if text.endswith("\\"):
            begun = text[:-1] + " "
        elif text:
            yield first, text


def words(line: str) -> list[str]:
    """Return the words of a line, without quotes and comment."""
    return [
        plain or re.sub(r"\\(.)", r"\1", quoted)
        for quoted, comment, plain in WORD.findall(line)
        if not comment
    ]


def hidden_name(values: tuple[str, ...], name: str) -> str:
    """Return ProFTPD's name for `name` while it is written, as set_hiddenstores in mod_xfer does.

    `values` are those of HiddenStores; "" if it is off.
    """
    prefix, *suffix = values or ("off",)
    if suffix:
        return f"{prefix}{name}{suffix[0]}"
    if prefix.lower() in OFF:
        return ""
    if prefix.lower() in ON:
        prefix = ".in."
    elif not (prefix.startswith(".") and prefix.endswith(".")):
        prefix = f".{prefix}."
    return f"{prefix}{name}."
