"""The resident worker: its protocol, its socket, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_helpers import one_error
from federation import LABELS, save_data, save_model
from lora_a2.cli import main
from lora_a2.config.run import make_config
from lora_a2.core.tensors import Tensors
from lora_a2.core.types import Adapter, ClientState, Factors
from lora_a2.data.file_options import FileOptions
from lora_a2.errors import ConfigError, DataError, NodeError
from lora_a2.node import door
from lora_a2.node.own_data import OwnData
from lora_a2.node.participant import Participant
from lora_a2.node.protocol import PERSONAL, Answer, Request, ask, outgoing, read_request, receive, send
from lora_a2.node.refusals import Note, Reason, Refused
from lora_a2.node.store import ClientStore
from lora_a2.node.worker import listening, reply_to
from lora_a2.tasks.base import flattened
from lora_a2.tasks.causal_lm.scores import text_statistics
from lora_a2.tasks.registry import TASKS
from writers import save_writer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=8,
)


def request(**changes: Any) -> Request:
    values: dict[str, Any] = {
        "kind": "profile", "run_id": "a1", "run": {}, "labels": LABELS, "partition": 0, "num_partitions": 3
    }  # fmt: skip
    return Request(**{**values, **changes})


def fields(**changes: Any) -> dict[str, Any]:
    header: dict[str, Any] = {**vars(request()), "labels": list(LABELS)}
    del header["payload"]
    return {**header, **changes}


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        left.settimeout(5)
        right.settimeout(5)
        yield left, right


def refused(action: Any) -> Reason:
    """The reason for which `action` is refused."""
    with pytest.raises(Refused) as caught:
        action()
    return caught.value.reason


# --- protocol


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.binary(max_size=2000))
def test_a_message_arrives_as_it_was_sent(header: dict[str, Any], payload: bytes) -> None:
    with pair() as (left, right):
        send(left, header, payload)
        assert receive(right, 2000, 5) == (header, payload)


def test_whoever_sends_no_payload_does_not_need_the_other_side_any_longer() -> None:
    with pair() as (left, right):

        class Answered(socket.socket):
            """The other side answers as soon as the header is there, and goes."""

            def sendall(self, *data: Any) -> None:
                left.sendall(*data)
                right.recv(1 << 16)
                right.shutdown(socket.SHUT_RDWR)

        with Answered() as connection:
            send(connection, {}, b"")


@given(st.binary(max_size=200))
def test_whatever_arrives_is_a_message_or_a_node_error(data: bytes) -> None:
    with pair() as (left, right):
        left.sendall(data)
        left.shutdown(socket.SHUT_WR)
        with suppress(NodeError):
            receive(right, 100, 5)


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (struct.pack("<4sIQ", b"LoN2", 2, 10**15), "at most 1048576 . 100 are accepted"),
        (struct.pack("<4sIQ", b"LoN2", 2**31, 0), "are accepted"),
        (struct.pack("<4sIQ", b"HTTP", 2, 0), "starts with b'HTTP'"),
        (struct.pack("<4sIQ", b"LoN2", 2, 0) + b"[]", "not a JSON object"),
        (struct.pack("<4sIQ", b"LoN2", 2, 0) + b"\xff\xff", "not JSON"),
        (struct.pack("<4sIQ", b"LoN2", 5, 0) + b"{}", "ends after 2 of 5"),
    ],
)
def test_what_is_no_message_is_refused_before_anything_is_allocated(prefix: bytes, reason: str) -> None:
    with pair() as (left, right):
        left.sendall(prefix)
        left.shutdown(socket.SHUT_WR)
        with pytest.raises(NodeError, match=reason):
            receive(right, 100, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "shell"},
        {"kind": 3},
        {"run": "r = 4"},
        {"labels": ["a", 3]},
        {"labels": "late"},
        {"run_id": "../../etc"},
        {"run_id": ""},
        {"partition": 3},
        {"partition": -1},
        {"partition": True},
        {"last_round": "2"},
        {"command": "rm"},
    ],
)
def test_a_request_with_a_wrong_field_is_refused(changes: dict[str, Any]) -> None:
    assert read_request(fields(), b"x").payload == b"x"
    with pytest.raises(NodeError):
        read_request(fields(**changes), b"")


# --- socket


@contextmanager
def running(path: Path, answer: Any, limit: int = 1000, seconds: float = 60) -> Iterator[None]:
    """A worker; `answer` takes the request, and optionally a function that says whether its sender has gone."""
    with listening(path) as listener, door.Door(listener, limit, seconds) as entrance:
        takes_gone = answer.__code__.co_argcount > 1

        def work() -> None:
            for call in entrance.calls():
                wrapped = answer if takes_gone else lambda asked, gone: answer(asked)
                call.answer(reply_to(call.request, wrapped, call.gone.is_set))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            entrance.close()
            thread.join(10)
        assert not thread.is_alive()


def test_a_worker_answers(tmp_path: Path) -> None:
    path, seen = tmp_path / "private" / "worker.sock", []

    def answer(asked: Request) -> Answer:
        seen.append(asked)
        return Answer({"train_seconds": 1.5}, b"upload", (Note.PRIVATE_LOST,))

    asked = request(kind="train", payload=b"download", last_round=2)
    with running(path, answer):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        for _ in range(2):
            assert ask(path, asked, 5, 100) == Answer({"train_seconds": 1.5}, b"upload", (Note.PRIVATE_LOST,))
    assert seen == [asked, asked]
    assert not path.exists()


def test_too_large_a_download_and_too_large_an_upload(tmp_path: Path) -> None:
    path = tmp_path / "private" / "worker.sock"
    with running(path, lambda asked: Answer({}), limit=10):
        assert refused(lambda: ask(path, request(payload=b"x" * 11), 5, 100)) is Reason.POLICY
        assert ask(path, request(payload=b"x" * 10), 5, 100) == Answer({})
    with running(path, lambda asked: Answer({}, b"x" * 101)), pytest.raises(NodeError, match="are accepted"):
        ask(path, request(), 5, 100)


def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "peer_user", lambda connection: os.geteuid() + 1)
    path = tmp_path / "private" / "worker.sock"
    with running(path, lambda asked: Answer({})):
        assert refused(lambda: ask(path, request(), 5, 100)) is Reason.SETUP


def test_no_worker_and_no_answer(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"No worker answers at .*: start it with 'lora-a2 node'"):
        ask(tmp_path / "none.sock", request(), 5, 100)
    with listening(tmp_path / "private" / "s.sock"), pytest.raises(NodeError, match="did not answer within 0 s"):
        ask(tmp_path / "private" / "s.sock", request(), 0.05, 100)


def test_the_folder_must_be_private(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(NodeError, match=r"mode 0755 .* chmod 700"), listening(tmp_path / "open" / "s.sock"):
        pass
    with pytest.raises(NodeError, match="longer than 107"), listening(tmp_path / ("x" * 100) / "s.sock"):
        pass


def test_a_socket_left_behind_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "private" / "s.sock"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with listening(path), pytest.raises(NodeError, match="Another worker listens"), listening(path):
        pass
    path.write_text("mine")
    with pytest.raises(NodeError, match="not a socket"), listening(path):
        pass


# --- store


def held(server_round: int, value: float | None = None) -> ClientState:
    full = np.full((2, 3), server_round if value is None else value, np.float32)
    adapter = Adapter({"a": Factors(A=full, B=full.T.copy())}, 4.5, {"bias": full[0]})
    return ClientState(
        server_round,
        adapter,
        {"a.weight": full},
        bytes(range(16)),
        Tensors({("B", "a"): full + 1}),
        Tensors({("x", "y"): full}),
    )


def test_the_store_goes_back_to_the_round_before(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, "run", 4)
    assert store.before(1) == ClientState()
    for server_round in (1, 2, 3):
        store.keep(held(server_round))
    for asked, expected in ((4, 3), (3, 2)):
        assert same(ClientStore(tmp_path, "run", 4).before(asked), held(expected))
    assert len(list(store.folder.iterdir())) == 2
    assert ClientStore(tmp_path, "run", 5).before(9) == ClientState()
    assert ClientStore(tmp_path, "other", 4).before(9) == ClientState()


def test_what_a_lost_future_left_is_dropped(tmp_path: Path) -> None:
    store = ClientStore(tmp_path, "run", 0)
    for server_round in (5, 6, 3):
        store.keep(held(server_round))
    assert store.before(9).server_round == 3


def same(found: ClientState, expected: ClientState) -> bool:
    """All of it, bit for bit."""
    assert found.adapter is not None and expected.adapter is not None
    pairs = (
        (found.adapter.tensors, expected.adapter.tensors),
        (found.base_delta, expected.base_delta),
        (found.private, expected.private),
        (found.extra, expected.extra),
    )
    numbers = found.server_round, found.adapter.lora_alpha, found.base_id
    return numbers == (expected.server_round, expected.adapter.lora_alpha, expected.base_id) and all(
        mine.keys() == other.keys() and all(np.array_equal(mine[k], other[k]) for k in mine)  # type: ignore[index]
        for mine, other in pairs
    )


@given(drawn=st.data())
def test_a_damaged_file_is_lost_and_never_other_values(drawn: st.DataObject, tmp_path_factory: Any) -> None:
    """Any bit flipped, the file cut, extended or renamed; afterwards the node continues once everything is sent again."""
    store = ClientStore(tmp_path_factory.mktemp("store"), "run", 0)
    for number in (1, 2):
        store.keep(held(number))
    path = sorted(store.folder.iterdir())[1]
    whole = path.read_bytes()
    at = drawn.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at // 8] ^= 1 << at % 8
    damage = {"flip": bytes(flipped), "cut": whole[: at // 8], "grow": whole + b"\0"}
    damage["earlier"] = sorted(store.folder.iterdir())[0].read_bytes()
    path.write_bytes(damage[drawn.draw(st.sampled_from(sorted(damage)))])
    assert store.before(3) == ClientState()
    store.keep(held(3))
    assert same(store.before(4), held(3))


def test_a_file_of_another_client_or_run_is_lost(tmp_path: Path) -> None:
    mine, others = ClientStore(tmp_path, "run", 0), (ClientStore(tmp_path, "run", 1), ClientStore(tmp_path, "next", 0))
    mine.keep(held(1))
    for store in others:
        store.keep(held(1, 2.0))
        next(iter(mine.folder.iterdir())).write_bytes(next(iter(store.folder.iterdir())).read_bytes())
        assert mine.before(2) == ClientState()


# --- the node's own data and what it refuses


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("node")
    return str(save_data(folder / "mine.csv", 20)), str(save_model(folder / "model"))


def run_of(model: str, **more: Any) -> dict[str, Any]:
    config = make_config({"model": model, "dtype": "float32", "r": 4, **more}, {})
    return config.model_dump(mode="json", by_alias=True, exclude_none=True)


def test_a_profile_of_the_node_s_own_data(files: tuple[str, str], tmp_path: Path) -> None:
    data, model = files
    for fraction, sizes in ((0.0, (20, 0)), (0.25, (15, 5))):
        participant = Participant(OwnData(data, test_fraction=fraction), tmp_path)
        found = participant.answer(request(run=run_of(model))).metrics
        assert (found["num_examples"], found["num_test_examples"]) == sizes
        assert set(found) == {
            "partition",
            "num_partitions",
            "num_examples",
            "num_test_examples",
            "layout",
            "fingerprint",
        }
    participant = Participant(OwnData(data, test_data=data), tmp_path)
    assert participant.answer(request(run=run_of(model))).metrics["num_test_examples"] == 20


def test_data_with_one_class_are_enough_for_a_node(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\nw3 w4,late\nw5,late\n")
    participant = Participant(OwnData(str(tmp_path / "one.csv"), test_fraction=0), tmp_path)
    assert participant.answer(request(run=run_of(files[1]))).metrics["num_examples"] == 2


def test_the_model_and_the_data_are_loaded_once(files: tuple[str, str], tmp_path: Path) -> None:
    calls = []
    own = OwnData(files[0])

    def load(config: Any, asked: Request, model: Any) -> Any:
        calls.append(model)
        return own(config, asked, model)

    participant = Participant(load, tmp_path)
    for _ in range(3):
        participant.answer(request(run=run_of(files[1])))
    participant.answer(request(run=run_of(files[1], **{"learning-rate": 0.1})))
    assert len(calls) == 1
    participant.answer(request(run=run_of(files[1], seed=1)))  # another head
    assert len(calls) == 2


def test_what_a_node_refuses(files: tuple[str, str], tmp_path: Path) -> None:
    data, model = files
    participant = Participant(OwnData(data), tmp_path)
    with pytest.raises(ConfigError, match="Unknown key 'shell'"):
        participant.answer(request(run={**run_of(model), "shell": "rm"}))
    with pytest.raises(ConfigError, match="on a node it would hide nothing"):
        participant.answer(request(run={**run_of(model), "laplace-epsilon": 1.0}))
    with pytest.raises(DataError, match="labels that are not among the 2 known ones"):
        participant.answer(request(run=run_of(model), labels=("late", "lost")))


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"prompt": "a b", "completion": "c"}, {}),
        ({"ask": "a b", "say": "c"}, {"prompt_column": "ask", "completion_column": "say"}),
        (
            {"talk": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"messages_column": "talk"},
        ),
        ({"text": "a b c"}, {"text_column": "text"}),
    ],
)
def test_a_node_of_a_model_that_writes(row: dict[str, Any], named: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text((json.dumps(row) + "\n") * 10)
    own = OwnData(str(path), **named)
    assert own.check() == 10
    run = run_of(str(save_writer(tmp_path / "model")), task="causal-lm")
    found = Participant(own, tmp_path).answer(request(run=run, labels=())).metrics
    assert (found["num_examples"], found["num_test_examples"]) == (8, 2)
    with pytest.raises(DataError, match="which has none"):
        Participant(OwnData(str(path), label_column="text"), tmp_path).answer(request(run=run, labels=()))


def test_how_a_node_s_files_are_read(files: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As `run` reads them; what the operator should know is in the node's own log, and in nothing that leaves it."""
    path = tmp_path / "own.csv"
    rows = [*(f"w3 w4 é {n}^late" for n in range(10)), "w5^", "^late"]
    path.write_bytes("\n".join(["text^label", *rows]).encode("cp1252"))
    file = FileOptions(separator="^", encoding="cp1252", on_missing="drop")
    with pytest.raises(DataError, match="try --encoding cp1252"):
        OwnData(str(path)).check()
    for fraction, sizes in ((0.0, (10, 0)), (0.2, (8, 2))):
        own = OwnData(str(path), test_fraction=fraction, file=file)
        assert own.check() == 10
        caplog.clear()
        answer = Participant(own, tmp_path).answer(request(run=run_of(files[1], **{"max-length": 3})))
        assert (answer.metrics["num_examples"], answer.metrics["num_test_examples"]) == sizes
        assert "Left out: 1 of 12 rows of" in caplog.text
        assert f"{sizes[0]} of {sizes[0]} training examples are cut to max-length" in caplog.text
        assert not answer.notes


