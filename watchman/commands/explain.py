"""`watchman explain`: what would happen to a path, and why.

Say what would happen to files uploaded as PATH: watch, exclusion, move, task, broker, queue,
options, arguments; and what has happened to them, if the daemon answers. PATH need not exist, or
may be an upload's id. Nothing is touched, sent or written.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from watchman.commands.shared import client, shell
from watchman.commands.shared.plan import Plan
from watchman.commands.shared.table import ago, clock, count
from watchman.commands.shared.writers import told
from watchman.config import inifile, locations
from watchman.errors import ConfigError, RequestRefused, SocketUnavailable
from watchman.uploads.text import printable

#: What the dispatcher draws for an upload: a UUID.
UPLOAD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: Seconds to wait for a story: there may be a week's history to read.
TIMEOUT = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per path")
    parser.add_argument("paths", nargs="+", metavar="PATH")


def main(arguments: argparse.Namespace) -> int:
    if "" in arguments.paths:
        raise shell.Misused("a path is empty")
    explainer = Explainer(arguments)
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
    """Says what would happen, by the INI file, and what has happened, by the daemon.

    Where the INI file is wrong, or may not be read, the daemon's word is all that there is.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._socket: str = arguments.socket
        self._plan: Plan | None = None
        self._wrong: ConfigError | None = None
        try:
            self._plan = Plan(inifile.load(locations.find(arguments.config)))
        except ConfigError as error:
            self._wrong = error

    def tell(self, subject: str) -> dict[str, Any]:
        """All there is to say of a path or an upload's id; RequestRefused if there is no such.

        Raises ConfigError where nothing can be said.
        """
        if UPLOAD_ID.fullmatch(subject) and not os.path.lexists(subject):
            past = self._ask({"id": subject})
            paths = [record.get("original") or record.get("path") for record in past["story"]]
            path = next(filter(None, paths), None)
            if path is None:
                raise RequestRefused(f"the daemon knows of no upload {subject}")
            return self._would(path) | past | {"id": subject, "path": path}
        # Not abspath: over a symlink `..` is not what its text says.
        found = self._would(os.path.join(os.getcwd(), subject))
        try:
            return found | self._ask({"path": found["path"]})
        except (SocketUnavailable, RequestRefused) as error:
            if self._wrong:
                raise self._wrong from error
            return found | {"story": None, "story_error": str(error)}

    def _ask(self, fields: Mapping[str, str]) -> dict[str, Any]:
        [past] = client.request(self._socket, "explain", fields, TIMEOUT)
        return past

    def _would(self, path: str) -> dict[str, Any]:
        if self._plan:
            return self._plan.of(path)
        assert self._wrong, "there is a plan or what is wrong with it"
        problem, *others = self._wrong.problems
        more = f", and {count(len(others), 'problem')} more" if others else ""
        return {"path": os.path.normpath(path), "would": f"Not known: {problem}{more}"}


def _report(found: Mapping[str, Any]) -> Iterator[str]:
    yield printable(found["path"])
    yield f"  {printable(found['would'])}."
    for name, value in _details(found):
        yield f"    {name:<10}{printable(value)}"
    if found["story"] is None:
        yield f"  What has happened to it is not known: {printable(found['story_error'])}."
    elif not found["story"] and not found.get("now"):
        yield "  The daemon knows of no upload of it."
    if found.get("earlier"):
        yield f"  {count(found['earlier'], 'earlier upload')} of it, and then:"
    for record in found["story"] or ():
        yield f"    {printable(_told(record))}"
    for row in found.get("now", ()):
        reason = f": {row['reason']}" if row["reason"] else ""
        since = f" since {clock(row['since'])} ({ago(row['since'])})" if row["since"] else ""
        yield f"  Now {printable(row['id'] or 'it')} is {row['state']}{since}{printable(reason)}."


def _details(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "watch" not in found:
        return
    yield "watch", f"[watch:{found['watch']}] {found['watch_path']}"
    file = found["file"]
    if isinstance(file, dict):
        modified = file["modified"]
        file = f"{file['size']} bytes, modified {clock(modified)} ({ago(modified)} ago)"
    yield "file", file
    if found["writers"]:
        yield "", f"open for writing by {told(found['writers'])}"
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
