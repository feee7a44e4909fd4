"""The directive `ini-reference`: all sections and options of the INI file.

Nothing is written twice for it. Which options there are, what each takes and its default say the
tables in `watchman.config`; what an option means says the comment above it in watchman.ini.example.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.parsing import nested_parse_to_nodes

from watchman.config import sections, settings
from watchman.config.sections import SECTIONS, SINGLE

EXAMPLE = Path(__file__).parent.parent / "watchman.ini.example"

#: The defaults of options that `sections` has none for.
DEFAULTS = {
    "watch": settings.WatchSettings,
    "move": settings.MoveSettings,
    "proftpd": settings.ProftpdSettings,
    "task": settings.TaskSettings,
}

#: What begins a line of the example that shows what a real server would have.
SERVER = "Server: "


@dataclass
class Block:
    """Options that stand together in the example, with their values there and their comment."""

    comment: list[str]
    #: Each with its value, of a server's section too.
    options: dict[str, str]


def blocks(text: str) -> Iterator[tuple[str, Block]]:
    """The blocks of the example, each with its kind of section. A section's own has no options."""
    kind = ""
    for part in text.split("\n\n"):
        lines = part.splitlines()
        block = Block([], {})
        for line in lines:
            if line.startswith("#"):
                block.comment.append(line[2:])
            elif match := re.fullmatch(r";?\[(\w+)(:.*)?\]", line):
                kind = match[1]
                yield kind, block
                block = Block([], {})
            elif match := re.match(r";?(\w+) = ?(.*)", line):
                block.options[match[1]] = match[2]
        if block.options:
            yield kind, block


def escaped(line: str) -> str:
    """A comment's line as reStructuredText: what stands in backticks is a literal."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*|\\_@])", r"\\\1", part) for part in parts[::2]]
    return "".join(f"``{part}``" if odd % 2 else part for odd, part in enumerate(parts))


def default_of(kind: str, name: str) -> Any:
    """None where there is none."""
    default = SECTIONS[kind][name].default if name in SECTIONS[kind] else None
    for field in dataclasses.fields(DEFAULTS[kind]) if kind in DEFAULTS else ():
        if field.name == name and default is None:
            made = field.default_factory is not dataclasses.MISSING
            default = field.default_factory() if made else field.default
    return default


def value(kind: str, name: str, shown: str) -> str:
    """What the option takes, and its default or what the example has."""
    option = SECTIONS[kind].get(name) or sections.lookup(kind, name)
    takes = escaped(" ".join((option.read.__doc__ or "").partition("\n\n")[0].split()))
    if option.required:
        instead = [f"``{other}``" for other, how in SECTIONS[kind].items() if how.for_ == name]
        return f"{takes} Required{f', unless {instead[0]} is set' if instead else ''}."
    default = default_of(kind, name)
    if default is not None:
        try:
            if option.read(shown, *["/"] * option.relative) == default:
                return f"{takes} Default: {f'``{shown}``' if shown else 'none'}."
        except ValueError:
            pass
        if isinstance(default, str) and default:
            return f"{takes} Default: ``{default}``."
    return f"{takes} No default; an example is ``{shown}``." if shown else f"{takes} No default."


def comment(lines: list[str]) -> Iterator[str]:
    """The meaning, and then what a server would have."""
    cut = next((n for n, line in enumerate(lines) if line.startswith(SERVER)), len(lines))
    # Which options are required says `sections`.
    meaning = re.sub(r"\s*\b(Both r|R)equired\.$", "", "\n".join(lines[:cut]))
    yield from map(escaped, meaning.splitlines())
    yield ""
    if cut < len(lines):
        first, *others = lines[cut:]
        server = [first.removeprefix(SERVER), *textwrap.dedent("\n".join(others)).splitlines()]
        yield from ("On a server::", "", *(f"    {line}" for line in server), "")


def described(kind: str, block: Block) -> Iterator[str]:
    names = list(block.options)
    yield f".. describe:: {names[0]}"
    yield from (f"              {name}" for name in names[1:])
    yield ""
    yield from (f"   {line}" for line in comment(block.comment))
    for name, shown in block.options.items():
        beginning = f"   - ``{name}``: " if len(names) > 1 else "   "
        yield beginning + value(kind, name, shown)
    yield ""


def reference() -> Iterator[str]:
    """All of it, as reStructuredText."""
    missing = {(kind, name) for kind, options in SECTIONS.items() for name in options}
    begun = set()
    for kind, block in blocks(EXAMPLE.read_text()):
        if kind not in begun:
            begun.add(kind)
            title = f"[{kind}]" if kind in SINGLE else f"[{kind}:NAME]"
            yield from (title, "~" * len(title), "")
        if block.options:
            yield from described(kind, block)
            missing -= {(kind, name) for name in block.options}
        else:
            yield from comment(block.comment)
    if missing:
        raise ExtensionError(f"watchman.ini.example does not show {sorted(missing)}")


class IniReference(Directive):
    def run(self) -> list[nodes.Node]:
        text = StringList(list(reference()), source=str(EXAMPLE))
        return nested_parse_to_nodes(self.state, text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("ini-reference", IniReference)
    return {"version": "1", "parallel_read_safe": True}
