"""What `watchman status` shows about the running daemon."""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from watchman import __version__
from watchman.config.settings import Settings
from watchman.operate.parts import Parts
from watchman.operate.queue_view import DOWN, QueueView
from watchman.sinks.backlogs import Group
from watchman.sinks.failures import Failure
from watchman.sinks.pauses import ALL
from watchman.uploads.upload import Source, State

#: Seconds without progress after which that is a problem, if there is work that could go on.
STALLED = 30.0

#: The status of a broker or move that is not in the INI file, but for which uploads wait.
UNKNOWN: Mapping[str, Any] = {
    "state": "unknown",
    "since": None,
    "attempts": 0,
    "next_try": None,
    "error": None,
    "refused": {},
}

#: Commands that cure a problem, or that say what would cure it.
CHECK = "watchman check"
CHECK_BROKERS = "watchman check --brokers"
CHECK_PROFTPD = "watchman check --proftpd /etc/proftpd/proftpd.conf"
RESTART = "restart watchman"

#: The status of each watch, move or broker, by name.
Told = dict[str, dict[str, Any]]


class Problem(NamedTuple):
    """Something that an operator should look at, and the command to begin with or ""."""

    text: str
    cure: str = ""


class Health:
    """Whether the daemon is healthy, and since when. Any thread may note it.

    It is noted when somebody asks for the status, and every few seconds while nobody does.
    """

    def __init__(self, since: float, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._noted = True, since

    def note(self, healthy: bool) -> float:
        """Note whether it is healthy now, and return since when it is so (epoch)."""
        before, since = self._noted
        if healthy is not before:
            since = self._clock()
            self._noted = healthy, since
        return since


def status(parts: Parts, queue_view: QueueView, since: float, health: Health) -> dict[str, Any]:
    """Collect the status of all parts, and note it in `health`. Any thread may call it.

    The daemon was started at `since` (epoch). A pause is not a problem, because somebody wanted it.
    """
    settings, dispatcher = parts.settings, parts.dispatcher
    groups, logs = queue_view.sizes(), parts.finders.logs()
    oldest = queue_view.oldest(groups)
    watches, sinks = _watches(parts), _sinks(parts, groups, oldest)
    for name, move in sinks["move"].items():
        known = settings.moves.get(name)
        move["destination"] = known.destination if known else None
    untold = dispatcher.pipeline.failures.untold()
    problems = list(_problems(parts, watches, logs, sinks, untold))
    waiting, held = Counter[str](waiting=len(dispatcher.pipeline.arriving)), Counter[str]()
    for group in groups:
        waiting[group.state] += group.count
        held[group.paused] += group.count
    return {
        "paused": [
            {"name": name, "since": at, "waiting": held[name]}
            for name, at in parts.pauses.since().items()
        ],
        "healthy": not problems,
        "health_since": health.note(not problems),
        "problems": [problem.text for problem in problems],
        "cures": [problem.cure for problem in problems],
        "warnings": [*dispatcher.crosscheck.warnings(settings, logs), *_own_warnings(parts)],
        "pid": os.getpid(),
        "version": __version__,
        "since": since,
        "config": settings.file,
        "sources": {
            source: {
                "heard": dispatcher.heard[source],
                "last": dispatcher.last_heard.get(source),
                "said": dispatcher.crosscheck.said(source),
                "unplaced": dispatcher.placing.unplaced[source],
            }
            for source in Source
        },
        "overflows": parts.finders.overflows,
        "transfer_logs": logs,
        "watches": watches,
        "moves": sinks["move"],
        "brokers": sinks["broker"],
        "uploads": {
            "noticed": len(dispatcher.hold_queue),
            **{state: waiting[state] for state in ("waiting", "deferred", "failed")},
            "done": dispatcher.pipeline.settled[State.DONE],
        },
        "untold": len(untold),
        "oldest_waiting": min(oldest.values(), default=None),
    }


def _watches(parts: Parts) -> Told:
    found, dispatcher = parts.finders.status(), parts.dispatcher
    return {
        name: {
            "path": watch.path,
            **found.get(name, {"state": "starting", "error": None}),
            "unmatched": dispatcher.judge.unmatched[name],
            "excluded": dispatcher.judge.excluded[name],
            **dispatcher.crosscheck.status(name),
        }
        for name, watch in parts.settings.watches.items()
    }


def _sinks(parts: Parts, groups: Iterable[Group], oldest: Mapping[str, float]) -> dict[str, Told]:
    """Return the status of each mover and publisher, and how many uploads wait for it.

    `oldest` has by place when the oldest of them was accepted.
    """
    paused = parts.pauses.since()

    def told(kind: str, name: str, sink: Mapping[str, Any]) -> dict[str, Any]:
        is_paused = f"{kind}:{name}" in paused or ALL in paused
        first = oldest.get(f"{kind}:{name}")
        return {**sink, "waiting": 0, "oldest": first, "held_up": [], "paused": is_paused}

    sinks = {
        kind: {name: told(kind, name, sink) for name, sink in of_kind.items()}
        for kind, of_kind in parts.sinks().items()
    }
    for group in groups:
        kind, _, name = group.place.partition(":")
        if kind not in sinks:
            continue  # failed uploads, which wait for no sink
        sink = sinks[kind].setdefault(name, told(kind, name, UNKNOWN))
        sink["waiting"] += group.count
        if group.lane and not group.paused:
            sink["held_up"].append(
                {
                    "what": group.lane,
                    "uploads": group.count,
                    "attempts": group.attempts,
                    "next_try": group.next_try,
                    "reason": group.reason,
                }
            )
    return sinks


def _problems(
    parts: Parts,
    watches: Told,
    logs: Told,
    sinks: Mapping[str, Told],
    untold: Sequence[Failure],
) -> Iterator[Problem]:
    """Yield everything that an operator should look at."""
    dispatcher = parts.dispatcher
    for name, watch in watches.items():
        if watch["state"] in ("missing", "incomplete"):
            text = f"watch {name} ({watch['path']}) is {watch['state']}: {watch['error']}"
            yield Problem(text, CHECK)
    for path, log in logs.items():
        if log["error"]:
            yield Problem(f"transfer log {path}: {log['error']}", CHECK_PROFTPD)
    for kind, of_kind in sinks.items():
        for name, sink in of_kind.items():
            yield from _sink_problems(kind, name, sink)
    # Then work that stands still although no part has reported an error.
    if (stalled := dispatcher.stalled()) >= STALLED:
        yield Problem(
            f"nothing is decided for {stalled:.0f} seconds: most likely a file system hangs;"
            " the last lines of the log may tell which",
            RESTART,
        )
    for name, broker in sinks["broker"].items():
        stalled = dispatcher.pipeline.backlogs[f"broker:{name}"].stalled()
        if stalled >= STALLED and broker["state"] not in (*DOWN, "unknown"):
            yield Problem(
                f"none of the {broker['waiting']} uploads that wait for broker {name} was sent"
                f" for {stalled:.0f} seconds, though it is {broker['state']}: see the log; if it"
                " does not tell why, restart watchman",
                RESTART,
            )
    if problem := dispatcher.placing.problem(dispatcher.judge.decisive):
        yield Problem(problem, CHECK_PROFTPD)
    if untold:
        yield _failed(untold, parts.settings)
    if dispatcher.unwritable():
        spool = parts.settings.spool
        yield Problem(f"the journal below {spool} cannot be written", f"df {shlex.quote(spool)}")


def _own_warnings(parts: Parts) -> Iterator[str]:
    if problem := parts.exporter.problem:
        yield f"metrics are not written: {problem}"


def _failed(untold: Sequence[Failure], settings: Settings) -> Problem:
    """Return the problem that uploads have failed, and that nobody was told of them."""
    what = "1 upload has" if len(untold) == 1 else f"{len(untold):,} uploads have"
    them = "it" if len(untold) == 1 else "them"
    text = f"{what} failed: watchman retry --failed tries {them} again,"
    text += f" watchman drop --failed gives {them} up"
    refused = next((one.refused for one in untold if one.refused), "")
    if settings.on_failed:
        text += f"; on_failed has told nobody yet{refused and f': {refused}'}"
    return Problem(text, "watchman queue --failed")


def _sink_problems(kind: str, name: str, sink: Mapping[str, Any]) -> Iterator[Problem]:
    check = CHECK_BROKERS if kind == "broker" else CHECK
    for route, reason in sink.get("refused", {}).items():
        yield Problem(f"{kind} {name} does not take tasks for {route}: {reason}", check)
    if sink["state"] in DOWN:
        yield Problem(f"{kind} {name} is {sink['state']}: {sink['error']}", check)
    elif sink["state"] == "unknown":
        text = f"{sink['waiting']} uploads wait for {kind} {name}, which is not in the INI file"
        yield Problem(text, f"watchman queue --broker {name}" if kind == "broker" else CHECK)
    # If a move's lane has the reason as its name, something is wrong with a directory. The other
    # lanes are no problem here: a destination that is away is reported above, and a single upload
    # that is being written will be tried again.
    for held in sink["held_up"]:
        if kind == "move" and held["what"] == held["reason"]:
            text = f"{kind} {name} holds up {held['uploads']} uploads: {held['reason']}"
            yield Problem(text, check)
