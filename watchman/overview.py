"""What `watchman status` tells of the running daemon."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from watchman import __version__
from watchman.dispatcher import Dispatcher
from watchman.pauses import ALL, Pauses
from watchman.pipeline import Group
from watchman.settings import Settings
from watchman.sinks.publishers import Publishers
from watchman.sources.finders import Finders
from watchman.unsettled import DOWN, Unsettled
from watchman.upload import State

#: A broker that the INI file has not.
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
        unsettled: Unsettled,
        pauses: Pauses,
        finders: Finders,
        publishers: Publishers,
    ) -> None:
        self._started = time.time()
        self._dispatcher = dispatcher
        self._unsettled = unsettled
        self._pauses = pauses
        self._finders = finders
        self._publishers = publishers

    def status(self, settings: Settings) -> dict[str, Any]:
        """Return all of it; what is paused is no problem, for somebody wanted it so."""
        dispatcher, groups = self._dispatcher, self._unsettled.groups()
        watches, brokers = self._watches(settings), self._brokers(groups)
        logs = self._finders.logs()
        warnings = list(dispatcher.crosscheck.warnings(settings, logs))
        problems = [*_watch_problems(watches), *_broker_problems(brokers), *_log_problems(logs)]
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
                }
                for name in ("hook", "log", "inotify", "scan", "resubmit")
            },
            "transfer_logs": logs,
            "watches": watches,
            "brokers": brokers,
            "uploads": {
                "noticed": len(dispatcher.held),
                **{state: counts[state] for state in ("waiting", "deferred", "failed")},
                "done": dispatcher.pipeline.settled[State.DONE.value],
            },
            "oldest_waiting": self._unsettled.oldest(),
        }

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

    def _brokers(self, groups: Iterable[Group]) -> dict[str, dict[str, Any]]:
        brokers = {
            name: {**status, "waiting": 0, "held_up": []}
            for name, status in self._publishers.status().items()
        }
        for group in groups:
            kind, _, name = group.place.partition(":")
            if kind != "broker":
                continue
            broker = brokers.setdefault(name, {**UNKNOWN, "waiting": 0, "held_up": []})
            broker["waiting"] += len(group.positions)
            if group.lane and not group.paused:
                broker["held_up"].append(
                    {
                        "what": group.lane,
                        "uploads": len(group.positions),
                        "attempts": group.attempts,
                        "next_try": group.next_try,
                        "reason": group.reason,
                    }
                )
        paused = self._pauses.since()
        for name, broker in brokers.items():
            broker["paused"] = f"broker:{name}" in paused or ALL in paused
        return brokers


def _watch_problems(watches: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, watch in watches.items():
        if watch["state"] in ("missing", "incomplete"):
            yield f"watch {name} ({watch['path']}) is {watch['state']}: {watch['error']}"


def _log_problems(logs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for path, log in logs.items():
        # Until its first upload, and that after each rotation, ProFTPD makes none.
        if log["problem"] not in (None, os.strerror(errno.ENOENT)):
            yield f"transfer log {path} cannot be read: {log['problem']}"


def _broker_problems(brokers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, broker in brokers.items():
        for route, reason in broker["refused"].items():
            yield f"broker {name} does not take tasks for {route}: {reason}"
        if broker["state"] in DOWN:
            yield f"broker {name} is {broker['state']}: {broker['error']}"
        elif broker["state"] == "unknown":
            yield f"{broker['waiting']} uploads wait for broker {name}, which the INI file has not"
