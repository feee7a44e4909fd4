"""Copies of the sources, as a fresh clone has them."""

import os
import shutil
import sys
from pathlib import Path

from tests.servers.brokers import ROOT

#: The interpreter that this environment was made with.
PYTHON = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"

NOT_IN_A_CLONE = (
    ".git",
    ".venv",
    "var",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)


def copy(directory: Path) -> Path:
    """Fill `directory` with what a fresh clone would hold."""
    ignored = shutil.ignore_patterns(*NOT_IN_A_CLONE)
    shutil.copytree(ROOT, directory, ignore=ignored, dirs_exist_ok=True)
    (directory / "var").mkdir()
    return directory


def environment(**more: str) -> dict[str, str]:
    """Ours, but for what an outer make hands on and for the environment that tests run in."""
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VIRTUAL_ENV", "CI")
    return {name: value for name, value in os.environ.items() if name not in inherited} | more
