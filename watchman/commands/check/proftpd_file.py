"""ProFTPD's configuration as ProFTPD itself reads it: what stands where, and for which server."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

#: What is in Debian's ProFTPD without a LoadModule; `proftpd -l` tells for the one that is here.
COMPILED_IN = frozenset(
    f"mod_{name}.c"
    for name in (
        *("core", "xfer", "rlimit", "auth_unix", "auth_file", "auth", "ls", "log", "site"),
        *("delay", "facts", "dso", "auth_pam", "cap", "ctrls", "lang"),
    )
)

#: Files that include one another, at most.
DEEPEST = 20

#: A word: in quotes, where a backslash takes the next character as it is, or up to a blank.
WORD = re.compile(r'\s*(?:"((?:\\.|[^"\\])*)"?|([^\s#]\S*))', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Directive:
    """A line: `place` is FILE:LINE, `around` the sections it stands in, the outermost first."""

    name: str
    values: tuple[str, ...]
    place: str
    around: tuple[Directive, ...] = ()

    def within(self, *sections: str) -> bool:
        """Whether it stands in such a section, named in lower case."""
        return any(section.name in sections for section in self.around)


@dataclass(frozen=True, slots=True)
class Server:
    """The main server or a virtual host, with what <Global> says for all; `place` is its first."""

    place: str
    name: str
    directives: tuple[Directive, ...]

    def all(self, *names: str) -> list[Directive]:
        """Return directives by their names."""
        return [one for one in self.directives if one.name in names]

    def last(self, name: str) -> Directive | None:
        """Return the one that counts: a server's own before that of <Global>."""
        found = self.all(name)
        own = [one for one in found if not one.within("global")]
        return (own or found)[-1] if found else None

    def on(self, name: str) -> bool:
        """Whether a switch is on."""
        one = self.last(name)
        return one is not None and "".join(one.values).lower() in ("on", "yes", "true", "1")


@dataclass(slots=True)
class Configuration:
    """All of it: what counts, what is `skipped` and by which section, what is wrong by place."""

    file: str
    directives: list[Directive] = field(default_factory=list)
    skipped: list[tuple[Directive, Directive]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    modules: set[str] = field(default_factory=lambda: set(_compiled_in()))

    def servers(self) -> list[Server]:
        """Return the main server, then the virtual hosts."""
        hosts: dict[Directive | None, list[Directive]] = {None: []}
        everywhere = [one for one in self.directives if one.within("global")]
        for one in self.directives:
            if one.name == "virtualhost":
                hosts[one] = []
            elif not one.within("global"):
                hosts[next((s for s in one.around if s.name == "virtualhost"), None)].append(one)
        return [
            Server(
                host.place if host else f"{self.file}:1",
                f"<VirtualHost {' '.join(host.values)}>" if host else "the main server",
                (*everywhere, *own),
            )
            for host, own in hosts.items()
        ]

    def all(self, *names: str) -> list[Directive]:
        """Return directives by their names, whatever server they are for."""
        return [one for one in self.directives if one.name in names]


def _compiled_in() -> Iterable[str]:
    program = shutil.which("proftpd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        return COMPILED_IN
    try:
        done = subprocess.run([program, "-l"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return COMPILED_IN
    return [name for name in done.stdout.decode().split() if name.endswith(".c")] or COMPILED_IN


def read(path: str) -> Configuration:
    """Read a file and all that it includes."""
    configuration = Configuration(path)
    _Reader(configuration).read(path, (), [])
    return configuration


class _Reader:
    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._around: list[Directive] = []
        #: Of the sections around, those that are not for this ProFTPD.
        self._barring: list[Directive] = []

    def read(self, path: str, place: str | tuple[()], above: list[str]) -> None:
        """Read one file, included at a place by the files above it."""
        problems = self._configuration.problems
        if path in above or len(above) > DEEPEST:
            problems.append((str(place), f"{path} includes itself"))
            return
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except OSError as e:
            problems.append((str(place or f"{path}:1"), f"{path} cannot be read: {e.strerror}"))
            return
        self._configuration.files.append(path)
        for number, line in _joined(lines):
            self._line(line, f"{path}:{number}", [*above, path])

    def _line(self, line: str, place: str, above: list[str]) -> None:
        if line.startswith("</"):
            self._close(line[2:].rstrip("> \t").lower(), place)
        elif line.startswith("<"):
            name, *values = words(line[1:].rstrip().removesuffix(">")) or [""]
            self._open(Directive(name.lower(), tuple(values), place, tuple(self._around)))
        elif found := words(line):
            one = Directive(found[0], tuple(found[1:]), place, tuple(self._around))
            if self._barring:
                self._configuration.skipped.append((one, self._barring[0]))
            elif one.name == "Include" and one.values:
                for path in self._included(one):
                    self.read(path, place, above)
            else:
                if one.name == "LoadModule" and one.values:
                    self._configuration.modules.add(one.values[0])
                self._configuration.directives.append(one)

    def _open(self, section: Directive) -> None:
        if not self._barring and section.name in ("ifmodule", "ifdefine") and section.values:
            wanted, modules = section.values[0], self._configuration.modules
            # What a -D on ProFTPD's command line defines we cannot know: nothing, mostly.
            there = section.name == "ifmodule" and wanted.lstrip("!") in modules
            if there == wanted.startswith("!"):
                self._barring.append(section)
        if not self._barring:
            self._configuration.directives.append(section)
        self._around.append(section)

    def _close(self, name: str, place: str) -> None:
        if not self._around or self._around[-1].name != name:
            self._configuration.problems.append((place, f"</{name}> ends nothing"))
            return
        section = self._around.pop()
        if self._barring and self._barring[-1] is section:
            self._barring.pop()

    def _included(self, include: Directive) -> Iterator[str]:
        """Yield the files that an Include names: one, those of a directory, or of a pattern."""
        pattern = include.values[0]
        if os.path.isdir(pattern):
            found = [os.path.join(pattern, name) for name in sorted(os.listdir(pattern))]
            yield from (path for path in found if os.path.isfile(path))
        elif glob.has_magic(pattern):
            found = sorted(glob.glob(pattern, include_hidden=True))
            yield from (path for path in found if os.path.isfile(path))
        else:
            yield pattern


def _joined(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield lines without blanks and comments, joined where a backslash says so, and numbers."""
    begun, first = "", 0
    for number, line in enumerate(lines, 1):
        text = line.strip() if not begun else line.rstrip()
        if not begun and text.startswith("#"):
            continue
        first = first if begun else number
        if text.endswith("\\"):
            begun += text[:-1] + " "
            continue
        if begun + text:
            yield first, begun + text
        begun = ""
    if begun.strip():
        yield first, begun


def words(line: str) -> list[str]:
    """Return the words of a line; a # at the start of one begins a comment."""
    found, at = [], 0
    while match := WORD.match(line, at):
        quoted, plain = match.groups()
        found.append(plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL))
        at = match.end()
    return found
