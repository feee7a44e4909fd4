"""The screen of `watchman status`."""

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

from rich.console import RenderableType

from watchman.commands.screens.screen import Columns, indented, item, named, text
from watchman.commands.shared.phrases import ago, before, clock, count, until

#: The columns that brokers and moves share.
SINKS: Columns = {
    "STATE": lambda sink: f"{sink['state']}{', paused' if sink.get('paused') else ''}",
    "SINCE": lambda sink: ago(sink.get("since")),
    "WAITING": "waiting",
    "TRIES": "attempts",
    "NEXT TRY": lambda sink: until(sink.get("next_try")),
}

BROKERS: Columns = {"BROKER": "name", **SINKS}

MOVES: Columns = {"MOVE": "name", **SINKS, "DESTINATION": "destination"}

WATCHES: Columns = {
    "WATCH": "name",
    "STATE": "state",
    "DIRS": "directories",
    "UNMATCHED": "unmatched",
    "EXCLUDED": "excluded",
    "SCANNED": lambda watch: "now" if watch.get("scanning") else before(watch.get("last_scan")),
    "PATH": "path",
}

SOURCES: Columns = {
    "SOURCE": "name",
    "HEARD": "heard",
    "LAST": lambda source: before(source.get("last")),
    "SAID": lambda source: ", ".join(f"{n} {kind}" for kind, n in source.get("said", {}).items()),
}


def draw(found: Mapping[str, Any], spelled: Callable[[str], str] = str) -> Iterator[RenderableType]:
    """Yield the daemon's answer. `spelled` returns a command of ours as its reader must type it."""
    yield from _health(found, spelled)
    yield text(
        f"watchman {found['version']}, pid {found['pid']}, up {ago(found['since'])}"
        f" with {found['config']}"
    )
    yield text(_counts(found))
    yield ""
    yield named(BROKERS, found["brokers"])
    yield from _held_up(found["brokers"])
    if found.get("moves"):
        yield ""
        yield named(MOVES, found["moves"])
    yield ""
    yield named(WATCHES, found["watches"])
    yield from _about_watches(found["watches"])
    yield ""
    yield named(SOURCES, found["sources"])
    yield from _logs(found.get("transfer_logs", {}))


def _health(found: Mapping[str, Any], spelled: Callable[[str], str]) -> Iterator[RenderableType]:
    for pause in found.get("paused", ()):
        waiting = f"; {count(pause['waiting'], 'upload')} held back" if pause["waiting"] else ""
        yield text(f"PAUSED {pause['name']} since {ago(pause['since'])}{waiting}", "bold yellow")
    word, style = ("healthy", "green") if found["healthy"] else ("NOT HEALTHY", "bold red")
    since = found.get("health_since")
    yield text(f"{word} since {clock(since)} ({ago(since)})" if since else word, style)
    for problem, cure in zip_longest(found.get("problems", ()), found.get("cures", ())):
        yield indented(item(problem, mark_style="red"))
        if cure:
            yield indented(item(spelled(cure), style="bold", mark="  >"))
    for warning in found.get("warnings", ()):
        yield indented(item(f"warning: {warning}", mark="!", mark_style="yellow"))


def _counts(found: Mapping[str, Any]) -> str:
    told = ", ".join(f"{number:,} {state}" for state, number in found["uploads"].items())
    oldest = found.get("oldest_waiting")
    return told if oldest is None else f"{told}; oldest waits {ago(oldest)}"


def _held_up(brokers: Mapping[str, Mapping[str, Any]]) -> Iterator[RenderableType]:
    for name, broker in brokers.items():
        for held in broker.get("held_up", ()):
            yield indented(
                text(
                    f"{name}: {count(held['uploads'], 'upload')} held up by {held['what']}, tried"
                    f" {count(held['attempts'], 'time')}, next in {until(held['next_try'])}:"
                    f" {held['reason']}"
                )
            )


def _about_watches(watches: Mapping[str, Mapping[str, Any]]) -> Iterator[RenderableType]:
    for name, watch in watches.items():
        if watch.get("scanning"):
            yield indented(text(f"{name}: {_progress(watch)}"))
        if watch.get("unwatched"):
            yield indented(
                text(
                    f"{name}: {count(watch['unwatched'], 'directory', 'directories')}"
                    " cannot be watched; scans find the files there"
                )
            )
        if watch.get("error"):
            yield indented(text(f"{name}: {watch['error']}"))
        told, unconfirmed = watch.get("told", {}), watch.get("unconfirmed", 0)
        if any(told.values()) or unconfirmed:
            words = ", ".join(f"{number:,} by {source}" for source, number in told.items())
            doubt = count(unconfirmed, "upload")
            yield indented(text(f"{name}: ProFTPD told of {words}; {doubt} unconfirmed"))


def _progress(watch: Mapping[str, Any]) -> str:
    """Return how far the scan of a watch is. Its directories are counted before a scan begins."""
    seen, walked = count(watch.get("files", 0), "file"), watch.get("walked", 0)
    total = watch.get("directories", 0) + watch.get("unwatched", 0)
    if not total or walked > total:
        return f"scanning, {seen} in {count(walked, 'directory', 'directories')} so far"
    directories = count(total, "directory", "directories")
    return f"scanning, {seen} in {walked:,} of {directories}, {100 * walked // total} %"


def _logs(logs: Mapping[str, Mapping[str, Any]]) -> Iterator[RenderableType]:
    for path, log in logs.items():
        refused = f", {count(log['refused'], 'refused line')}" if log["refused"] else ""
        if log.get("ambiguous"):
            refused += f" ({log['ambiguous']} with an ambiguous user name)"
        problem = f"; {log['error']}" if log["error"] else ""
        lines = f"{count(log['records'], 'line')}{refused}, last {before(log['last'])}{problem}"
        yield indented(text(f"{path}: {lines}"))
