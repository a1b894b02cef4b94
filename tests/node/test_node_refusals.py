"""Whatever goes wrong on a node, only one of a few fixed sentences leaves it; the node's log has the details."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import LABELS, save_data, save_model
from lora_a2 import errors
from lora_a2.errors import DataError
from lora_a2.node.logs import PlainFormatter
from lora_a2.node.own_data import OwnData
from lora_a2.node.participant import Participant, own_fields
from lora_a2.node.protocol import Answer, Request, packed, receive
from lora_a2.node.refusals import Reason, Refused, reason_of
from lora_a2.node.worker import reply_to
from node_requests import Server, participant, request, run_of, working

SECRET = "HIVpositive"
"""Occurs in every path, column, label and text of the node."""


@dataclass(frozen=True)
class Node:
    """The files of a node."""

    folder: Path
    data: str
    model: str

    def participant(self, store: str = "store", **policy: Any) -> Participant:
        """The participant of a correct node."""
        return participant(self.data, self.model, self.folder / store, **policy)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A node with only secret names, except for the labels that the federation shares."""
    folder = tmp_path_factory.mktemp(SECRET)
    data = save_data(folder / f"{SECRET}.csv", 20)
    head, *rows = data.read_text().splitlines()
    data.write_text("\n".join([head, *(row.replace(",", f" {SECRET},") for row in rows)]))
    return Node(folder, str(data), str(save_model(folder / SECRET)))


Case = Callable[[Node], tuple[Callable[[Request, Any], Answer], Request]]
"""A node → its answer function, and the request that must be refused."""


def profile_of(node: Node, **changes: Any) -> Request:
    return request(run=run_of(node.model), **changes)


def with_data(data: str, **options: Any) -> Case:
    """A node with other data."""

    def case(node: Node) -> Any:
        own = OwnData(str(node.folder / data), **options)
        return Participant(own, node.folder, own=own_fields(node.model, "cpu", None)).answer, profile_of(node)

    return case


def written(name: str, content: bytes, **options: Any) -> Case:
    """A node whose data file has this content."""

    def case(node: Node) -> Any:
        (node.folder / name).write_bytes(content)
        return with_data(name, **options)(node)

    return case


def asked(**changes: Any) -> Case:
    """A correct node, asked for its profile with these changes."""
    return lambda node: (node.participant().answer, profile_of(node, **changes))


def configured(**options: Any) -> Case:
    """A correct node, asked for its profile in a run with these options."""
    return lambda node: (node.participant().answer, replace(profile_of(node), run={**run_of(node.model), **options}))


def policy(kind: str = "profile", run: dict[str, Any] | None = None, **allowed: Any) -> Case:
    """A node with a policy."""
    return lambda node: (node.participant(**allowed).answer, Server(node.model, **(run or {})).asks(kind))


def other_model(make: Callable[[Path], object]) -> Case:
    """A node whose model is something else."""

    def case(node: Node) -> Any:
        path = node.folder / f"{SECRET}-other-model"
        make(path)
        own = own_fields(str(path), "cpu", None)
        return Participant(OwnData(node.data), node.folder, own=own).answer, profile_of(node)

    return case


def download(change: Callable[[bytes], bytes], **changes: Any) -> Case:
    """A correct node that is sent other bytes."""

    def case(node: Node) -> Any:
        sent = Server(node.model).asks("train", **changes)
        return node.participant().answer, replace(sent, payload=change(sent.payload))

    return case


def no_store(node: Node) -> Any:
    """The store cannot be written."""
    (node.folder / f"{SECRET}-file").write_text("in the way")
    return node.participant(store=f"{SECRET}-file").answer, Server(node.model, method="fedsa-lora").asks("train")


def lost_base(node: Node) -> Any:
    """The download builds on base weights that the node does not have."""
    server = Server(node.model, method="flora")
    name, shape = server.federation.layout.base[0]
    moved = {name: np.ones(shape, np.float32)}
    server.state = replace(server.state, server_round=1, base_delta=moved, base_update=moved, held={0: 1})
    return node.participant().answer, server.asks("train", last_round=1)


def raises(error: Exception) -> Case:
    """Something unforeseen."""

    def case(node: Node) -> Any:
        def load(config: Any, asked: Request, model: Any) -> Any:
            raise error

        own = own_fields(node.model, "cpu", None)
        return Participant(load, node.folder, own=own).answer, profile_of(node)

    return case


def says_more(node: Node) -> Any:
    """An answer that names something."""
    return lambda asked, gone: Answer({"num_examples": 3, "layout": SECRET}), profile_of(node)


