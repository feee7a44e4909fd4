"""The screen of `watchman explain`: what would happen to a path, and what became of its uploads."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType

from watchman.commands.screens.screen import details, indented, text
from watchman.commands.shared.phrases import ago, clock, count, programs

#: Columns of the names on the left.
WIDTH = 8


def draw(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what is known of a path: what would happen now, and what has happened."""
    yield text(found["path"], "bold")
    yield indented(text(f"{found['would']}."))
    if "watch" in found:
        yield indented(details(_plan(found), width=WIDTH), 4)
    yield from _past(found)


def _past(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    if found["story"] is None:
        why = found["story_error"]
        yield indented(text(f"What has happened to it is not known: {why}."))
    elif not found["story"] and not found.get("now"):
        yield indented(text("The daemon knows of no upload of it."))
    if found.get("earlier"):
        yield indented(text(f"{count(found['earlier'], 'earlier upload')} of it, and then:"))
    for upload in found.get("uploads", ()):
        yield indented(text(_title(upload)))
        yield indented(details(_told(upload, found), width=WIDTH), 4)
    for record in found["story"] or ():
        if not found.get("uploads") or not {"id", "of"} & record.keys():
            yield indented(text(_loose(record)))
    for row in found.get("now", ()):
        reason = f": {row['reason']}" if row["reason"] else ""
        since = f" since {clock(row['since'])} ({ago(row['since'])})" if row["since"] else ""
        yield indented(text(f"Now {row['id'] or 'it'} is {row['state']}{since}{reason}."))


def _title(upload: Mapping[str, Any]) -> str:
    is_told = any(attempt["answer"] == upload["reason"] for attempt in upload["tries"])
    reason = f": {upload['reason']}" if upload["reason"] and not is_told else ""
    at = f" {clock(upload['at'])}" if upload["at"] else ""
    return f"Upload {upload['id']}, {upload['state']}{at}{reason}"


def _told(upload: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the parts of an upload's story, each with a name."""
    if upload["accepted"]:
        yield "uploaded", _uploaded(upload)
    if upload["original"] and upload["original"] != now["path"]:
        yield "as", upload["original"]
    if upload["move"]:
        yield "move", f"[move:{upload['move']}] {upload['destination']}"
    if upload["task"]:
        yield "task", f"{upload['task']} of [task:{upload['section']}]"
        yield "broker", f"[broker:{upload['broker']}]{_route(upload)}"
    for number, attempt in enumerate(upload["tries"]):
        yield "" if number else "tries", _attempt(attempt)
    if upload["accepted"]:
        yield from _changes(upload, now)


def _uploaded(upload: Mapping[str, Any]) -> str:
    who = f" by {upload['user']}" if upload["user"] else ""
    client = f" from {upload['client']}" if upload["client"] else ""
    protocol = f" over {upload['protocol']}" if upload["protocol"] else ""
    size = count(upload["size"], "byte")
    return f"{clock(upload['accepted'])}{who}{client}{protocol}, {size} ({upload['source']})"


def _route(values: Mapping[str, Any]) -> str:
    """Return where a task went at its broker; "" if that was not recorded."""
    if values.get("exchange"):
        key, exchange = values["routing_key"], values["exchange"]
        return f", exchange {exchange!r} with routing key {key!r}"
    return f", queue {values['queue']!r}" if values.get("queue") else ""


#: What is compared between an upload and what would happen now, by name. Each returns a text.
COMPARED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "move": lambda values: values.get("move") or "",
    "task": lambda values: values.get("task") or "",
    "section": lambda values: values.get("section") or "",
    "broker": lambda values: values.get("broker") or "",
    "route": lambda values: _route(values).removeprefix(", "),
}


def _attempt(attempt: Mapping[str, Any]) -> str:
    at = clock(attempt["at"]) if attempt["at"] else "-"
    kind, _, name = attempt["place"].partition(":")
    number = f", try {attempt['number']}" if attempt["number"] > 1 else ""
    return f"{at}  {kind} {name}{number}: {attempt['answer']}"


def _changes(upload: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the INI file would do differently now."""
    if "watch" not in now:
        return
    then = {name: tell(upload) for name, tell in COMPARED.items()}
    today = {name: tell(now) for name, tell in COMPARED.items()}
    if not then["route"]:
        del then["route"]  # it was not sent, or before routes were recorded
    changed = [name for name in then if then[name] != today[name]]
    yield "now", "; ".join(f"{name} {today[name] or 'none'}" for name in changed) or "the same"


def _loose(record: Mapping[str, Any]) -> str:
    """Return a record that belongs to no upload, with its usual fields. --json has all of them."""
    at = record.get("at")
    parts = [clock(at) if at else "-", str(record.get("event", "?"))]
    parts += [str(record[name]) for name in ("source", "user", "reason") if record.get(name)]
    return "  ".join(parts)


def _plan(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the parts of what would happen now, each with a name."""
    yield "watch", f"[watch:{found['watch']}] {found['watch_path']}"
    file = found["file"]
    if isinstance(file, dict):
        modified = file["modified"]
        size = count(file["size"], "byte")
        file = f"{size}, modified {clock(modified)} ({ago(modified)} ago)"
    yield "file", file
    if found.get("writers"):
        yield "", f"open for writing by {programs(found['writers'])}"
    yield "whole by", found["wholeness"]
    yield "excluded", f"by {found['excluded']}" if found["excluded"] else "no"
    if "move" in found:
        yield "move", f"[move:{found['move']}] {found['destination']}"
    if "section" not in found:
        return
    yield "section", f"[task:{found['section']}] {', '.join(found['patterns'])}"
    if found["also"]:
        also = ", ".join(f"[task:{name}]" for name in found["also"])
        yield "", f"{also} would match as well, but the first one wins"
    yield "task", found["task"]
    yield "broker", f"[broker:{found['broker']}]"
    if "error" not in found:
        yield "route", found["route"]
        if found["queue"]:
            yield "queue", found["queue"]
        options = found["options"].items()
        yield "options", ", ".join(f"{name} = {value}" for name, value in options) or "none"
    yield "args", json.dumps(found["args"])
    yield "kwargs", json.dumps(found["kwargs"])
