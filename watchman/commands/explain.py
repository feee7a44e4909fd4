"""`watchman explain`: what would happen to a path, and why.

Say what would happen to files uploaded as PATH: their watch, exclusion, move,
task, broker, queue, options and arguments. If the daemon answers, also say what
has happened to them: each upload with its destination, each try with its
answer, and what the INI file would do differently now. PATH need not exist. It
may also be an upload's id, or at least four characters that begin no other id.
Nothing is touched, sent or written.
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

#: An upload's id is a UUID. A beginning of it is tried as an id if it has SHORTEST characters. A
#: shorter one is taken for a file's name.
UPLOAD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ANY_ID = "00000000-0000-0000-0000-000000000000"
SHORTEST = 4

#: Seconds to wait for a story. The daemon may have to read a week's history for it.
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
    """Knows what would happen, from the INI file, and what has happened, from the daemon.

    If the INI file is wrong or may not be read, it tells only what the daemon knows.
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
        """Return all that is known of a path or an upload's id.

        Raises RequestRefused if there is no such id, and ConfigError if the INI file is wrong and
        the daemon does not help either.
        """
        if _may_be_id(subject) and not os.path.lexists(subject) and (past := self._past(subject)):
            return past
        # Not abspath: that removes `..` by the text alone, which is wrong after a symlink.
        found = self._would(os.path.join(os.getcwd(), subject))
        try:
            return found | self._ask({"path": found["path"]})
        except (SocketUnavailable, RequestRefused) as error:
            if self._wrong:
                raise self._wrong from error
            return found | {"story": None, "story_error": str(error)}

    def _past(self, upload_id: str) -> dict[str, Any] | None:
        """Return what is known of an upload; None if `upload_id` may be a path instead."""
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
    """Return whether it looks like an upload's id, or like the beginning of one."""
    is_long = len(subject) >= SHORTEST
    return is_long and bool(UPLOAD_ID.fullmatch(subject + ANY_ID[len(subject) :]))
