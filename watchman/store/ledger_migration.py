"""Hands decisions from ledger to ledger, when watches come into the INI file or leave it."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping

from watchman.config.rules import Rules
from watchman.config.settings import Settings
from watchman.store.ledger import Ledger
from watchman.store.spool import ledger_directory
from watchman.uploads.beneath import is_below

logger = logging.getLogger(__name__)

#: The name of a ledger's file.
NAME = re.compile("[0-9a-f]{16}")


def migrate(settings: Settings, ledgers: Mapping[str, Ledger]) -> None:
    """Give each ledger the decisions about its files that were made while another watch had them.

    All decisions must be durable in the journal. Durable on return. A ledger that cannot be read or
    written is logged, and left for the next start or reload.
    """
    try:
        rules = Rules(settings)
        left = list(_left(settings))
        for heir in [ledger for ledger in ledgers.values() if ledger.inherits]:
            heir.adopt(
                one
                for one in (*ledgers.values(), *left)
                if one is not heir and is_below(heir.watch_path, one.watch_path)
            )
        for ledger in left:
            owner = _owner(rules, ledger.watch_path)
            if owner is not None:
                ledgers[owner].adopt([ledger])
                # If its watch comes back, its new ledger adopts what this owner knows by then.
                ledger.remove()
                logger.info("Watch %s has the files of %r now.", owner, ledger.watch_path)
    except OSError as e:
        logger.warning(
            "Watches came or went, and the ledgers of their files cannot be handed over: %s.", e
        )


def _left(settings: Settings) -> Iterator[Ledger]:
    """Yield the ledgers of watches that have left the INI file."""
    directory = ledger_directory(settings)
    watched = {watch.path for watch in settings.watches.values()}
    for name in filter(NAME.fullmatch, sorted(os.listdir(directory))):
        path = os.path.join(directory, name)
        with open(path, "rb") as file:
            try:
                watch_path = json.loads(file.readline())["watch"]
            except (ValueError, KeyError, TypeError):
                continue
        if watch_path not in watched:
            ledger = Ledger(path, watch_path)
            if ledger.open():
                yield ledger


def _owner(rules: Rules, path: str) -> str | None:
    """Return the name of the watch whose scans visit a directory, None if there is none."""
    located = rules.locate(path)
    if located is None:
        return None
    watch, subpath = located
    return watch.name if watch.rec and rules.excluded(watch, subpath) is None else None
