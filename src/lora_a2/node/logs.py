"""The node's own log: the only place with the details of requests and errors."""

from __future__ import annotations

import logging

from lora_a2.system.text import plain

log = logging.getLogger("lora_a2.node")

_MOST_CHARACTERS = 2000


class PlainFormatter(logging.Formatter):
    """Escapes invisible characters and indents all lines of a record but the first: parts of it come from a server, which must
    neither forge lines nor move the reader's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines, each cut to a maximum length."""
        return "\n  ".join(plain(line, _MOST_CHARACTERS) for line in super().format(record).splitlines())


def start_log() -> None:
    """Writes the log to standard error, and that of the libraries too."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
