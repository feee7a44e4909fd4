"""Where the INI file and the daemon's socket are: all that who asks the daemon must know."""

import configparser
import contextlib
import os

from watchman.errors import ConfigError

DEFAULT_FILE = "/etc/watchman/watchman.ini"
DEFAULT_SOCKET = "/run/watchman/watchman.sock"

#: Characters of an INI file that are looked through for the socket.
_LIMIT = 1 << 20


def find(option: str | None) -> str:
    """The INI file to use: `-c FILE`, $WATCHMAN_CONFIG, or the one in /etc.

    Never one of the current directory, which may be an FTP user's.
    """
    return option or os.environ.get("WATCHMAN_CONFIG") or DEFAULT_FILE


def find_socket(option: str | None, config: str | None) -> str:
    """The daemon's socket: `--socket PATH`, $WATCHMAN_SOCKET, the INI file's, or the one in /run.

    Whatever else is wrong in the INI file does not matter here, nor who owns it. ConfigError if
    it was asked for by name and cannot be read: in /run may be another daemon than was meant.
    """
    if named := option or os.environ.get("WATCHMAN_SOCKET"):
        return os.path.abspath(named)
    file = os.path.abspath(find(config))
    try:
        socket = _socket_in(_read(file))
    except OSError as error:
        if file != DEFAULT_FILE:
            what = f"{file}: cannot be read: {error.strerror}"
            raise ConfigError([f"{what}; name its socket by --socket PATH"]) from error
        socket = ""
    if not socket or "\0" in socket:
        return DEFAULT_SOCKET
    return os.path.normpath(os.path.join(os.path.dirname(file), socket))


def is_closed(file: str) -> bool:
    """Whether a file may be there, and may not be read."""
    try:
        _read(file)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _read(file: str) -> str:
    # O_NONBLOCK, for a FIFO would make us wait until somebody writes.
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, encoding="utf-8-sig", errors="surrogateescape") as text:
        return text.read(_LIMIT)


def _socket_in(text: str) -> str:
    """The option `socket` of `[watchman]`, or nothing, in a text that may be wrong elsewhere."""
    parser = configparser.RawConfigParser(strict=False, default_section="")
    _, _, sections = f"\n{text}".partition("\n[")  # configparser ends at what stands before them
    with contextlib.suppress(configparser.Error):  # it tells of lines that were passed over
        parser.read_string(f"[{sections}")
    return parser.get("watchman", "socket", fallback="")
