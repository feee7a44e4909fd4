"""`watchman explain`: what would happen to a path, and why.

Say what would happen to files uploaded as PATH: watch, exclusion, move, task, broker, queue,
options, arguments; and what has happened to them, if the daemon answers. PATH need not exist, or
may be an upload's id. Nothing is touched, sent or written.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from watchman.commands.shared import client, shell
from watchman.commands.shared.filesystems import grants_leases, may_lease_any_file, user_name
from watchman.commands.shared.routes import Routes
from watchman.commands.shared.table import ago, clock, count
from watchman.config import places
from watchman.config.moves import destination_of
from watchman.config.rules import Rules, fill
from watchman.config.settings import Settings, TaskSettings, WatchSettings
from watchman.errors import NotBelowWatch, RequestRefused, SocketUnavailable, WatchmanError
from watchman.uploads import beneath
from watchman.uploads.text import printable
from watchman.uploads.upload import FileState

#: What the dispatcher draws for an upload: a UUID.
UPLOAD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: Seconds to wait for a story: there may be a week's history to read.
TIMEOUT = 60.0

HELP, DESCRIPTION = shell.texts(__doc__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per path")
    parser.add_argument("paths", nargs="+", metavar="PATH")


def main(settings: Settings, arguments: argparse.Namespace) -> int:
    if "" in arguments.paths:
        raise shell.Misused("a path is empty")
    explainer = Explainer(settings)
    told = refused = 0
    for subject in arguments.paths:
        try:
            found = explainer.tell(subject)
        except RequestRefused as refusal:
            refused += 1
            shell.complain("watchman explain", str(refusal))
            continue
        if told and not arguments.json:
            print()
        shell.show([found], _report(found), as_json=arguments.json)
        told += 1
    return shell.REFUSED if refused else shell.DONE


class Explainer:
    """Says what would happen, by the INI file and a look at the file, and what the daemon knows."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rules = Rules(settings)
        self._routes = Routes(settings.brokers)

    def tell(self, subject: str) -> dict[str, Any]:
        """All there is to say of a path or an upload's id; RequestRefused if there is no such."""
        if UPLOAD_ID.fullmatch(subject) and not os.path.lexists(subject):
            past = self._ask({"id": subject})
            paths = [record.get("original") or record.get("path") for record in past["story"]]
            path = next(filter(None, paths), None)
            if path is None:
                raise RequestRefused(f"the daemon knows of no upload {subject}")
            return self._explain(path) | past | {"id": subject, "path": path}
        # Not abspath: over a symlink `..` is not what its text says.
        found = self._explain(os.path.join(os.getcwd(), subject))
        try:
            return found | self._ask({"path": found["path"]})
        except (SocketUnavailable, RequestRefused) as error:
            return found | {"story": None, "story_error": str(error)}

    def _ask(self, fields: Mapping[str, str]) -> dict[str, Any]:
        [past] = client.request(self._settings.socket, "explain", fields, TIMEOUT)
        return past

    def _explain(self, path: str) -> dict[str, Any]:
        located = places.locate(self._rules, self._settings.watches.values(), path)
        if located is None:
            path = os.path.normpath(path)
            why = places.why_nowhere(self._settings.watches.values(), path)
            return {"path": path, "would": f"Nothing: {why}"}
        watch, subpath = located
        path = os.path.join(watch.path, subpath)
        found: dict[str, Any] = {"path": path, "watch": watch.name, "watch_path": watch.path}
        state, problem = _look(watch, subpath)
        found["file"] = {"size": state.size, "modified": state.mtime / 1e9} if state else problem
        found["wholeness"] = _wholeness(watch.path, path)
        found["excluded"] = self._rules.excluded(watch, subpath)
        move = self._rules.move_for(path)
        goes_to = path
        if move is not None:
            goes_to = destination_of(move, path, int(time.time() * 1000))
            found |= {"move": move.name, "destination": goes_to}
        tasks = self._rules.tasks_for(path)
        if tasks:
            found |= self._task(tasks[0], found, goes_to)
            found["also"] = [task.name for task in tasks[1:]]
        found["would"] = _sentence(found, watch, subpath, problem)
        return found

    def _task(self, section: TaskSettings, found: Mapping[str, Any], path: str) -> dict[str, Any]:
        size = found["file"]["size"] if isinstance(found["file"], dict) else 0
        task = fill(
            section,
            path=path,
            original=found["path"],
            watch=found["watch"],
            user="",
            client="",
            protocol="",
            size=size,
        )
        told: dict[str, Any] = {"section": section.name, "patterns": list(section.patterns)}
        told |= {"task": task.name, "broker": task.broker}
        told |= {"args": task.args, "kwargs": task.kwargs}
        try:
            route = self._routes.of(task)
        except WatchmanError as error:
            return told | {"error": str(error)}
        told |= {"exchange": route.exchange, "routing_key": route.routing_key}
        told |= {"queue": route.queue, "route": str(route), "options": dict(route.options)}
        return told


