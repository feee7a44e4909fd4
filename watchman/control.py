"""Answers what commands ask of the running daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from watchman import __version__
from watchman.dispatcher import Dispatcher
from watchman.errors import WatchmanError
from watchman.journal import Journal
from watchman.settings import Settings
from watchman.sinks.publisher import Publisher
from watchman.sources.scanner import Scanner
from watchman.sources.transferlog import TransferLog
from watchman.sources.watcher import Watcher


class Control:
    """The daemon as seen from its socket. Called in the listener's thread for queries."""

    def __init__(
        self,
        settings: Settings,
        *,
        dispatcher: Dispatcher,
        journal: Journal,
        watcher: Watcher,
        scanner: Scanner,
        transferlog: TransferLog,
        publishers: Mapping[str, Publisher],
    ) -> None:
        self._settings = settings
        self._started = time.time()
        self._dispatcher = dispatcher
        self._journal = journal
        self._watcher = watcher
        self._scanner = scanner
        self._transferlog = transferlog
        self._publishers = publishers

    def query(self, event: str, fields: Mapping[str, str]) -> list[dict[str, Any]]:
        """Answer one query, or raise WatchmanError."""
        match event:
            case "status":
                return [self._status()]
            case "queue":
                return [*self._dispatcher.held.rows(), *self._dispatcher.pipeline.rows()]
            case "explain":
                return [self._story(fields.get("path") or fields.get("id", ""))]
        raise WatchmanError(f"unknown query {event!r}")

    def _status(self) -> dict[str, Any]:
        dispatcher, pipeline = self._dispatcher, self._dispatcher.pipeline
        watches, brokers = self._watches(), self._brokers()
        logs = self._transferlog.status()
        problems = [
            f"watch {name} ({watch['path']}) is {watch['state']}: {watch['error']}"
            for name, watch in watches.items()
            if watch["state"] in ("missing", "incomplete")
        ]
        problems += [
            f"transfer log {path}: {log['error']}" for path, log in logs.items() if log["error"]
        ]
        problems += [
            f"broker {name} is {broker['state']}: {broker['error']}"
            for name, broker in brokers.items()
            if broker["state"] in ("down", "blocked")
        ]
        problems += [
            f"broker {name} does not take tasks for {route}: {reason}"
            for name, broker in brokers.items()
            for route, reason in broker["refused"].items()
        ]
        problems += [
            f"{broker['waiting']} uploads wait for broker {name}, which the INI file has not"
            for name, broker in brokers.items()
            if broker["state"] == "unknown" and broker["waiting"]
        ]
        if dispatcher.unwritable():
            problems.append(f"the journal below {self._settings.spool} cannot be written")
        return {
            "healthy": not problems,
            "problems": problems,
            "pid": os.getpid(),
            "version": __version__,
            "since": self._started,
            "config": self._settings.file,
            "sources": {
                name: {"heard": dispatcher.heard[name], "last": dispatcher.last_heard.get(name)}
                for name in ("hook", "log", "inotify", "scan", "resubmit")
            },
            "logs": logs,
            "watches": watches,
            "brokers": brokers,
            "uploads": {"noticed": len(dispatcher.held), **pipeline.counts()},
            "oldest_waiting": pipeline.oldest_waiting(),
        }

    def _watches(self) -> dict[str, dict[str, Any]]:
        watcher, scanner = self._watcher.status(), self._scanner.status()
        return {
            name: {
                "path": watch.path,
                **scanner.get(name, {}),
                **watcher.get(name, {}),
                "unmatched": self._dispatcher.judge.unmatched[name],
                "excluded": self._dispatcher.judge.excluded[name],
            }
            for name, watch in self._settings.watches.items()
        }

    def _brokers(self) -> dict[str, dict[str, Any]]:
        known = {name: publisher.status() for name, publisher in self._publishers.items()}
        unknown: dict[str, Any] = {
            "state": "unknown",
            "since": None,
            "attempts": 0,
            "next_try": None,
            "error": None,
            "refused": {},
        }
        return {
            name: {**known.get(name, unknown), "waiting": len(backlog)}
            for name, backlog in list(self._dispatcher.pipeline.backlogs.items())
        }

    def _story(self, subject: str) -> dict[str, Any]:
        """Return the records about a path or an upload id, of the past too, oldest first."""
        # An upload's later records name its id alone: look for the ids that the first ones name.
        records = list(self._journal.story(subject))
        ids = {record["id"] for record in records if "id" in record}
        for upload_id in ids - {subject}:
            records += [r for r in self._journal.story(upload_id) if r not in records]
        records.sort(key=lambda record: record.get("at") or record.get("accepted") or time.time())
        return {"path": subject, "story": records}
