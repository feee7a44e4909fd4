"""What the daemon answers who tells it of a file."""

from enum import StrEnum


class Outcome(StrEnum):
    """The dispatcher's answer to a notification, as the socket spells it."""

    OK = "OK"
    DUPLICATE = "DUPLICATE"
    IGNORED = "IGNORED"
    ERROR = "ERROR"
