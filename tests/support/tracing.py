"""`python -m tests.support.tracing FILE PYTHON -m watchman ...` runs that command, and writes which
functions of ours are called and return, in all threads: a line each, as `daemon.py Daemon.run`.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import watchman

PACKAGE = str(Path(watchman.__file__).parent) + "/"


def main() -> None:
    path, _, _, _, *arguments = sys.argv[1:]
    file = Path(path).open("w", buffering=1)  # noqa: SIM115

    def trace(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event in ("call", "return") and code.co_filename.startswith(PACKAGE):
            file.write(f"{code.co_filename.removeprefix(PACKAGE)} {code.co_qualname}\n")

    from watchman.commands.main import main as command

    threading.setprofile(trace)
    sys.setprofile(trace)
    command(arguments)


if __name__ == "__main__":
    main()