CASES: dict[str, tuple[Case, Reason, str]] = {
    "no file": (with_data("none.csv"), Reason.DATA, "There is no data set"),
    "a folder": (with_data("."), Reason.DATA, "has no train file"),
    "no such column": (with_data(f"{SECRET}.csv", label_column=f"{SECRET}-column"), Reason.DATA, "has no column"),
    "no usual column": (
        written("columns.csv", f"{SECRET}-a,{SECRET}-b\nx,y\n".encode()),
        Reason.DATA,
        "cannot be told from its columns",
    ),
    "an empty file": (written("empty.csv", b""), Reason.DATA, "the file is empty"),
    "no text at all": (written("binary.csv", b"\xff\xfe\x00\x01" * 9), Reason.DATA, "cannot be read as CSV"),
    "broken json": (written("broken.jsonl", b'{"text": "' + SECRET.encode()), Reason.DATA, "cannot be read as JSONL"),
    "a row without a label": (
        written("row.csv", f"text,label\n{SECRET},late\n{SECRET},\n".encode()),
        Reason.DATA,
        "Row 2 of .* has no label",
    ),
    "an unknown label": (
        written("label.csv", f"text,label\na,late\nb,{SECRET}\n".encode()),
        Reason.DATA,
        "'HIVpositive' .row 2.",
    ),
    "other labels asked for": (asked(labels=("late", "lost")), Reason.DATA, "that are not among the 2 known ones"),
    "no model": (other_model(lambda path: None), Reason.MODEL, "there is no such folder"),
    "an empty model": (other_model(lambda path: path.mkdir(exist_ok=True)), Reason.MODEL, "no usable config.json"),
    "an unknown key": (configured(shell=f"{SECRET}"), Reason.CONFIG, "Unknown key 'shell'"),
    "a wrong value": (configured(r=f"{SECRET}"), Reason.CONFIG, "valid integer"),
    "an unknown method": (configured(method=f"{SECRET}"), Reason.CONFIG, "Unknown method"),
    "noise": (configured(**{"laplace-epsilon": 1.0}), Reason.CONFIG, "it would hide nothing"),
    "no such module": (configured(**{"target-modules": ["nothing"]}), Reason.MODEL, "matches no linear layer"),
    "noise for a download": (download(lambda data: bytes(len(data))), Reason.DOWNLOAD, "starts with"),
    "no download": (download(lambda data: b""), Reason.DOWNLOAD, "has 0 bytes"),
    "half a download": (download(lambda data: data[: len(data) // 2]), Reason.DOWNLOAD, "a frame has at least"),
    "a flipped bit": (
        download(lambda data: data[:70] + bytes([data[70] ^ 1]) + data[71:]),
        Reason.DOWNLOAD,
        "checksum",
    ),
    "another client's download": (
        download(lambda data: data, partition=1),
        Reason.DOWNLOAD,
        "is for client 0; this is 1",
    ),
    "a store that is none": (no_store, Reason.FAILED, "failed: .Errno 20. Not a directory"),
    "a lost state": (lost_base, Reason.LOST, "builds on round 1"),
    "too many epochs": (policy(run={"local-epochs": 100_000}), Reason.POLICY, "max-local-epochs = 100"),
    "another method": (policy(methods=["ffa-lora"]), Reason.POLICY, "methods = \\['ffa-lora'\\]"),
    "other weights": (policy(model_fingerprints=["00ff"]), Reason.POLICY, "model-fingerprints = "),
    "an evaluation": (policy("evaluate", evaluation=False), Reason.POLICY, "evaluation = false"),
    "other labels than allowed": (policy(labels=[SECRET, "late"]), Reason.POLICY, "labels = "),
    "more than numbers": (says_more, Reason.FAILED, "may not state layout"),
    **{
        f"raises {type(error).__name__}": (raises(error), Reason.FAILED, f"failed(.|\n)*{SECRET}")
        for error in (
            *(kind(f"row 7 of /srv/{SECRET}") for kind in (ValueError, KeyError, TypeError, RuntimeError, MemoryError)),
            *(RecursionError(SECRET), OSError(13, SECRET, f"/srv/{SECRET}"), TimeoutError(SECRET), EOFError(SECRET)),
            *(UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), ConnectionResetError(SECRET)),
        )
    },
}


def told(path: Path, message: bytes) -> bytes:
    """Every byte that comes back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(message)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def message_of(asked: Request) -> bytes:
    fields = {name: value for name, value in vars(asked).items() if name != "payload"}
    return packed(fields, len(asked.payload)) + asked.payload


@pytest.fixture
def own_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "lora_a2.node"):
        yield caplog


@pytest.mark.parametrize("name", CASES)
def test_a_fixed_sentence_leaves_the_node_and_its_log_has_the_rest(
    name: str, node: Node, tmp_path: Path, own_log: pytest.LogCaptureFixture
) -> None:
    case, reason, logged = CASES[name]
    answer, sent = case(node)
    with working(tmp_path / "private" / "s.sock", answer):
        heard = told(tmp_path / "private" / "s.sock", message_of(sent))
    assert heard == packed({"refused": reason.name}, 0)
    assert SECRET not in heard.decode()
    assert re.search(logged, own_log.text)


FRAME = packed({}, 0)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Reason.RELEASE),
        (FRAME, Reason.RELEASE),
        (packed({**json.loads(message_of(request())[16:]), "shell": SECRET}, 0), Reason.RELEASE),
        (packed({**json.loads(message_of(request())[16:]), "kind": SECRET}, 0), Reason.RELEASE),
        (packed({**json.loads(message_of(request())[16:]), "run_id": f"../{SECRET}"}, 0), Reason.RELEASE),
        (packed({}, 10**15), Reason.POLICY),
    ],
)
def test_what_is_no_request_is_answered_by_a_fixed_sentence_too(
    message: bytes, reason: Reason, tmp_path: Path, own_log: pytest.LogCaptureFixture
) -> None:
    with working(tmp_path / "private" / "s.sock", lambda asked, gone: Answer({})):
        assert told(tmp_path / "private" / "s.sock", message) == packed({"refused": reason.name}, 0)
    assert "refused" in own_log.text


def every_error() -> list[type[Exception]]:
    """Every exception that can be created from a text: the project's, Python's, and those of loaded libraries."""
    found, todo = set(), [Exception]
    while todo:
        kind = todo.pop()
        if kind not in found:
            found.add(kind)
            todo += kind.__subclasses__()
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


def test_no_kind_of_error_says_anything_else(own_log: pytest.LogCaptureFixture) -> None:
    tried = 0
    for kind in every_error():
        try:
            error = kind(SECRET)
        except Exception:
            continue

        def answer(asked: Request, gone: Any, error: Exception = error) -> Answer:
            raise error

        assert isinstance(reply_to(request(), answer, lambda: False), Reason)
        tried += 1
    assert tried > 100


def test_every_reason_of_the_project_s_own_errors_is_decided() -> None:
    """A new error of the project is `FAILED` unless it is listed."""
    decided = {kind.__name__: reason_of(kind("x")) for kind in vars(errors).values() if isinstance(kind, type)}
    assert decided == {
        "LoraA2Error": Reason.FAILED,
        "LoraA2Warning": Reason.FAILED,
        "ConfigError": Reason.CONFIG,
        "DataError": Reason.DATA,
        "ModelError": Reason.MODEL,
        "CodecError": Reason.DOWNLOAD,
        "LostState": Reason.LOST,
        "ReplyError": Reason.RELEASE,
        "RunError": Reason.FAILED,
        "NodeError": Reason.FAILED,
    }
    assert reason_of(Refused(Reason.BUSY, SECRET)) is Reason.BUSY
    assert reason_of(type("Subclass", (DataError,), {})("x")) is Reason.DATA


def test_the_sentences_have_no_place_for_anything() -> None:
    assert len(Reason) > 8
    for reason in Reason:
        assert reason.isascii()
        assert not set(reason.replace("lora-a2", "")) & set('0123456789%{}<>/\\"')
        assert reason.endswith(".")
        assert len(reason) < 120


def test_the_documentation_has_every_sentence() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "node-policy.md").read_text()
    assert re.findall(r"^\| ([A-Z].*?\.) \|", page, re.MULTILINE) == list(Reason)


@given(st.text())
def test_a_line_of_the_log_is_one_line_of_visible_characters(text: str) -> None:
    record = logging.LogRecord("n", logging.ERROR, "p", 1, "The run has %s", (text,), None)
    first, *more = PlainFormatter("%(message)s").format(record).split("\n")
    assert first.startswith("The run has ")
    assert all(line.startswith("  ") for line in more)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for line in (first, *more) for c in line)


def test_a_traceback_in_the_log_is_indented_and_cut() -> None:
    try:
        raise ValueError("\x1b[2J\nforged INFO line" + "x" * 10**6)
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, "p", 1, "It failed.", (), sys.exc_info())
    said = PlainFormatter("%(message)s").format(record)
    assert "\x1b" not in said
    assert "\n  forged INFO line" in said
    assert len(said) < 10_000


def test_an_answer_reads_back(node: Node, tmp_path: Path) -> None:
    """The channel of the refusals also carries answers."""
    path = tmp_path / "private" / "s.sock"
    with working(path, node.participant().answer), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(message_of(profile_of(node)))
        header, payload = receive(connection, 0, 60)
    assert header["metrics"]["num_examples"] == 16
    assert set(header) == {"metrics", "notes"}
    assert payload == b""
    assert LABELS
