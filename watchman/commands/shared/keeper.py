"""The keeper: the program that keeps the daemon running here, and so the command that starts it."""

import os
import shlex

from watchman.config.locations import DEFAULT_FILE

SYSTEMD = "systemctl start watchman"
SUPERVISOR = "supervisorctl start watchman"

#: The cure that the daemon names if it must be restarted. The daemon does not know its keeper, so
#: `shell.spelled` replaces this by the keeper's command.
RESTART = "restart watchman"

#: Files, below /, that make a keeper start the daemon, and the keeper's command for it.
KEEPERS = {
    "etc/systemd/system/watchman.service": SYSTEMD,
    "usr/local/lib/systemd/system/watchman.service": SYSTEMD,
    "usr/lib/systemd/system/watchman.service": SYSTEMD,
    "etc/supervisor/conf.d/watchman.conf": SUPERVISOR,
    "etc/supervisord.d/watchman.ini": SUPERVISOR,
}


def how_to_start(file: str) -> str:
    """Return the command that starts the daemon with an INI file; "" if there is none."""
    run = f"watchman -c {shlex.quote(file)} run" if os.path.exists(file) else ""
    return start_kept(file) or run


def start_kept(file: str, root: str = "/") -> str:
    """Return the keeper's command that starts the daemon; "" if there is no keeper."""
    for place, command in KEEPERS.items():
        if _starts_with(os.path.join(root, place), file):
            return command
    return ""


def _starts_with(place: str, file: str) -> bool:
    """Return whether a keeper's file exists, and starts the daemon with that INI file."""
    try:
        with open(place, encoding="utf-8", errors="replace") as text:
            return file == DEFAULT_FILE or file in text.read()
    except PermissionError:  # closed to us, because it may have passwords in it
        return file == DEFAULT_FILE
    except OSError:
        return False
