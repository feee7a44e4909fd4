"""Run all benchmarks, or those named, and say what is known then: `python -m tests.bench burst`.

`report` and `readme` measure nothing: the latter is what README.rst has of it.
"""

import sys

from tests.bench import (
    answers,
    burst,
    floods,
    growth,
    idle,
    inside,
    intake,
    latency,
    report,
    scale,
    transferlog,
)
from tests.bench.rows import keep

#: Each yields rows of both sides.
BENCHMARKS = {
    "burst": burst.rows,
    "latency": latency.rows,
    "upload": latency.upload_rows,
    "inside": inside.rows,
    "intake": intake.rows,
    "answers": answers.rows,
    "scale": scale.rows,
    "idle": idle.rows,
    "growth": growth.rows,
    "transferlog": transferlog.rows,
}

REPORTS = "report", "readme"


def measure(name: str) -> None:
    print(name)
    rows = []
    for row in BENCHMARKS[name]():
        print(f"  {row}", flush=True)
        rows.append(row)
        keep(name, rows)


names = sys.argv[1:] or [*BENCHMARKS, "floods"]
for name in names:
    if name in BENCHMARKS:
        measure(name)
    elif name == "floods":
        floods.main()
    elif name not in REPORTS:
        sys.exit(f"{name}: one of {', '.join((*BENCHMARKS, 'floods', *REPORTS))}")
report.say(limits="readme" not in names)
report.draw()
