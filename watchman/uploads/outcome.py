"""The outcome of a notification, as it is answered.

A module of its own without dataclasses, so that commands start quickly.
"""

from enum import StrEnum


class Outcome(StrEnum):
    """What the dispatcher has made of a notification, spelled as on the socket."""

    OK = "OK"
    DUPLICATE = "DUPLICATE"
    IGNORED = "IGNORED"
    ERROR = "ERROR"
