"""The node's own log: the only place with the details of requests and errors."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from lora_a2.system.text import plain

log = logging.getLogger("lora_a2.node")

_MOST_CHARACTERS = 2000


class PlainFormatter(logging.Formatter):
    """Escapes invisible characters and indents all lines of a record but the first: parts of it come from a server, which must
    neither forge lines nor move the reader's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines, each cut to a maximum length."""
        return "\n  ".join(plain(line, _MOST_CHARACTERS) for line in super().format(record).splitlines())


class JsonFormatter(logging.Formatter):
    """A JSON object in a line: time (ISO 8601, UTC), level, logger, message, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, its message cut to a maximum length; what is not ASCII is escaped, so that no line can be forged."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage()[:_MOST_CHARACTERS],
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values)


_FORMATTERS = {"text": PlainFormatter("%(asctime)s %(levelname)s %(message)s"), "json": JsonFormatter()}


def start_log(log_format: str = "text") -> None:
    """Writes the log to standard error, and that of the libraries too; `log_format` is "text" or "json"."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATTERS[log_format])
    logging.basicConfig(level=logging.INFO, handlers=[handler])
