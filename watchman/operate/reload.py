"""A reload: the running daemon applies the present INI file, and loses no upload."""

from __future__ import annotations

import contextlib
import logging

from watchman.config import inifile
from watchman.config.differences import differences
from watchman.config.settings import Settings
from watchman.errors import WatchmanError
from watchman.operate.logs import log_to
from watchman.operate.parts import Parts
from watchman.sinks.moving.forbidden import look_soon
from watchman.sinks.sinks import moves_of
from watchman.sources.socket.listener import Listener
from watchman.store.ledger import Ledger
from watchman.store.spool import open_ledger

logger = logging.getLogger(__name__)

#: Options that cannot change while the daemon runs.
FIXED = ("spool", "socket")

#: Settings that the finders cannot change while they run. Finders are stopped and started for them.
LOOKED_AT = ("watches", "proftpd", "moves")


def reload(parts: Parts, listener: Listener) -> list[str]:
    """Read the INI file and apply it; return what changed. Runs in the main thread.

    Raises WatchmanError or OSError, and then nothing has changed. Except InotifyUnavailable: after
    that nothing is watched any more.
    """
    new = inifile.load(parts.settings.file)
    for option in FIXED:
        before, after = getattr(parts.settings, option), getattr(new, option)
        if before != after:
            raise WatchmanError(
                f"{option} changed from {before} to {after}: that takes a restart of watchman"
            )
    changed = list(differences(parts.settings, new))
    if changed:
        _go_over(parts, listener, new)
    parts.forbidden = look_soon(new)
    logger.info("Reloaded %r: %s.", new.file, ", ".join(changed) or "nothing changed")
    return changed


def _go_over(parts: Parts, listener: Listener, new: Settings) -> None:
    """Apply new settings to all parts."""
    # All that may fail comes first, so that a failure leaves everything as it was.
    with contextlib.ExitStack() as failed:
        publishers = parts.publishers.prepare(new.brokers)
        movers = parts.movers.prepare(moves_of(new))
        ledgers = _open_ledgers(parts, new, failed)
        log_to(new)
        failed.pop_all()
    for warning in new.warnings():
        logger.warning("%s.", warning)
    old = parts.settings
    look_anew = any(getattr(old, name) != getattr(new, name) for name in LOOKED_AT)
    if look_anew:
        parts.finders.stop()
        parts.finders.join()
    parts.dispatcher.change(new, ledgers)
    parts.publishers.change(publishers)
    parts.movers.change(movers)
    listener.admit(new.admins)
    parts.exporter.change(new.metrics)
    parts.settings, parts.ledgers = new, ledgers
    if look_anew:
        parts.finders.look(new, excluded=parts.dispatcher.rules.excluded, ledgers=ledgers)
        parts.finders.start()


def _open_ledgers(parts: Parts, new: Settings, failed: contextlib.ExitStack) -> dict[str, Ledger]:
    """Return the ledgers by watch, and open those of new watches.

    A watch is recognized by its path, so it keeps its ledger when its section is renamed.
    """
    by_path = {watch.path: parts.ledgers[name] for name, watch in parts.settings.watches.items()}
    ledgers = {}
    for name, watch in new.watches.items():
        if watch.path not in by_path:
            by_path[watch.path] = open_ledger(new, watch)
            failed.callback(by_path[watch.path].close)
        ledgers[name] = by_path[watch.path]
    return ledgers
