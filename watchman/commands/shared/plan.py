"""What would happen to a file, by the INI file and a look at the file. Touches nothing."""

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from watchman.commands.shared.filesystems import grants_leases, may_lease_any_file
from watchman.commands.shared.routes import Routes
from watchman.commands.shared.writers import writers
from watchman.config import places
from watchman.config.moves import destination_of
from watchman.config.rules import Rules, fill
from watchman.config.settings import Settings, TaskSettings, WatchSettings
from watchman.errors import NotBelowWatch, WatchmanError
from watchman.uploads import beneath
from watchman.uploads.rights import user_name
from watchman.uploads.upload import FileState


class Plan:
    """The INI file's plan for each path."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rules = Rules(settings)
        self._routes = Routes(settings.brokers)

    def of(self, path: str) -> dict[str, Any]:
        """Return what would happen to a file of that path, and why. It need not exist."""
        located = places.locate(self._rules, self._settings.watches.values(), path)
        if located is None:
            path = os.path.normpath(path)
            why = places.why_nowhere(self._settings.watches.values(), path)
            return {"path": path, "would": f"Nothing: {why}"}
        watch, subpath = located
        path = beneath.below(watch.path, subpath)
        found: dict[str, Any] = {"path": path, "watch": watch.name, "watch_path": watch.path}
        state, problem = _look(watch, subpath)
        found["file"] = {"size": state.size, "modified": state.mtime / 1e9} if state else problem
        found["writers"] = writers([path]).get(path, [])
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
    """Return how the daemon knows that nobody is writing a file any more."""
    if not grants_leases(path) and not grants_leases(root):
        return "quiet for a while: its filesystem may not be local, so leases prove nothing"
    try:
        is_ours = os.stat(path, follow_symlinks=False).st_uid == os.geteuid()
    except OSError:
        is_ours = False
    if is_ours or may_lease_any_file():
        return "the kernel tells who has it open for writing (a lease)"
    return f"quiet for a while: {user_name(os.geteuid())} gets leases only on files of its own"


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
    if found["writers"]:
        return f"Once it is written and nobody has it open for writing, {sent}"
    return f"The next time it is written, {sent}"


def _steps(found: Mapping[str, Any]) -> Iterator[str]:
    if "move" in found:
        yield f"it is moved to {found['destination']}"
    if "section" in found:
        yield f"task {found['task']} is sent to broker {found['broker']}, {found['route']}"
    else:
        yield "no task is sent, for no [task:...] section matches it"
