"""Requests to a node and its answers, and their format on a local socket. Standard library only.

    message   magic 4s | header's length u32 | payload's length u64 | header (JSON, UTF-8) | payload

Lengths are little-endian and compared with the reader's limits before anything is allocated. The sender of a request keeps
the connection open until it has the answer: closing it withdraws the request.
"""

from __future__ import annotations

import json
import math
import re
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lora_a2.node.refusals import Note, Reason, Refused

Kind = Literal["profile", "train", "evaluate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PERSONAL = "_personal"
"""Ends the names of figures of a client's own model."""

_MAGIC = b"LoN2"
_PREFIX = struct.Struct("<4sIQ")
PREFIX_SIZE = _PREFIX.size
_HEADER_LIMIT = 1 << 20
_MOST_PARTITIONS = 1_000_000
PIECE = 1 << 20
"""Bytes read at once."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to a node.

    Attributes:
        kind: whether the node states its profile, trains or evaluates.
        run_id: names the run, and stays the same when it is resumed.
        run: the run's configuration, by kebab-case key.
        labels: the class names that all nodes share.
        partition, num_partitions: which of how many clients the node is.
        last_round: the last round in which this client's reply was accepted; 0: none.
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
    """What leaves a node: the encoded upload, if any, and the stated metrics and notes, nothing else."""

    metrics: Mapping[str, int | float | str]
    payload: bytes = b""
    notes: tuple[str, ...] = field(default=())


_SUMS = ("num_examples", "num_correct", "loss_sum", "learnt_tokens", "correct_tokens")
"""What the tasks share of an evaluation (`Task.shared`), without importing them."""
_NUMBERS = frozenset(
    {
        *("partition", "num_partitions", "num_test_examples", "train_seconds"),
        *(name + ending for name in _SUMS for ending in ("", PERSONAL)),
    }
)
_TEXT_NUMBERS = re.compile(r"(examples|exact_matches|rouge_l|bleu|chrf)\.\d{1,2}(" + PERSONAL + ")?")
"""Counts of what a model wrote, of which scores of texts are made."""
_DIGESTS = frozenset({"layout", "fingerprint"})


def outgoing(answer: Answer) -> Answer:
    """`answer`, if it holds only known numbers, digests and notes.

    Raises:
        Refused: it holds anything else.
    """
    for name, value in answer.metrics.items():
        known = _is_digest(value) if name in _DIGESTS else _is_stated(name) and _is_number(value)
        if not known:
            raise Refused(Reason.FAILED, f"An answer may not state {name} = {value!r}.")
    if unknown := set(answer.notes) - set(Note):
        raise Refused(Reason.FAILED, f"An answer may not say {sorted(unknown)}.")
    return answer


def _is_stated(name: str) -> bool:
    return name in _NUMBERS or _TEXT_NUMBERS.fullmatch(name) is not None


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 128 and set(value) <= set("0123456789abcdef")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def ask(path: Path, request: Request, timeout: float, limit: int) -> Answer:
    """The answer of the worker that listens at `path`.

    Raises:
        Refused: there is no worker, no answer within `timeout` seconds, an answer of more than `limit` bytes, or a refusal.
    """
    fields = {name: getattr(request, name) for name in _FIELDS}
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            _connect(connection, path, deadline)
            with suppress(BrokenPipeError):  # a worker that refuses what it has read so far says why
                connection.settimeout(_left(deadline))
                send(connection, fields, request.payload)
            header, payload = receive(connection, limit, _left(deadline))
    except TimeoutError:
        raise Refused(Reason.LATE, f"The worker at {path} did not answer within {timeout:.0f} s.") from None
    except OSError as error:
        reason = error.strerror or error
        raise Refused(Reason.WORKER, f"No worker answers at {path} ({reason}): start it with 'lora-a2 node'.") from None
    if "refused" in header:
        found = Reason.__members__.get(str(header["refused"]), Reason.FAILED)
        raise Refused(found, f"The worker at {path} refuses: {found.value} (The worker's own log has the details.)")
    metrics, notes = header.get("metrics"), header.get("notes", [])
    if not isinstance(metrics, dict) or not isinstance(notes, list):
        raise Refused(Reason.RELEASE, f"The worker at {path} sent no valid answer: run the same release of lora-a2.")
    return outgoing(Answer(metrics, payload, tuple(map(str, notes))))


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    """Connects, once there is room in the worker's queue."""
    while True:
        connection.settimeout(_left(deadline))
        try:
            return connection.connect(str(path))
        except BlockingIOError:
            time.sleep(min(0.05, _left(deadline)))


def _left(deadline: float) -> float:
    """The seconds until `deadline`.

    Raises:
        TimeoutError: it has passed.
    """
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


_FIELDS = ("kind", "run_id", "run", "labels", "partition", "num_partitions", "last_round")


def read_request(header: Mapping[str, Any], payload: bytes) -> Request:
    """The request in a received message.

    Raises:
        Refused: a field is missing, unknown, or of another type.
    """
    types = {"kind": str, "run_id": str, "run": dict, "labels": list}
    for name in _FIELDS:
        kind = types.get(name, int)
        if not isinstance(header.get(name), kind) or isinstance(header[name], bool):
            raise _invalid(f"The request has {name} = {header.get(name)!r}; expected {kind.__name__}.")
    if header["kind"] not in KINDS or header.keys() - set(_FIELDS):
        raise _invalid(f"The request is {header['kind']!r} with {sorted(header)}; run the same release of lora-a2.")
    if not all(isinstance(label, str) for label in header["labels"]):
        raise _invalid("The request has labels that are not texts.")
    if not _plain_name(header["run_id"]):
        raise _invalid(f"The run id {header['run_id']!r} has characters other than letters, digits and hyphens.")
    if not 0 <= header["partition"] < header["num_partitions"] <= _MOST_PARTITIONS:
        raise _invalid(f"There is no partition {header['partition']} of {header['num_partitions']}.")
    values = {**header, "labels": tuple(header["labels"])}
    return Request(**values, payload=payload)


def _invalid(detail: str) -> Refused:
    return Refused(Reason.RELEASE, detail)


def _plain_name(name: str) -> bool:
    return 0 < len(name) <= 64 and name.isascii() and name.replace("-", "").isalnum()


def packed(header: Mapping[str, Any], payload_size: int) -> bytes:
    """A message up to its payload."""
    text = json.dumps(header).encode()
    return _PREFIX.pack(_MAGIC, len(text), payload_size) + text


def sizes(prefix: bytes, limit: int) -> tuple[int, int]:
    """The lengths of header and payload, from a message's first `PREFIX_SIZE` bytes.

    Raises:
        Refused: it is not a message, or its payload has more than `limit` bytes.
    """
    magic, header_size, payload_size = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise _invalid(f"The message starts with {magic!r}; expected {_MAGIC!r}.")
    if header_size > _HEADER_LIMIT or payload_size > limit:
        raise Refused(
            Reason.POLICY,
            f"The message has {header_size} + {payload_size} bytes; at most {_HEADER_LIMIT} + {limit} are accepted.",
        )
    return header_size, payload_size


def parsed(text: bytes) -> dict[str, Any]:
    """A message's header.

    Raises:
        Refused: it is not a JSON object.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _invalid("The message's header is not JSON.") from None
    if not isinstance(header, dict):
        raise _invalid("The message's header is not a JSON object.")
    return header


def send(connection: socket.socket, header: Mapping[str, Any], payload: bytes) -> None:
    """Sends one message, within the connection's timeout."""
    connection.sendall(packed(header, len(payload)))
    if payload:  # without one the other side may have answered and gone, and even an empty send would fail
        connection.sendall(payload)


def receive(connection: socket.socket, limit: int, timeout: float) -> tuple[dict[str, Any], bytes]:
    """Receives one message with a payload of at most `limit` bytes, all of it within `timeout` seconds.

    Raises:
        Refused: it is not a message, is too large, or is cut off.
        TimeoutError: it is not complete in time, however steadily it comes.
    """
    deadline = time.monotonic() + timeout
    header_size, payload_size = sizes(_exactly(connection, PREFIX_SIZE, deadline), limit)
    header = parsed(_exactly(connection, header_size, deadline))
    return header, _exactly(connection, payload_size, deadline)


def _exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    """The next `size` bytes; memory grows with the bytes received, not with the size announced."""
    data = bytearray()
    while len(data) < size:
        connection.settimeout(_left(deadline))
        piece = connection.recv(min(PIECE, size - len(data)))
        if not piece:
            raise cut_off(len(data), size)
        data += piece
    return bytes(data)


def cut_off(found: int, size: int) -> Refused:
    """The error for a message that ends too early."""
    return _invalid(f"The message ends after {found} of {size} bytes.")
