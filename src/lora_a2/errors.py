"""Every error that lora-a2 raises on purpose.

    LoraA2Error
     ├── ConfigError   an option or a configuration file is wrong
     ├── DataError     the data set cannot be read or used
     ├── ModelError    the model cannot be loaded or has nothing to adapt
     ├── CodecError    bytes that are not a valid message
     ├── ReplyError    a valid message that must not touch the server's state
     ├── RunError      a run directory that is damaged, taken or missing
     └── NodeError     a node's worker is missing, or refuses what it is asked

A message says what was given, what was expected and what to do. The command line prints it in one line and
exits with 2.
"""

from __future__ import annotations


class LoraA2Error(Exception):
    """Base of every error below; catch it to catch them all."""


class LoraA2Warning(UserWarning):
    """What a user should know of and no observer, log or result can tell; commands print it as a line."""


class ConfigError(LoraA2Error):
    """An option or a configuration file is wrong."""


class DataError(LoraA2Error):
    """The data set cannot be read or used."""


class ModelError(LoraA2Error):
    """The model cannot be loaded or has nothing to adapt."""


class CodecError(LoraA2Error):
    """Bytes that are not a valid message of this federation."""


class LostState(CodecError):
    """A client does not hold what a download builds on; it is sent everything."""


class ReplyError(LoraA2Error):
    """A well-formed upload that must not touch the server's state, or a round with too few usable ones.

    `lost`: clients of such a round that do not hold what their downloads built on.
    """

    lost: frozenset[int] = frozenset()


class RunError(LoraA2Error):
    """A run directory that is damaged, already taken or missing."""


class NodeError(LoraA2Error):
    """A node's worker is missing, or refuses what it is asked."""
