"""What keeps the daemon running on this machine, and so how it is started."""

import os
import shlex

from watchman.config.locations import DEFAULT_FILE

SYSTEMD = "systemctl start watchman"
SUPERVISOR = "supervisorctl start watchman"

#: What a daemon, which does not know its keeper, says for: have that restart it.
RESTART = "restart watchman"

#: Where each is told of the daemon, below /.
KEEPERS = {
    "etc/systemd/system/watchman.service": SYSTEMD,
    "usr/local/lib/systemd/system/watchman.service": SYSTEMD,
    "usr/lib/systemd/system/watchman.service": SYSTEMD,
    "etc/supervisor/conf.d/watchman.conf": SUPERVISOR,
    "etc/supervisord.d/watchman.ini": SUPERVISOR,
}


def how_to_start(file: str) -> str:
    """The command that starts the daemon with an INI file; nothing if there is no such file."""
    run = f"watchman -c {shlex.quote(file)} run" if os.path.exists(file) else ""
    return start_kept(file) or run


def start_kept(file: str, root: str = "/") -> str:
    """The command that has the daemon started by what keeps it running; nothing if none does."""
    for place, command in KEEPERS.items():
        if _starts_with(os.path.join(root, place), file):
            return command
    return ""


def _starts_with(place: str, file: str) -> bool:
    """Whether a keeper's file is there, and is about the daemon of that INI file."""
    try:
        with open(place, encoding="utf-8", errors="replace") as text:
            return file == DEFAULT_FILE or file in text.read()
    except PermissionError:  # there are passwords in it
        return file == DEFAULT_FILE
    except OSError:
        return False
