"""What `watchman status` tells of the running daemon."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from watchman import __version__
from watchman.config.settings import Settings
from watchman.dispatch.dispatcher import Dispatcher
from watchman.operate.queue_view import DOWN, QueueView
from watchman.sinks.backlogs import Group
from watchman.sinks.pauses import ALL, Pauses
from watchman.sinks.sinks import Movers, Publishers
from watchman.sources.finders import Finders
from watchman.uploads.upload import Source, State

#: Seconds after which work that could go on, and does not, is a problem.
STALLED = 30.0

#: A broker or a move that the INI file has not.
UNKNOWN: Mapping[str, Any] = {
    "state": "unknown",
    "since": None,
    "attempts": 0,
    "next_try": None,
    "error": None,
    "refused": {},
}


class Overview:
    """Asks everyone how it stands. Called in the thread of queries."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        queue_view: QueueView,
        pauses: Pauses,
        finders: Finders,
        publishers: Publishers,
        movers: Movers,
    ) -> None:
        self._started = time.time()
        self._dispatcher = dispatcher
        self._queue_view = queue_view
        self._pauses = pauses
        self._finders = finders
        self._publishers = publishers
        self._movers = movers

    def status(self, settings: Settings) -> dict[str, Any]:
        """Return all of it; what is paused is no problem, for somebody wanted it so."""
        dispatcher, groups = self._dispatcher, self._queue_view.groups()
        watches = self._watches(settings)
        brokers = self._sinks("broker", self._publishers.status(), groups)
        moves = self._sinks("move", self._movers.status(), groups)
        logs = self._finders.logs()
        warnings = list(dispatcher.crosscheck.warnings(settings, logs))
        problems = [*_watch_problems(watches), *_log_problems(logs)]
        problems += [*_sink_problems("move", moves), *_sink_problems("broker", brokers)]
        problems += self._stalled(brokers)
        problems += filter(None, [dispatcher.placing.problem(dispatcher.judge.decisive)])
        if dispatcher.unwritable():
            problems.append(f"the journal below {settings.spool} cannot be written")
        counts = Counter[str](waiting=len(dispatcher.pipeline.arriving))
        for group in groups:
            counts[group.state] += len(group.positions)
        return {
            "paused": self._paused(groups),
            "healthy": not problems,
            "problems": problems,
            "warnings": warnings,
            "pid": os.getpid(),
            "version": __version__,
            "since": self._started,
            "config": settings.file,
            "sources": {
                name: {
                    "heard": dispatcher.heard[name],
                    "last": dispatcher.last_heard.get(name),
                    "said": dispatcher.crosscheck.said(name),
                    "unplaced": dispatcher.placing.unplaced[Source(name)],
                }
                for name in ("hook", "log", "inotify", "scan", "resubmit")
            },
            "transfer_logs": logs,
            "watches": watches,
            "moves": {
                name: {
                    **move,
                    "destination": settings.moves[name].destination
                    if name in settings.moves
                    else None,
                }
                for name, move in moves.items()
            },
            "brokers": brokers,
            "uploads": {
                "noticed": len(dispatcher.hold_queue),
                **{state: counts[state] for state in ("waiting", "deferred", "failed")},
                "done": dispatcher.pipeline.settled[State.DONE.value],
            },
            "oldest_waiting": self._queue_view.oldest(),
        }

    def _stalled(self, brokers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield what should go on and does not, though nobody has said that anything is wrong."""
        stalled = self._dispatcher.stalled()
        if stalled >= STALLED:
            yield (
                f"nothing is decided for {stalled:.0f} seconds: a file system hangs, most likely;"
                " the log's last lines may tell which"
            )
        for name, broker in brokers.items():
            stalled = self._dispatcher.pipeline.backlogs[f"broker:{name}"].stalled()
            if stalled >= STALLED and broker["state"] not in (*DOWN, "unknown"):
                yield (
                    f"none of the {broker['waiting']} uploads that wait for broker {name} was sent"
                    f" for {stalled:.0f} seconds, though it is {broker['state']}: see the log, and"
                    " restart watchman if it does not tell why"
                )

    def _paused(self, groups: Iterable[Group]) -> list[dict[str, Any]]:
        """Each pause with the uploads known to wait for its end."""
        held = Counter[str]()
        for group in groups:
            held[group.paused] += len(group.positions)
        return [
            {"name": name, "since": since, "waiting": held[name]}
            for name, since in self._pauses.since().items()
        ]

    def _watches(self, settings: Settings) -> dict[str, dict[str, Any]]:
        found, dispatcher = self._finders.status(), self._dispatcher
        return {
            name: {
                "path": watch.path,
                **found.get(name, {"state": "starting", "error": None}),
                "unmatched": dispatcher.judge.unmatched[name],
                "excluded": dispatcher.judge.excluded[name],
                **dispatcher.crosscheck.status(name),
            }
            for name, watch in settings.watches.items()
        }

    def _sinks(
        self, kind: str, status: Mapping[str, Mapping[str, Any]], groups: Iterable[Group]
    ) -> dict[str, dict[str, Any]]:
        """Return each publisher's or mover's status, and what waits for it."""
        sinks = {name: {**one, "waiting": 0, "held_up": []} for name, one in status.items()}
        for group in groups:
            group_kind, _, name = group.place.partition(":")
            if group_kind != kind:
                continue
            sink = sinks.setdefault(name, {**UNKNOWN, "waiting": 0, "held_up": []})
            sink["waiting"] += len(group.positions)
            if group.lane and not group.paused:
                sink["held_up"].append(
                    {
                        "what": group.lane,
                        "uploads": len(group.positions),
                        "attempts": group.attempts,
                        "next_try": group.next_try,
                        "reason": group.reason,
                    }
                )
        paused = self._pauses.since()
        for name, sink in sinks.items():
            sink["paused"] = f"{kind}:{name}" in paused or ALL in paused
        return sinks


def _watch_problems(watches: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, watch in watches.items():
        if watch["state"] in ("missing", "incomplete"):
            yield f"watch {name} ({watch['path']}) is {watch['state']}: {watch['error']}"


def _log_problems(logs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for path, log in logs.items():
        if log["error"]:
            yield f"transfer log {path}: {log['error']}"


def _sink_problems(kind: str, sinks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, sink in sinks.items():
        for route, reason in sink.get("refused", {}).items():
            yield f"{kind} {name} does not take tasks for {route}: {reason}"
        if sink["state"] in DOWN:
            yield f"{kind} {name} is {sink['state']}: {sink['error']}"
        elif sink["state"] == "unknown":
            yield f"{sink['waiting']} uploads wait for {kind} {name}, which the INI file has not"
        # A lane of a move that is called by its reason is of a place that is wrong; others are of a
        # destination that is away, told above, or of one upload that somebody writes to.
        if kind == "move":
            for held in sink["held_up"]:
                if held["what"] == held["reason"]:
                    yield f"{kind} {name} holds up {held['uploads']} uploads: {held['reason']}"
