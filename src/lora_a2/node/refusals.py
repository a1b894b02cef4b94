"""The fixed sentences that a node sends about errors and about itself. Standard library only.

The text of an error may name data, labels, paths or the configuration. So it stays in the node's log, and the server gets
one of the `Reason`s. There is no other way out: the worker sends only the name of a reason, and the ClientApp looks up its
sentence here.
"""

from __future__ import annotations

from enum import StrEnum

from lora_a2.errors import CodecError, ConfigError, DataError, LostState, ModelError, NodeError, ReplyError


class Reason(StrEnum):
    """Why a node refuses, as the server is told."""

    RELEASE = "The node does not understand the request: run the same release of lora-a2 at both ends."
    POLICY = "The node's policy does not allow the request; its operator can tell why."
    CONFIG = "The run's configuration is not valid on the node; the node's log says why."
    DATA = "The node's data cannot be used for this run; the node's log says why."
    MODEL = "The node cannot use its model for this run; the node's log says why."
    DOWNLOAD = "The download is not valid for the node's model and this run; the node's log says why."
    LOST = "The node does not hold what the download builds on; the next download carries everything."
    SETUP = "The node is not set up for this app; its log says what is missing."
    WORKER = "No worker answers on the node; the node's log says more."
    LATE = "The node's worker did not answer in time."
    BUSY = "The node's worker has too many connections."
    FAILED = "The node failed; its log says why."


class Note(StrEnum):
    """A sentence that a node adds to its answer."""

    PRIVATE_LOST = "The private factors were lost; they start anew."


class Refused(NodeError):
    """A request that a node refuses. The text is for the node's own log, `reason` for the server."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (ConfigError, Reason.CONFIG),
    (DataError, Reason.DATA),
    (ModelError, Reason.MODEL),
    (LostState, Reason.LOST),
    (CodecError, Reason.DOWNLOAD),
    (ReplyError, Reason.RELEASE),  # records of another shape
)


def reason_of(error: Exception) -> Reason:
    """The reason that the server is told for an error; `Reason.FAILED` unless the table above allows more."""
    if isinstance(error, Refused):
        return error.reason
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.FAILED)