def _look(watch: WatchSettings, subpath: str) -> tuple[FileState | None, str]:
    try:
        return beneath.state(watch.path, subpath), ""
    except FileNotFoundError:
        return None, "it does not exist"
    except NotBelowWatch as error:
        return None, str(error)
    except OSError as error:
        return None, f"it cannot be looked at: {error.strerror}"


def _wholeness(root: str, path: str) -> str:
    """Say how it is known that nobody is still writing a file."""
    if not grants_leases(path) and not grants_leases(root):
        return "quiet for a while: its filesystem is not known to be local, so leases do not count"
    try:
        is_ours = os.stat(path, follow_symlinks=False).st_uid == os.geteuid()
    except OSError:
        is_ours = False
    if is_ours or may_lease_any_file():
        return "the kernel tells who has it open for writing (a lease)"
    return f"quiet for a while, as {user_name(os.geteuid())} gets leases on own files only"


def _sentence(found: Mapping[str, Any], watch: WatchSettings, subpath: str, problem: str) -> str:
    if found["excluded"]:
        pattern = found["excluded"]
        if pattern.startswith("[move:"):
            return f"Nothing: it is excluded by {pattern}"
        return f"Nothing: [watch:{watch.name}] excludes it by the pattern {pattern}"
    if "/" in subpath and not watch.rec:
        return f"Nothing: it is in a directory below [watch:{watch.name}], which has rec = no"
    if "section" not in found and "move" not in found:
        return "Nothing: no [task:...] section has a pattern that matches it; it is ignored"
    if "error" in found:
        return f"It would fail: {found['error']}"
    sent = " and ".join(_steps(found))
    if problem == "it does not exist":
        return f"Once it is uploaded, {sent}"
    if problem:
        return f"Nothing: {problem}"
    return f"The next time it is written, {sent}"


def _steps(found: Mapping[str, Any]) -> Iterator[str]:
    if "move" in found:
        yield f"it is moved to {found['destination']}"
    if "section" in found:
        yield f"task {found['task']} is sent to broker {found['broker']}, {found['route']}"
    else:
        yield "no task is sent, for no [task:...] section matches it"


def _report(found: Mapping[str, Any]) -> Iterator[str]:
    yield printable(found["path"])
    yield f"  {printable(found['would'])}."
    for name, value in _details(found):
        yield f"    {name:<10}{printable(value)}"
    if found["story"] is None:
        yield f"  What has happened to it is not known: {printable(found['story_error'])}."
    elif not found["story"]:
        yield "  The daemon knows of no upload of it."
    if found.get("earlier"):
        yield f"  {count(found['earlier'], 'earlier upload')} of it, and then:"
    for record in found["story"] or ():
        yield f"    {printable(_told(record))}"
    for row in found.get("now", ()):
        reason = f": {row['reason']}" if row["reason"] else ""
        yield f"  Now {printable(row['id'] or 'it')} is {row['state']}{printable(reason)}."


def _details(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "watch" not in found:
        return
    yield "watch", f"[watch:{found['watch']}] {found['watch_path']}"
    file = found["file"]
    if isinstance(file, dict):
        modified = file["modified"]
        file = f"{file['size']} bytes, modified {clock(modified)} ({ago(modified)} ago)"
    yield "file", file
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


def _told(record: Mapping[str, Any]) -> str:
    """A record of the journal for a human; what it has beside the usual is left to --json."""
    at = record.get("at") or record.get("accepted")
    parts = [clock(at) if at else "-", str(record.get("event", "?"))]
    parts += [str(record[name]) for name in ("id", "source", "user", "reason") if record.get(name)]
    return "  ".join(parts)
