"""Run all benchmarks, or those named: `python -m tests.bench transferlog`."""

import sys

from tests.bench import transferlog

BENCHMARKS = {"transferlog": transferlog.main}

for name in sys.argv[1:] or BENCHMARKS:
    BENCHMARKS[name]()
