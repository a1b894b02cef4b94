"""The node's own log: the one place that has the details of what was asked and what went wrong."""

from __future__ import annotations

import logging

from lora_a2.system.text import plain

log = logging.getLogger("lora_a2.node")

_MOST_CHARACTERS = 2000


class PlainFormatter(logging.Formatter):
    """Visible characters only, and what follows upon a record's first line is indented: parts of it come from a server, which
    must neither forge lines nor move the reader's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines, each cut."""
        return "\n  ".join(plain(line, _MOST_CHARACTERS) for line in super().format(record).splitlines())


def start_log() -> None:
    """Writes the log to standard error, that of the libraries too."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
