"""A draft of the INI file: sections with their options, and notes above them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field

from watchman.config import sections

#: Columns of a note.
_WIDTH = 100

#: The kinds of sections, in the order of the file.
_ORDER = ("watchman", "celery", "broker", "watch", "move", "task")

#: Characters that a section's name may not have.
_ODD = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(slots=True)
class Section:
    """A section of the draft. If `dropped`, all its lines become comments."""

    kind: str
    name: str = ""
    options: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dropped: bool = False

    def set(self, option: str, text: str) -> None:
        """Set an option. If the text is wrong, add it as a comment, and a note that says why."""
        try:
            how = sections.lookup(self.kind, option)
            _ = how.read(text, "/") if how.relative else how.read(text)
        except ValueError as error:
            self.notes.append(f"{option} = {' '.join(text.split())}: {error}")
            self.options.append((f";{option}", text))
        else:
            self.options.append((option, text))

    def drop(self, why: str) -> None:
        """Make the section a comment, with a note that says why."""
        self.notes.append(f"Left out: {why}")
        self.dropped = True

    def lines(self) -> Iterator[str]:
        """Yield the section's lines in the INI file, the notes first."""
        mark = ";" if self.dropped else ""
        yield from notes(self.notes)
        yield f"{mark}[{self.kind}{':' if self.name else ''}{self.name}]"
        for option, text in self.options:
            off = mark or ("" if option[0] != ";" else ";")
            first, *more = text.split("\n")
            yield f"{off}{option.lstrip(';')} = {first}".rstrip()
            yield from (f"{off}    {line}" for line in more)


class Draft:
    """A draft of the INI file: its sections, and notes about the whole."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.sections: list[Section] = []
        self._taken: set[tuple[str, str]] = set()

    def add(self, kind: str, wanted: str = "") -> Section:
        """Add and return a section. Its name is `wanted`, changed until it is valid and free."""
        name = _ODD.sub("-", wanted).strip("-.")[:60] or (kind if wanted else "")
        number = 1
        free = name
        while (kind, free) in self._taken:
            number += 1
            free = f"{name}-{number}"
        self._taken.add((kind, free))
        section = Section(kind, free)
        self.sections.append(section)
        return section

    def text(self, title: str) -> str:
        """Return the text of the INI file, with a title above."""
        blocks = [[f"# {title}", *notes(self.notes)]]
        in_order = sorted(self.sections, key=lambda section: _ORDER.index(section.kind))
        blocks += [list(section.lines()) for section in in_order]
        return "\n\n".join("\n".join(block) for block in blocks) + "\n"

    def count(self) -> int:
        """Return how many notes there are."""
        return len(self.notes) + sum(len(section.notes) for section in self.sections)


def notes(texts: list[str]) -> Iterator[str]:
    for text in texts:
        shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
        yield from textwrap.wrap(
            shown, _WIDTH, initial_indent="# NOTE: ", subsequent_indent="#       "
        )
