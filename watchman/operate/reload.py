"""A reload: the daemon goes over to the INI file as it is now, and loses nothing in hand."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from watchman.config import inifile
from watchman.config.differences import differences
from watchman.config.settings import Settings
from watchman.dispatch.dispatcher import Dispatcher
from watchman.errors import WatchmanError
from watchman.operate.control import Control
from watchman.operate.logs import log_to
from watchman.sinks.sinks import Movers, Publishers, moves_of
from watchman.sources.finders import Finders
from watchman.sources.socket.listener import Listener
from watchman.store.ledger import Ledger
from watchman.store.spool import open_ledger

logger = logging.getLogger(__name__)

#: Options that cannot change while the daemon runs.
FIXED = ("spool", "socket")

#: Settings by which the finders look, and which they cannot change while they do.
LOOKED_AT = ("watches", "proftpd", "moves")


class Reload:
    """Whom a reload concerns. Runs in the daemon's main thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        ledgers: Mapping[str, Ledger],
        dispatcher: Dispatcher,
        publishers: Publishers,
        movers: Movers,
        finders: Finders,
        listener: Listener,
        control: Control,
    ) -> None:
        self.settings = settings
        self._ledgers = ledgers
        self._dispatcher = dispatcher
        self._publishers = publishers
        self._movers = movers
        self._finders = finders
        self._listener = listener
        self._control = control

    def run(self) -> list[str]:
        """Read the INI file and go over to it; return what changed.

        Raises WatchmanError or OSError, and then everything stays as it was; but InotifyUnavailable
        where nothing is watched any more.
        """
        new = inifile.load(self.settings.file)
        for option in FIXED:
            before, after = getattr(self.settings, option), getattr(new, option)
            if before != after:
                raise WatchmanError(
                    f"{option} changed from {before} to {after}: that takes a restart of watchman"
                )
        changed = list(differences(self.settings, new))
        if changed:
            self._go_over(new)
        logger.info("Reloaded %r: %s.", new.file, ", ".join(changed) or "nothing changed")
        return changed

    def _go_over(self, new: Settings) -> None:
        # First whatever may fail.
        with contextlib.ExitStack() as failed:
            publishers = self._publishers.prepare(new.brokers)
            movers = self._movers.prepare(moves_of(new))
            ledgers = self._open_ledgers(new, failed)
            log_to(new)
            failed.pop_all()
        if new.exposed:
            logger.warning("%s.", new.warning())
        old = self.settings
        look_anew = any(getattr(old, name) != getattr(new, name) for name in LOOKED_AT)
        if look_anew:
            self._finders.stop()
            self._finders.join()
        self._dispatcher.change(new, ledgers)
        self._publishers.change(publishers)
        self._movers.change(movers)
        self._listener.admit(new.admins)
        self._control.settings = new
        self.settings, self._ledgers = new, ledgers
        if look_anew:
            self._finders.look(new, excluded=self._dispatcher.rules.excluded, ledgers=ledgers)
            self._finders.start()

    def _open_ledgers(self, new: Settings, failed: contextlib.ExitStack) -> dict[str, Ledger]:
        """Open those of new watches. A watch is known by its path: its name may change."""
        by_path = {watch.path: self._ledgers[name] for name, watch in self.settings.watches.items()}
        ledgers = {}
        for name, watch in new.watches.items():
            if watch.path not in by_path:
                by_path[watch.path] = open_ledger(new, watch)
                failed.callback(by_path[watch.path].close)
            ledgers[name] = by_path[watch.path]
        return ledgers
