"""Programs that tests need: without one, a test is left out, or fails where none may be."""

import os
import shutil

import pytest

#: Where Debian keeps servers, also for those whose PATH leaves it out.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def need(*programs: str) -> None:
    """Skip the test where a program is missing; in `make test` and in CI, fail it."""
    missing = [program for program in programs if not shutil.which(program, path=PATH)]
    if missing and os.environ.get("CI"):
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
