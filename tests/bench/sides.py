"""Both sides of a measurement: how they are taken, and how they are told."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tests.servers.daemon import Daemon
from tests.support import bulk
from tests.support.deadline import eventually


def say(what: str, ours: float, unit: str, others: Mapping[str, float]) -> None:
    """One line: our side, and how many times the others' that is."""
    ratios = [f"{ours / other:.2f} x {name} ({other:.3g})" for name, other in others.items()]
    print(f"  {what}: {ours:.3g} {unit} = {', '.join(ratios)}", flush=True)


def scaled(values: dict[str, float], factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in values.items()}


def start(daemon: Daemon) -> tuple[float, float]:
    """Start; return the seconds that takes, and the peak of memory in KiB."""
    began = time.perf_counter()
    daemon.begin()
    eventually(daemon.is_ready_or_dead, timeout=300)
    return time.perf_counter() - began, bulk.peak_memory(daemon) / 1024
