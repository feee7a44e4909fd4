"""Run all benchmarks, or those named, and say what is known then: `python -m tests.bench burst`.

`python -m tests.bench report` measures nothing.
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


def measure(name: str) -> None:
    print(name)
    rows = []
    for row in BENCHMARKS[name]():
        print(f"  {row}", flush=True)
        rows.append(row)
        keep(name, rows)


for name in sys.argv[1:] or [*BENCHMARKS, "floods"]:
    if name in BENCHMARKS:
        measure(name)
    elif name == "floods":
        floods.main()
    elif name != "report":
        sys.exit(f"{name}: one of {', '.join(BENCHMARKS)}, floods and report")
report.say()
report.draw()
