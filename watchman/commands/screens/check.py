"""The screen of `watchman check`: each finding as it comes."""

from rich.table import Table

from watchman.commands.screens.screen import aligned, text

#: How each level looks.
STYLES = {"OK": "green", "WARN": "bold yellow", "ERROR": "bold red"}

#: Columns of a level and of a subject.
WIDTHS = (5, 14)


def draw(level: str, subject: str, said: str) -> Table:
    """Return one finding as a row whose columns are those of all findings."""
    return aligned([text(level, STYLES[level]), text(subject), text(said)], WIDTHS)
