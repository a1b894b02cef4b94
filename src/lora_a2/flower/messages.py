"""Requests and answers as Flower's records. Codec bytes travel as they are; nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, Error, Message, RecordDict

from lora_a2.errors import ReplyError
from lora_a2.node.protocol import Answer, Request, read_request
from lora_a2.node.refusals import Reason, Refused
from lora_a2.system.text import few, plain

CLIENT_APP_ERROR = 2
"""Flower's code for an error that a ClientApp reports."""

SMALL = 2**20
"""A payload of at most this many bytes travels among the fields: an array needs three more objects, each a request with 1 KB
of headers. Larger payloads are arrays, which travel in chunks, so that no message becomes too large."""

MOST_METRICS = 128
"""The most metrics that an answer may have."""

_BYTES = "lora-a2.frame"


def request_content(request: Request, state_dir: str = "") -> RecordDict:
    """The server's message for a request; `state_dir` is the folder of simulated clients' state.

    A request for a profile names no partition: the node may ask for one.
    """
    fields: dict[str, ConfigRecordValues] = {
        "kind": request.kind,
        "run-id": request.run_id,
        "run": json.dumps(dict(request.run)),
        "labels": list(request.labels),
        "last-round": request.last_round,
        "state-dir": state_dir,
    }
    if request.num_partitions:
        fields["num-partitions"] = request.num_partitions
    if request.kind != "profile":
        fields["partition"] = request.partition
    return _content("request", fields, request.payload)


def read_request_content(content: RecordDict, partition: int, num_partitions: int) -> tuple[Request, str]:
    """The request that a node received, and the folder for simulated clients' state.

    `partition` and `num_partitions` are the node's own configuration; the server's values take precedence.

    Raises:
        Refused: it is not a request of this release.
    """
    fields = content.config_records.get("request", ConfigRecord())
    try:
        run = json.loads(str(fields.get("run")))
    except ValueError:
        raise Refused(
            Reason.RELEASE, "The message is not a request of lora-a2: run the same release at both ends."
        ) from None
    total = fields.get("num-partitions", num_partitions)
    if partition >= num_partitions:  # the node's own mistake: report it as such
        total = num_partitions
    elif isinstance(total, int):
        partition = min(partition, total - 1)
    header = {
        "kind": fields.get("kind"),
        "run_id": fields.get("run-id"),
        "run": run,
        "labels": fields.get("labels"),
        "last_round": fields.get("last-round"),
        "partition": fields.get("partition", partition),
        "num_partitions": total,
    }
    return read_request(header, _payload(content, fields)), str(fields.get("state-dir", ""))


def answer_message(answer: Answer, message: Message) -> Message:
    """The reply to `message`."""
    content = _content("answer", {**answer.metrics, "notes": list(answer.notes)}, answer.payload)
    return Message(content, reply_to=message)


def error_message(reason: Reason, message: Message) -> Message:
    """The reply to `message` that says why there is no answer."""
    return Message(Error(CLIENT_APP_ERROR, str(reason)), reply_to=message)


def read_answer(message: Message, limit: int) -> Answer:
    """The answer in a reply, with a payload of at most `limit` bytes.

    Raises:
        ReplyError: an error came back, or something other than an answer.
    """
    if message.has_error():
        raise ReplyError(f"The node reports: {plain(message.error.reason) or 'an error without a reason'}")
    content = message.content
    if set(content) - {"answer", "payload"} or "answer" not in content.config_records:
        raise ReplyError(f"The reply has the records {plain(sorted(content))}; expected answer and payload.")
    size = received_bytes(message)
    if size > limit:
        raise ReplyError(f"The reply has {size} bytes; at most {limit} are accepted.")
    fields = dict(content.config_records["answer"])
    payload = _payload(content, fields)
    fields.pop("payload", None)
    notes = fields.pop("notes", [])
    if len(fields) > MOST_METRICS:
        raise ReplyError(f"The reply has {len(fields)} metrics; at most {MOST_METRICS} are accepted.")
    metrics: dict[str, int | float | str] = {}
    for name, value in fields.items():
        if not isinstance(value, int | float | str) or not _sound(value):
            raise ReplyError(
                f"The reply has {plain(name, 40)} = {plain(repr(value), 40)}; expected a finite number or a short text."
            )
        metrics[name] = value
    return Answer(metrics, payload, few(notes) if isinstance(notes, list) else ())


def _sound(value: float | str) -> bool:
    """Whether it is a text of one short line, or a number that arithmetic can take."""
    return plain(value) == value if isinstance(value, str) else abs(value) < 2**63


def received_bytes(message: Message) -> int:
    """The payload bytes that a reply carries, valid or not."""
    if message.has_error():
        return 0
    content = message.content
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    fields = (value for record in content.config_records.values() for value in record.values())
    return arrays + sum(len(value) for value in fields if isinstance(value, bytes))


def number(metrics: Mapping[str, int | float | str], name: str, low: int, high: int) -> int:
    """A whole number of an answer.

    Raises:
        ReplyError: it is missing, of another type, or out of bounds.
    """
    value = metrics.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ReplyError(
            f"The node states {name} = {plain(repr(value), 40)}; expected a whole number from {low} to {high}."
        )
    return value


def _content(name: str, fields: Mapping[str, ConfigRecordValues], payload: bytes) -> RecordDict:
    """The fields and the payload as records; a payload among the fields is recognised by its type."""
    if len(payload) > SMALL:
        array = Array("uint8", (len(payload),), _BYTES, payload)
        return RecordDict({name: ConfigRecord(dict(fields)), "payload": ArrayRecord({"frame": array})})
    return RecordDict({name: ConfigRecord({**fields, **({"payload": payload} if payload else {})})})


def _payload(content: RecordDict, fields: Mapping[str, object]) -> bytes:
    """The payload beside or among the fields; empty if there is none.

    Raises:
        ReplyError: it is not bytes.
    """
    if "payload" not in content:
        payload = fields.get("payload", b"")
        if not isinstance(payload, bytes):
            raise ReplyError("The payload is not bytes.")
        return payload
    arrays = list(content.array_records.get("payload", ArrayRecord()).values())
    if len(arrays) != 1 or arrays[0].stype != _BYTES:
        raise ReplyError(f"The payload has {len(arrays)} arrays; expected one of kind {_BYTES}.")
    return arrays[0].data
