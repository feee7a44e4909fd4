"""Run all benchmarks, or those named: `python -m tests.bench transferlog`."""

import sys

from tests.bench import scale, transferlog

BENCHMARKS = {"transferlog": transferlog.main, "scale": scale.main}

for name in sys.argv[1:] or BENCHMARKS:
    BENCHMARKS[name]()
