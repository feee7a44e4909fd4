"""Where the log goes, and its form."""

import json
import logging
import logging.handlers
import sys

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


def log_to(settings: Settings) -> None:
    """Have everything logged as the INI file says; OSError leaves it as it was."""
    handler: logging.Handler
    if settings.log_file:
        # It looks whether logrotate has renamed the file, and opens a new one.
        handler = logging.handlers.WatchedFileHandler(settings.log_file, errors="backslashreplace")
    else:
        handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("watchman").setLevel(settings.log_level)
