"""Requests to a node and its answers, and how they cross a local socket. Standard library only.

    message   magic 4s | header's length u32 | payload's length u64 | header (JSON, UTF-8) | payload

Lengths are little-endian and compared with the reader's limits before anything is allocated.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lora_a2.errors import NodeError

Kind = Literal["profile", "train", "evaluate"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_MAGIC = b"LoN1"
_PREFIX = struct.Struct("<4sIQ")
_HEADER_LIMIT = 1 << 20
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a node is asked.

    Attributes:
        kind: for its profile, to train, or to evaluate.
        run_id: names the run, also when it is resumed.
        run: the run's configuration, by kebab-case key.
        labels: the class names that all nodes share.
        partition, num_partitions: which of how many clients the node is.
        last_round: the last round in which this client's reply counted; 0: none.
        payload: the encoded download; empty for a profile.
    """

    kind: Kind
    run_id: str
    run: Mapping[str, Any]
    labels: tuple[str, ...]
    partition: int
    num_partitions: int
    last_round: int = 0
    payload: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What leaves a node: the encoded upload, if any, and the numbers that are stated, nothing else."""

    metrics: Mapping[str, int | float | str]
    payload: bytes = b""
    notes: tuple[str, ...] = field(default=())


def ask(path: Path, request: Request, timeout: float, limit: int) -> Answer:
    """The answer of the worker that listens at `path`.

    Raises:
        NodeError: no worker, no answer within `timeout` seconds, an answer of more than `limit` bytes, or its refusal.
    """
    fields = {name: getattr(request, name) for name in _FIELDS}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            with suppress(BrokenPipeError):  # a worker that refuses what it has seen so far says why
                send(connection, fields, request.payload)
            header, payload = receive(connection, limit)
        except TimeoutError:
            raise NodeError(f"The worker at {path} did not answer within {timeout:.0f} s.") from None
        except OSError as error:
            reason = error.strerror or error
            raise NodeError(f"No worker answers at {path} ({reason}): start it with 'lora-a2 node'.") from None
    if "error" in header:
        raise NodeError(str(header["error"]))
    metrics, notes = header.get("metrics"), header.get("notes", [])
    if not isinstance(metrics, dict) or not isinstance(notes, list):
        raise NodeError(f"The worker at {path} sent no valid answer: run the same release of lora-a2.")
    return Answer(metrics, payload, tuple(map(str, notes)))


_FIELDS = ("kind", "run_id", "run", "labels", "partition", "num_partitions", "last_round")


def read_request(header: Mapping[str, Any], payload: bytes) -> Request:
    """The request that a received message stands for.

    Raises:
        NodeError: a field is missing, unknown, or of another type.
    """
    types = {"kind": str, "run_id": str, "run": dict, "labels": list}
    for name in _FIELDS:
        kind = types.get(name, int)
        if not isinstance(header.get(name), kind) or isinstance(header[name], bool):
            raise NodeError(f"The request has {name} = {header.get(name)!r}; expected {kind.__name__}.")
    if header["kind"] not in KINDS or header.keys() - set(_FIELDS):
        raise NodeError(f"The request is {header['kind']!r} with {sorted(header)}; run the same release of lora-a2.")
    if not all(isinstance(label, str) for label in header["labels"]):
        raise NodeError("The request has labels that are no texts.")
    if not _plain_name(header["run_id"]):
        raise NodeError(f"The run id {header['run_id']!r} is not made of letters, digits and hyphens.")
    if not 0 <= header["partition"] < header["num_partitions"]:
        raise NodeError(f"There is no partition {header['partition']} of {header['num_partitions']}.")
    values = {**header, "labels": tuple(header["labels"])}
    return Request(**values, payload=payload)


def _plain_name(name: str) -> bool:
    return 0 < len(name) <= 64 and name.isascii() and name.replace("-", "").isalnum()


def send(connection: socket.socket, header: Mapping[str, Any], payload: bytes) -> None:
    """Sends one message."""
    text = json.dumps(header).encode()
    connection.sendall(_PREFIX.pack(_MAGIC, len(text), len(payload)) + text)
    if payload:  # without one the other side may have answered and gone by now, and sending even nothing would fail
        connection.sendall(payload)


def receive(connection: socket.socket, limit: int) -> tuple[dict[str, Any], bytes]:
    """Receives one message with a payload of at most `limit` bytes.

    Raises:
        NodeError: it is not a message, too large, or cut off.
    """
    magic, header_size, payload_size = _PREFIX.unpack(_exactly(connection, _PREFIX.size))
    if magic != _MAGIC:
        raise NodeError(f"The message starts with {magic!r}; expected {_MAGIC!r}.")
    if header_size > _HEADER_LIMIT or payload_size > limit:
        raise NodeError(
            f"The message has {header_size} + {payload_size} bytes; at most {_HEADER_LIMIT} + {limit} are accepted."
        )
    try:
        header = json.loads(_exactly(connection, header_size))
    except (ValueError, RecursionError):
        raise NodeError("The message's header is not JSON.") from None
    if not isinstance(header, dict):
        raise NodeError("The message's header is not a JSON object.")
    return header, _exactly(connection, payload_size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """The next `size` bytes; memory grows with what arrives, not with what is announced."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(_PIECE, size - len(data)))
        if not piece:
            raise NodeError(f"The message ends after {len(data)} of {size} bytes.")
        data += piece
    return bytes(data)
