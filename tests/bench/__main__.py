"""Run all benchmarks, or those named: `python -m tests.bench burst`."""

import sys

from tests.bench import burst, floods, inside, intake, latency, scale, transferlog
from tests.bench.rows import keep

#: What is asked of watchman, a table of both sides.
TABLE = {
    "burst": burst.rows,
    "latency": latency.rows,
    "upload": latency.upload_rows,
    "inside": inside.rows,
    "intake": intake.rows,
    "scale": scale.rows,
    "transferlog": transferlog.rows,
}

#: What else is measured, and printed only.
OTHERS = {"floods": floods.main}

for name in sys.argv[1:] or [*TABLE, *OTHERS]:
    if name in OTHERS:
        OTHERS[name]()
        continue
    print(name)
    rows = []
    for row in TABLE[name]():
        print(f"  {row}", flush=True)
        rows.append(row)
        keep(name, rows)