def test_a_node_that_writes_reads_files_likewise(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("prompt;completion\na b;c\na;\nb;c\n")
    assert OwnData(str(path), file=FileOptions(on_missing="drop")).check() == 2
    with pytest.raises(DataError, match=r"Row 2 of .* has no answer"):
        OwnData(str(path)).check()


# --- the command


def test_the_command_refuses_bad_input(
    tmp_path: Path, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    private = ["--socket", str(tmp_path / "private" / "s.sock")]
    for argv, part in (
        (["--data", str(tmp_path / "none.csv"), *private], "There is no data set"),
        (["--data", files[0], "--socket", str(tmp_path / "open" / "s.sock")], "it must be yours alone"),
        (["--data", files[0], *private, "--dtype", "int8"], "dtype: 'int8' is not one of"),
        (["--data", files[0], *private, "--text-column", "body"], "body"),
    ):
        assert main(["node", *argv]) == 2
        assert part in one_error(capsys)


def test_the_client_app_imports_nothing_heavy() -> None:
    code = (
        "import sys, json, lora_a2.flower.client_app; "
        "print(json.dumps([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'pydantic', 'ray') "
        "if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == []


def test_what_every_task_shares_may_leave_a_node() -> None:
    """The list is the protocol's own, since it imports no task: the sums of every task, also of a client's own model, and of texts."""
    texts = flattened(text_statistics(["a b c"], [("a b",)]))
    for task in TASKS.values():
        stated = {**dict.fromkeys(task.shared, 1), **texts}
        answer = Answer(stated | {f"{name}{PERSONAL}": value for name, value in stated.items()})
        assert outgoing(answer) is answer
    for name in ("per_class", "bleu", "bleu.0.1", "bleu.100", "examples.x", "num_correct_other"):
        with pytest.raises(Refused, match="may not state"):
            outgoing(Answer({name: 1}))
