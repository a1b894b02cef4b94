"""All that a node ever says of an error, and what it says of itself: fixed sentences. Standard library only.

An error that has seen data, labels, paths or a configuration names them. So its text stays on the node, in the log, and
one of the `Reason`s goes to the server. There is no other way out: the worker sends the name of a reason, and whoever
passes it on looks up its sentence here.
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
    DOWNLOAD = "What was sent is not valid for the node's model and this run; the node's log says why."
    LOST = "The node has lost what it kept from round to round; it is sent all of it in the next round."
    SETUP = "The node is not set up for this app; its log says what is missing."
    WORKER = "No worker answers on the node; the node's log says more."
    LATE = "The node's worker did not answer in time."
    BUSY = "The node's worker is asked too much at once."
    FAILED = "The node failed; its log says why."


class Note(StrEnum):
    """What a node says besides its answer."""

    PRIVATE_LOST = "The private factors were lost; they start anew."


class Refused(NodeError):
    """A request that a node does not answer. The text is for the node's own log, `reason` for whoever asked."""

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
    """What the server is told of an error; `Reason.FAILED` if nobody has decided that it may know more."""
    if isinstance(error, Refused):
        return error.reason
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.FAILED)
