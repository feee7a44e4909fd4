"""Where the log goes, and its form."""

import contextlib
import json
import logging
import logging.handlers
import sys
from io import TextIOWrapper
from typing import TextIO

from watchman.files import made_with
from watchman.settings import Settings


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Stderr(logging.StreamHandler[TextIO]):
    """Logs to stderr; what cannot be written there is lost."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class LogFile(logging.handlers.WatchedFileHandler):
    """Logs to a file that logrotate may rename, and gets along without it.

    The stock handler raises in whoever logs if the file cannot be opened anew, and prints two
    screens to stderr for each line that a full disk does not take.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, errors="backslashreplace")
        #: Lines lost since it cannot be written, and why the last one was.
        self._lost = 0
        self._error: OSError | None = None

    def _open(self) -> TextIOWrapper:
        name, encoding = self.baseFilename, self.encoding
        return open(name, "a", encoding=encoding, errors=self.errors, opener=made_with(0o640))

    def emit(self, record: logging.LogRecord) -> None:
        self._error = None
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)
        if self._lost and self._error is None:
            lost, self._lost = self._lost, 0
            self.emit(_record("Log is written again; %d lines were lost.", lost))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._error = error
        self._lost += 1
        if self._lost == 1:
            text = "watchman: log %s cannot be written: %s; lines are lost until it can"
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{text % (self.baseFilename, error.strerror)}\n")


def _record(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, arguments, None)


def log_to(settings: Settings) -> None:
    """Have everything logged as the INI file says; OSError leaves it as it was."""
    handler: logging.Handler
    handler = LogFile(settings.log_file) if settings.log_file else Stderr(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("watchman").setLevel(settings.log_level)
