"""The metrics that are exported: name, labels, help text, and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from watchman.operate.metrics.totals import OTHER, Labels, Totals
from watchman.sinks.steps import BOUNDS, Steps
from watchman.uploads.text import printable
from watchman.uploads.upload import State

#: The counters: name, labels and help text. `_total` is added to the name.
COUNTERS = {
    "accepted": (("source", "watch", "task"), "Uploads that were accepted."),
    "uploads": (
        ("source", "watch", "task", "outcome"),
        "Uploads by what became of them. One that failed and was sent later counts as both.",
    ),
    "notifications": (("source", "kind"), "Notifications of each source, by what it said."),
    "unmatched": (("watch",), "Files that no task and no move matches."),
    "excluded": (("watch",), "Files that were excluded."),
    "unconfirmed": (("watch",), "Uploads that were accepted without ProFTPD's word."),
    "scans": (("watch",), "Scans of the whole watch that have ended."),
    "overflows": ((), "How often the kernel has dropped events."),
    "log_lines": (("log",), "Lines of the transfer log that were read."),
    "log_refused_lines": (("log",), "Lines of the transfer log that are not ours."),
}

#: The states that brokers and moves can have.
SINK_STATES = ("idle", "up", "down", "blocked", "unknown")

#: The parts of the histogram, as totals.
BUCKETS, SUM = "closed_to_sent_buckets", "closed_to_sent_sum"


def count(totals: Totals, found: Mapping[str, Any], steps: Steps) -> None:
    """Add to the totals what the daemon has counted. `found` is the status of the daemon."""
    for (event, origin), number in steps.counts.copy().items():
        if event == State.ACCEPTED:
            totals.follow("accepted", tuple(origin), number)
        else:
            totals.follow("uploads", (*origin, event), number)
    for broker, delays in list(steps.delays.items()):
        for bucket, number in enumerate(list(delays.buckets)):
            totals.follow(BUCKETS, (broker, str(bucket)), number)
        totals.follow(SUM, (broker,), delays.sum)
    for source, told in found["sources"].items():
        for kind, number in told["said"].items():
            totals.follow("notifications", (source, kind), number)
    for watch, told in found["watches"].items():
        for name in ("unmatched", "excluded", "unconfirmed", "scans"):
            totals.follow(name, (watch,), told.get(name, 0))
    totals.follow("overflows", (), found["overflows"])
    for log, told in found["transfer_logs"].items():
        totals.follow("log_lines", (printable(log),), told["records"])
        totals.follow("log_refused_lines", (printable(log),), told["refused"])


def text(totals: Totals, found: Mapping[str, Any], *, up: bool) -> bytes:
    """Return the file: all metrics, in the text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Collector([*_counters(totals), *_gauges(found, up=up)]))
    return generate_latest(registry)


