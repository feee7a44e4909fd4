"""Finds the INI file and the daemon's socket. A command needs no more to ask the daemon."""

import configparser
import contextlib
import os

from watchman.errors import ConfigError

DEFAULT_FILE = "/etc/watchman/watchman.ini"
DEFAULT_SOCKET = "/run/watchman/watchman.sock"

#: Most characters of an INI file that are read to find the socket.
_LIMIT = 1 << 20


def find(option: str | None) -> str:
    """Return the INI file to use: `-c FILE`, $WATCHMAN_CONFIG, or the one in /etc.

    Never one in the current directory, which may be an FTP user's.
    """
    return option or os.environ.get("WATCHMAN_CONFIG") or DEFAULT_FILE


def find_socket(option: str | None, config: str | None) -> str:
    """Return the socket: `--socket PATH`, $WATCHMAN_SOCKET, the INI file's, or the one in /run.

    It does not matter who owns the INI file, or what else is wrong in it. Raises ConfigError if
    an INI file was named and cannot be read: the socket in /run may be that of another daemon.
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
    """Whether permissions keep us from reading a file. It may not even exist."""
    try:
        _read(file)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _read(file: str) -> str:
    # Without O_NONBLOCK, to open a FIFO waits until somebody opens it for writing, see fifo(7).
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, encoding="utf-8-sig", errors="surrogateescape") as text:
        return text.read(_LIMIT)


def _socket_in(text: str) -> str:
    """Return the option `socket` of `[watchman]`, "" if there is none. Skips wrong lines."""
    parser = configparser.RawConfigParser(strict=False, default_section="")
    _, _, sections = f"\n{text}".partition("\n[")  # configparser stops at lines before a section
    with contextlib.suppress(configparser.Error):  # raised at the end, about lines that it ignored
        parser.read_string(f"[{sections}")
    return parser.get("watchman", "socket", fallback="")
