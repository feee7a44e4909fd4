"""Run all benchmarks, or those named: `python -m tests.bench transferlog`."""

import sys

from tests.bench import floods, scale, transferlog

BENCHMARKS = {"transferlog": transferlog.main, "scale": scale.main, "floods": floods.main}

for name in sys.argv[1:] or BENCHMARKS:
    BENCHMARKS[name]()
