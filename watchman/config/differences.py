"""What changed between two readings of the INI file."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from watchman.config.settings import Settings

#: The fields of `Settings` that hold named sections, each with the kind of section.
KINDS = {"watches": "watch", "brokers": "broker", "tasks": "task", "moves": "move"}


def differences(old: Settings, new: Settings) -> Iterator[str]:
    """Yield a line for each section or option that was added, removed or changed."""
    for field in fields(Settings):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after or not field.compare:
            continue
        kind = KINDS.get(field.name)
        if kind is None:
            yield f"{field.name} changed"
        else:
            yield from _sections(kind, _by_name(before), _by_name(after))


def _sections(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new:
            yield f"{kind}:{name} removed"
        elif name not in old:
            yield f"{kind}:{name} added"
        elif old[name] != new[name]:
            yield f"{kind}:{name} changed"
    # The order of tasks counts, because the first one that matches a path is sent.
    common = [name for name in old if name in new]
    if kind == "task" and common != [name for name in new if name in old]:
        yield "order of tasks changed"


def _by_name(sections: Any) -> Mapping[str, Any]:
    return sections if isinstance(sections, Mapping) else {one.name: one for one in sections}