class _Collector(Collector):
    """A collector of metrics that exist already. prometheus_client prints what a collector has."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _counters(totals: Totals) -> Iterator[Metric]:
    for name, (labels, help_) in COUNTERS.items():
        counter = CounterMetricFamily(f"watchman_{name}", help_, labels=labels)
        for values, total in sorted(totals.sums(name).items()):
            counter.add_metric(values, total)
        yield counter
    yield _histogram(totals)


def _histogram(totals: Totals) -> Metric:
    histogram = HistogramMetricFamily(
        "watchman_closed_to_sent_seconds",
        "How long it took from the last change of a file until its task was sent.",
        labels=("broker",),
    )
    buckets = totals.sums(BUCKETS)
    for labels, sum_ in sorted(totals.sums(SUM).items()):
        if labels == (OTHER,):
            continue  # its buckets were counted together as one, which tells nothing
        reached, told = 0.0, []
        for bucket, bound in enumerate((*map(str, BOUNDS), "+Inf")):
            reached += buckets.get((*labels, str(bucket)), 0.0)
            told.append((bound, reached))
        histogram.add_metric(labels, buckets=told, sum_value=sum_)
    return histogram


#: The values of one gauge.
Values = Iterable[tuple[Labels, float | None]]


def _gauges(found: Mapping[str, Any], *, up: bool) -> Iterator[Metric]:
    yield _gauge("up", "Whether the daemon runs: 0 after it was stopped.", (), [((), up)])
    told = [((found["version"],), 1.0)]
    yield _gauge("info", "The version of the daemon.", ("version",), told)
    for name, help_, value in (
        ("start_time_seconds", "When the daemon was started.", found["since"]),
        ("healthy", "Whether `watchman status` says healthy.", found["healthy"]),
        ("problems", "Problems that `watchman status` shows.", len(found["problems"])),
        ("warnings", "Warnings that `watchman status` shows.", len(found["warnings"])),
        ("noticed_files", "Files that settle or wait for ProFTPD.", found["uploads"]["noticed"]),
    ):
        yield _gauge(name, help_, (), [((), value)])
    failed, untold = found["uploads"]["failed"], found["untold"]
    told = [(("no",), untold), (("yes",), failed - untold)]
    yield _gauge("failed_uploads", "Failed uploads that are listed.", ("told",), told)
    paused = [((one["name"],), 1.0) for one in found["paused"]]
    yield _gauge("paused", "What an operator has paused.", ("name",), paused)
    yield from _places(found)
    yield from _watches(found["watches"])
    yield from _sources(found)


def _places(found: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the metrics of brokers and moves."""
    sinks = [("broker", found["brokers"]), ("move", found["moves"])]
    places = [(kind, name, sink) for kind, some in sinks for name, sink in some.items()]
    waiting: list[tuple[Labels, float | None]] = []
    for kind, name, sink in places:
        deferred = sum(held["uploads"] for held in sink["held_up"])
        if sink["state"] in ("down", "blocked"):
            deferred = sink["waiting"]
        place = f"{kind}:{name}"
        waiting += [((place, "waiting"), sink["waiting"] - deferred)]
        waiting += [((place, "deferred"), deferred)]
    yield _gauge("waiting_uploads", "Uploads that wait, by place.", ("place", "state"), waiting)
    oldest: Values = [((f"{kind}:{name}",), sink["oldest"]) for kind, name, sink in places]
    yield _gauge(
        "oldest_waiting_timestamp_seconds",
        "When the oldest upload that waits was accepted. Not exported if none waits.",
        ("place",),
        oldest,
    )
    for kind, some in sinks:
        states: Values = [
            ((name, state), float(sink["state"] == state))
            for name, sink in some.items()
            for state in SINK_STATES
        ]
        help_ = f"1 for the present state of the {kind}, 0 for the others."
        yield _gauge(f"{kind}_state", help_, (kind, "state"), states)
    refused: Values = [
        ((name,), len(broker["refused"])) for name, broker in found["brokers"].items()
    ]
    yield _gauge("broker_refused_routes", "Routes that the broker refuses.", ("broker",), refused)


def _watches(watches: Mapping[str, Any]) -> Iterator[Metric]:
    for name, help_, value in (
        ("watch_up", "0 while the watch is missing or incomplete.", _is_up),
        ("watched_directories", "Directories that are watched.", "directories"),
        ("unwatched_directories", "Directories that only scans cover.", "unwatched"),
        ("last_scan_timestamp_seconds", "When the last whole scan ended.", "last_scan"),
        ("scanning", "Whether the watch is being scanned.", "scanning"),
    ):
        told = [((n,), value(w) if callable(value) else w.get(value)) for n, w in watches.items()]
        yield _gauge(name, help_, ("watch",), told)


def _is_up(watch: Mapping[str, Any]) -> bool:
    return watch["state"] not in ("missing", "incomplete")


def _sources(found: Mapping[str, Any]) -> Iterator[Metric]:
    sources, logs = found["sources"].items(), found["transfer_logs"].items()
    heard: Values = [((name,), source["last"]) for name, source in sources]
    help_ = "When the source was heard last."
    yield _gauge("last_heard_timestamp_seconds", help_, ("source",), heard)
    last: Values = [((printable(path),), log["last"]) for path, log in logs]
    help_ = "When the last line of the transfer log came."
    yield _gauge("log_last_line_timestamp_seconds", help_, ("log",), last)
    unread: Values = [((printable(path),), log["unread"]) for path, log in logs]
    help_ = "Bytes of the transfer log that were not read yet."
    yield _gauge("log_unread_bytes", help_, ("log",), unread)
    errors: Values = [((printable(path),), bool(log["error"])) for path, log in logs]
    help_ = "Whether something is wrong with reading the transfer log."
    yield _gauge("log_failing", help_, ("log",), errors)


def _gauge(name: str, help_: str, labels: Labels, values: Values) -> Metric:
    """Return a gauge, without the values that are None."""
    gauge = GaugeMetricFamily(f"watchman_{name}", help_, labels=labels)
    for labelled, value in values:
        if value is not None:
            gauge.add_metric(labelled, float(value))
    return gauge
