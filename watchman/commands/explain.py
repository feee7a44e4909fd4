"""`watchman explain`: what would happen to a path, and why.

Say what would happen to files uploaded as PATH: watch, exclusion, move, task, broker, queue,
options, arguments; and, if the daemon answers, what has happened to them: each upload with where
it went, each try with its answer, and what is different now. PATH need not exist, or may be an
upload's id, or any beginning of it that no other has. Nothing is touched, sent or written.
"""

import argparse
import os
import re
from collections.abc import Mapping
from typing import Any

from watchman.commands.screens import explain, screen
from watchman.commands.shared import client, shell
from watchman.commands.shared.phrases import count
from watchman.commands.shared.plan import Plan
from watchman.config import inifile, locations
from watchman.errors import ConfigError, RequestRefused, SocketUnavailable

#: What the dispatcher draws for an upload, a UUID, and how much of it is not taken for a name.
UPLOAD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ANY_ID = "00000000-0000-0000-0000-000000000000"
SHORTEST = 4

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
        if arguments.json:
            shell.print_json(found)
        else:
            screen.show(*[""] if told else [], *explain.draw(found))
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
        if _may_be_id(subject) and not os.path.lexists(subject) and (past := self._past(subject)):
            return past
        # Not abspath: over a symlink `..` is not what its text says.
        found = self._would(os.path.join(os.getcwd(), subject))
        try:
            return found | self._ask({"path": found["path"]})
        except (SocketUnavailable, RequestRefused) as error:
            if self._wrong:
                raise self._wrong from error
            return found | {"story": None, "story_error": str(error)}

    def _past(self, upload_id: str) -> dict[str, Any] | None:
        """What there is to say of an upload; None for what may be a path as well and is no id."""
        is_whole = len(upload_id) == len(ANY_ID)
        try:
            past = self._ask({"id": upload_id})
        except SocketUnavailable:
            if is_whole:
                raise
            return None
        paths = [record.get("original") or record.get("path") for record in past["story"]]
        if path := next(filter(None, paths), None):
            ids = [upload["id"] for upload in past.get("uploads", ())]
            return self._would(path) | past | {"id": next(iter(ids), upload_id), "path": path}
        if is_whole:
            raise RequestRefused(f"the daemon knows of no upload {upload_id}")
        return None

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


def _may_be_id(subject: str) -> bool:
    """Whether it is an upload's id, or the beginning of one."""
    is_long = len(subject) >= SHORTEST
    return is_long and bool(UPLOAD_ID.fullmatch(subject + ANY_ID[len(subject) :]))
