"""A screen that is drawn anew every two seconds, until Ctrl-C."""

import time
from collections.abc import Callable, Iterable
from typing import NoReturn

from rich.console import Group, RenderableType
from rich.live import Live

from watchman.commands.screens.screen import console

#: Seconds between two drawings.
PERIOD = 2.0


def watch(draw: Callable[[], Iterable[RenderableType]]) -> NoReturn:
    """Fill the terminal with what `draw` returns, every PERIOD. Cut off what does not fit below."""
    with Live(console=console(), screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(Group(*draw()), refresh=True)
            time.sleep(PERIOD)
