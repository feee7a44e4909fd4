"""What `watchman check` has found about one thing."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How much a finding matters."""

    OK = "OK"
    WARN = "WARN"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `subject` is a section or an option of `[watchman]`."""

    level: Level
    subject: str
    text: str

    def encode(self) -> dict[str, Any]:
        return asdict(self)


def ok(subject: str, text: str) -> Finding:
    return Finding(Level.OK, subject, text)


def warn(subject: str, text: str) -> Finding:
    return Finding(Level.WARN, subject, text)


def error(subject: str, text: str) -> Finding:
    return Finding(Level.ERROR, subject, text)
