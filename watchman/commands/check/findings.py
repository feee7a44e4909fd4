"""A finding: what `watchman check` says about one thing."""

from enum import StrEnum
from functools import partial
from typing import NamedTuple


class Level(StrEnum):
    """How much a finding matters."""

    OK = "OK"
    WARN = "WARN"
    ERROR = "ERROR"


class Finding(NamedTuple):
    """One line of the report. `subject` names a section, or an option of `[watchman]`."""

    level: Level
    subject: str
    text: str


ok = partial(Finding, Level.OK)
warn = partial(Finding, Level.WARN)
error = partial(Finding, Level.ERROR)
