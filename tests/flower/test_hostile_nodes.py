"""A server of real nodes, one of them malicious: with its profile, its numbers, its texts, or missing answers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.superlink.grid import InMemoryGrid
from hypothesis import given, settings
from hypothesis import strategies as st
from test_flower import NODES, flower, ledger, options, simulated

from fake_grid import FakeGrid, Fault, honest, silent, with_payload
from lora_a2 import codec
from lora_a2.config.opening import open_data
from lora_a2.config.run import RunConfig, make_config
from lora_a2.config.setup import federation_of, open_model, resolved
from lora_a2.core.types import Factors
from lora_a2.errors import ReplyError, RunError
from lora_a2.federation.population import Client
from lora_a2.flower import server_app
from lora_a2.flower.absence import Absence
from lora_a2.flower.courier import Courier
from lora_a2.flower.driver import evaluation
from lora_a2.flower.messages import error_message
from lora_a2.flower.options import USUAL_RATIO, ServerOptions
from lora_a2.flower.places import NodeProfile, Places
from lora_a2.flower.server_app import NODES_FILE, serve
from lora_a2.flower.simulated import _Split
from lora_a2.model.pretrained import Model
from lora_a2.node.participant import Participant
from lora_a2.node.protocol import Request
from lora_a2.system.files import read_sealed
from lora_a2.system.text import few, plain
from lora_a2.tasks.registry import get_task

__all__ = ["options"]  # a fixture

HUGE = 2**31 - 1


class Nodes(FakeGrid):
    """Nodes that look real to the server, each with its own data, whatever its partition; `lies` are values that node 1
    states in its profile."""

    def __init__(self, store: Path, total: int, fault: Fault = honest, **lies: Any) -> None:
        super().__init__(store, total, fault, simulated=False)
        self.lies: dict[str, Any] = lies
        self.told: list[RecordDict] = []
        self.participants = [Participant(partial(self.load, k), store / f"node-{k}") for k in range(total)]
        self.split = _Split(open_data)

    def load(self, node: int, config: RunConfig, request: Request, model: Model) -> Client:
        own = config.model_copy(update={"num_clients": self.total})
        return self.split(own, replace(request, partition=node), model)

    def answer(self, partition: int, message: Message) -> Message | None:
        self.told.append(message.content)
        self.participant = self.participants[partition]
        reply = super().answer(partition, message)
        if reply is not None and partition == 1 and message.metadata.message_type == "query.profile":
            reply.content["answer"].update(self.lies)
        return reply


def run_of(options: dict[str, Any], folder: Path, grid: FakeGrid, **more: Any) -> Path:
    return flower(options, folder, grid, **{"num_clients": NODES, **more})


def attends(run: Path) -> list[list[int]]:
    return [[client["id"] for client in record["clients"]] for record in ledger(run)]


@pytest.mark.parametrize("method", ["lora-a2", "flora", "fedsa-lora"])
def test_honest_nodes_feel_nothing_of_it(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """With all bounds on, the result equals the simulator's, byte for byte."""
    given = {**options, "method": method}
    run, twin = run_of(given, tmp_path, Nodes(tmp_path / "nodes", NODES)), simulated(given, tmp_path / "twin")
    assert not any(record["refused"] for record in ledger(run))
    files = [path.relative_to(run) for name in ("adapter", "model") for path in (run / name).glob("*.safetensors")]
    assert files
    assert all((run / name).read_bytes() == (twin / name).read_bytes() for name in files)
    assert f"max-update-ratio = {USUAL_RATIO}" in (run / "config.toml").read_text()


# --- profiles


@pytest.mark.parametrize(
    "lies",
    [
        {"num_partitions": 50},
        {"num_partitions": HUGE},
        {"num_partitions": 1},
        {"partition": 0},
        {"partition": 2},
        {"partition": HUGE, "num_partitions": HUGE},
        {"simulated": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("known", [True, False])
def test_one_node_s_profile_decides_nothing(
    lies: dict[str, Any], known: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    """All nodes take part, as many as the server says or counts; none gets a path."""
    grid = Nodes(tmp_path / "nodes", NODES, **lies)
    run = flower({**options, "num-server-rounds": 1}, tmp_path, grid, **({"num_clients": NODES} if known else {}))
    assert attends(run) == [[0, 1, 2]]
    requests = [dict(content["request"]) for content in grid.told]
    assert {request["state-dir"] for request in requests} == {""}
    assert {request.get("num-partitions", NODES) for request in requests} == {NODES}
    assert not [r for r in requests if str(tmp_path) in json.dumps({**r, "payload": "", "run": ""}, default=str)]
    assert not list((run / "clients").glob("*"))


def test_only_the_engine_s_grid_is_a_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[bool] = []
    monkeypatch.setattr(server_app, "serve", lambda courier, *given: served.append(courier.simulated))
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    monkeypatch.setattr(InMemoryGrid, "__init__", lambda self: None)
    for grid in (InMemoryGrid(), FakeGrid(tmp_path, 1)):  # type: ignore[call-arg]
        server_app.app(grid, context)
    assert served == [True, False]


def profile(wish: int, examples: int = 5, tests: int = 2) -> NodeProfile:
    return NodeProfile(wish, 3, examples, tests)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.integers(0, HUGE), min_size=5, max_size=5),
    st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=6),
)
def test_whoever_has_a_place_keeps_it(total: int, wishes: list[int], presences: list[set[int]]) -> None:
    """Whatever nodes ask for, and whoever comes and goes: one node for each place, no usable place empty, owners stay."""
    places = Places(total)
    owners: dict[int, int] = {}
    for present in presences:
        here = {node: (f"key {node}", profile(wishes[node])) for node in present}
        found = places.assign(here)
        assert len(set(found.values())) == len(found) == min(total, len(present))
        assert all(0 <= partition < total for partition in found)
        for partition, node in found.items():
            owner = owners.setdefault(partition, node)
            assert owner == node or owner not in present
        for partition, owner in owners.items():
            assert owner not in present or found[partition] == owner


def test_a_place_that_is_free_is_the_one_asked_for() -> None:
    assert Places(3).assign({7: ("a", profile(2)), 8: ("b", profile(0))}) == {2: 7, 0: 8}
    assert Places(3).assign({7: ("a", profile(2)), 8: ("b", profile(2)), 9: ("c", profile(9))}) == {2: 7, 0: 8, 1: 9}


def test_what_a_node_first_stated_is_the_most(tmp_path: Path) -> None:
    places = Places(2, tmp_path / NODES_FILE)
    assert places.admit("a", profile(0, 5, 2)) == profile(0, 5, 2)
    places.assign({1: ("a", profile(0, 5, 2))})
    assert places.admit("a", profile(0, HUGE, HUGE)) == profile(0, 5, 2)
    assert places.admit("a", profile(0, 3, 1)) == profile(0, 3, 1)
    again = Places(2, tmp_path / NODES_FILE)
    assert again.admit("a", profile(0, HUGE, HUGE)) == profile(0, 5, 2)
    assert again.assign({1: ("b", profile(0)), 2: ("a", profile(1))}) == {0: 2, 1: 1}


@pytest.mark.parametrize("text", ["[]", "{", '{"0": 1}', '{"0": {"node": "a"}}', '{"x": {}}'])
def test_a_damaged_file_of_places_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / NODES_FILE).write_text(text)
    with pytest.raises(RunError, match="is damaged"):
        Places(2, tmp_path / NODES_FILE)


def test_on_resuming_places_are_those_of_before(options: dict[str, Any], tmp_path: Path) -> None:
    """A node that asks for another's place after the restart does not get it."""

    class Stop(Exception):
        pass

    def stops(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        if message.metadata.group_id == "2":
            raise Stop
        return reply

    grid = Nodes(tmp_path / "nodes", NODES, stops)
    with pytest.raises(Stop):
        run_of(options, tmp_path, grid)
    before = read_sealed(tmp_path / "run" / NODES_FILE)
    assert {key: row["node"] for key, row in before.items()} == {"0": "node 100", "1": "node 101", "2": "node 102"}
    grid.fault, grid.arrivals, grid.lies = honest, [], {"partition": 0, "num_examples": HUGE}
    grid.online = {1}
    grid.on_sleep = lambda grid: grid.online.update({0, 2}) if grid.now > 20 else None
    run = serve(grid.courier(), {"resume": str(tmp_path / "run")}).path
    assert attends(run) == [[0, 1, 2]] * 3
    assert read_sealed(run / NODES_FILE) == before


def test_more_nodes_than_places(options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("flwr").propagate = True
    run = run_of(options, tmp_path, Nodes(tmp_path / "nodes", NODES), num_clients=2)
    assert attends(run) == [[0, 1]] * 3
    assert "All 2 places of the run are taken" in caplog.text


# --- what one client moves


def test_a_forged_number_of_examples_does_not_stop_learning(options: dict[str, Any], tmp_path: Path) -> None:
    """2³¹ − 1 examples and an empty update: it counts for three times the second largest."""

    def nothing(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        return with_payload(reply, message, emptied) if k == 1 else reply

    run = run_of(options, tmp_path, Nodes(tmp_path / "nodes", NODES, nothing, num_examples=HUGE))
    rounds = ledger(run)
    assert attends(run) == [[0, 1, 2]] * 3
    counts = {c["id"]: c["num_examples"] for c in rounds[-1]["clients"]}
    others = [counts[0], counts[2]]
    assert counts[1] == 3 * max(others)
    stated = run_of(
        options, tmp_path / "b", Nodes(tmp_path / "m", NODES, nothing, num_examples=HUGE), max_node_examples=5
    )
    assert {c["num_examples"] for c in ledger(stated)[-1]["clients"]} == {min(5, n) for n in (*others, 5)}


def emptied(data: bytes) -> bytes:
    """An upload of 2³¹ − 1 examples whose mask selects nothing."""
    import struct
    import zlib

    header = bytearray(data[:60])
    struct.pack_into("<Q", header, 44, HUGE)
    modules = 4 * len(data)  # more than there are: the bitmap's length is found by trying
    for size in range(1, modules):
        body = bytes(header) + bytes(size)
        frame = body + struct.pack("<I", zlib.crc32(body))
        if size >= 6:
            return frame
    raise AssertionError


@pytest.mark.parametrize(("method", "by"), [("lora-a2", -30.0), ("hetlora", 1000.0)])
def test_a_reply_that_is_scaled_up_is_refused(method: str, by: float, options: dict[str, Any], tmp_path: Path) -> None:
    given = {**options, "method": method}
    config = make_config({k: v for k, v in given.items() if v != ""}, {"num_clients": NODES})
    model = open_model(config, open_data(config).label_names)
    federation = federation_of(resolved(config, model, NODES), model)

    def scaled(data: bytes) -> bytes:
        layout, initial = federation.layout, federation.initial
        upload = codec.decode_upload(data, codec.UploadSchema(layout, "fp32"), initial.rank, initial.lora_alpha)
        factors = {n: Factors(np.float32(by) * f.A, np.float32(by) * f.B) for n, f in upload.update.factors.items()}
        return codec.encode(
            replace(upload, update=replace(upload.update, factors=factors)), codec.UploadSchema(layout, "fp32")
        )

    def fault(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        return with_payload(reply, message, scaled) if k == 1 else reply

    run = run_of(given, tmp_path, Nodes(tmp_path / "nodes", NODES, fault))
    assert attends(run) == [[0, 2]] * 3
    if by == 1000.0:  # out of all proportion, whatever the rules
        return
    free = run_of(
        {**given, "num-server-rounds": 1}, tmp_path / "free", Nodes(tmp_path / "m", NODES, fault), max_update_ratio=0
    )
    assert attends(free) == [[0, 1, 2]]


def test_a_forged_number_of_test_examples_does_not_decide(options: dict[str, Any], tmp_path: Path) -> None:
    class Boaster(Nodes):
        def answer(self, partition: int, message: Message) -> Message | None:
            reply = super().answer(partition, message)
            if reply is not None and partition == 1 and message.metadata.message_type == "evaluate":
                reply.content["answer"]["num_correct"] = HUGE
            return reply

    grid = Boaster(tmp_path / "nodes", NODES, num_test_examples=HUGE)
    metrics = ledger(run_of(options, tmp_path, grid, evaluation="nodes"))[-1]["metrics"]
    honest_ones = ledger(run_of(options, tmp_path / "b", Nodes(tmp_path / "m", NODES), evaluation="nodes"))[-1][
        "metrics"
    ]
    assert metrics["num_examples"] < 6 * honest_ones["num_examples"]
    assert metrics["accuracy"] < 0.95
    capped = run_of(options, tmp_path / "c", Boaster(tmp_path / "n", NODES, num_test_examples=HUGE), evaluation="nodes",
                    max_node_test_examples=1)  # fmt: skip
    assert ledger(capped)[-1]["metrics"]["num_examples"] == 3


def test_an_evaluation_without_a_cut_is_a_plain_share() -> None:
    task = get_task("classification")
    sums = {k: {"num_correct": np.array(n), "num_examples": np.array(m)} for k, n, m in ((0, 3, 7), (1, 1, 2))}
    assert evaluation(task, sums, None)["accuracy"] == evaluation(task, sums, 7)["accuracy"] == 4 / 9
    assert evaluation(task, sums, 2)["accuracy"] == pytest.approx((6 / 7 + 1) / 4)
    assert evaluation(task, {}, None) == {}


# --- texts


FORGED = "late\n2026-01-01 INFO Round 9/9: accuracy 100.0 %\x1b[2J\x1b]0;title\x07\r\u202egnp.exe\u2028\ud800"


def replying(make: Callable[[Message, Message], Message]) -> Fault:
    return lambda grid, k, message, reply: make(message, reply) if k == 1 else reply


def noted(message: Message, reply: Message) -> Message:
    reply.content["answer"]["notes"] = [
        "n" * 5_000_000,
        FORGED.replace("\ud800", ""),
        *[f"note {i}" for i in range(1000)],
    ]
    return reply


TEXTS: dict[str, Fault] = {
    "a reason of 5 MB": replying(lambda message, reply: error_message("r" * 5_000_000, message)),
    "a forged reason": replying(lambda message, reply: error_message(FORGED, message)),
    "names of records": replying(
        lambda message, reply: Message(
            RecordDict({"x" * 10**6: ConfigRecord({}), "\x1b[1m": ConfigRecord({})}), reply_to=message
        )
    ),
    "a metric's name": replying(
        lambda message, reply: Message(
            RecordDict({"answer": ConfigRecord({"\x1b[1m\n" * 10**5: [1]})}), reply_to=message
        )
    ),
    "a metric's text": replying(
        lambda message, reply: Message(
            RecordDict({"answer": ConfigRecord({"a": "\x1b[1m\n" * 10**5})}), reply_to=message
        )
    ),
    "many metrics": replying(
        lambda message, reply: Message(
            RecordDict({"answer": ConfigRecord({f"m{i}": i for i in range(10**4)})}), reply_to=message
        )
    ),
    "notes": replying(noted),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_of_nodes_are_cut_escaped_and_few(
    name: str, options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("flwr").propagate = True
    with caplog.at_level(logging.INFO, "flwr"):
        run = run_of({**options, "num-server-rounds": 1}, tmp_path, Nodes(tmp_path / "nodes", NODES, TEXTS[name]))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("flwr")]
    assert len(lines) < 12
    ledger_text = (run / "rounds.jsonl").read_text()
    for text in [*lines, *ledger(run)[0]["refused"].values()]:
        assert len(text) < 600
        assert plain(text, 600) == text
    assert len(ledger_text) < 20_000
    json.loads(ledger_text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("what", ["layout", "partition", "num_examples"])
def test_texts_in_profiles_too(
    what: str, options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("flwr").propagate = True
    grid = Nodes(tmp_path / "nodes", NODES, **{what: "\x1b[2J\n" + "x" * 10**6})
    with caplog.at_level(logging.INFO, "flwr"):
        run = run_of({**options, "num-server-rounds": 1}, tmp_path, grid, start_timeout=200)
    assert attends(run) == [[0, 2]]
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("flwr")]
    assert len([line for line in lines if "does not take part" in line]) == 1
    assert all(len(line) < 700 and plain(line, 700) == line for line in lines)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=400), st.integers(1, 300))
def test_plain_is_one_short_visible_line(text: str, most: int) -> None:
    shown = plain(text, most)
    assert len(shown) <= most + 40
    assert shown.isprintable() or not shown.replace(" ", "").isascii()
    assert len(shown.splitlines()) <= 1
    assert "\x1b" not in shown and "\u202e" not in shown
    shown.encode()
    assert plain(shown, 10**6) == shown


def test_few_counts_what_it_leaves_out() -> None:
    assert few(["a", "b"]) == ("a", "b")
    assert few([1, "\n", "c", "d", "e"]) == ("1", "\\n", "c", "2 more lines were left out.")


def test_a_text_of_5_MB_costs_no_time() -> None:
    began = time.process_time()
    plain("\n" * 5_000_000)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("loss", [1e308, -1.0, 1e7])
def test_an_impossible_loss_is_refused(loss: float, options: dict[str, Any], tmp_path: Path) -> None:
    import struct
    import zlib

    def stated(data: bytes) -> bytes:
        body = data[:52] + struct.pack("<d", loss) + data[60:-4]
        return body + struct.pack("<I", zlib.crc32(body))

    def fault(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        return with_payload(reply, message, stated) if k == 1 else reply

    run = run_of({**options, "num-server-rounds": 1}, tmp_path, Nodes(tmp_path / "nodes", NODES, fault))
    assert "states the loss" in ledger(run)[0]["refused"]["1"]
    json.loads((run / "rounds.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("seconds", [1e308, -5, 2**62, True])
def test_impossible_seconds_harm_nothing(seconds: float, options: dict[str, Any], tmp_path: Path) -> None:
    def fault(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        if k == 1:
            reply.content["answer"]["train_seconds"] = seconds
        return reply

    run = run_of({**options, "num-server-rounds": 1}, tmp_path, Nodes(tmp_path / "nodes", NODES, fault))
    assert {0, 2} <= set(attends(run)[0])
    seconds_of = json.loads((run / "rounds.jsonl").read_text())["seconds"]
    assert all(0 <= value < 1e6 for value in seconds_of.values())


# --- silence


def test_who_is_silent_again_and_again_is_left_out(options: dict[str, Any], tmp_path: Path) -> None:
    """12 rounds cost 5 timeouts instead of 12; the ledger says so, and nothing else changes."""

    def mute(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message | None:
        return None if k == 1 else reply

    given = {**options, "num-server-rounds": 12}
    grid = Nodes(tmp_path / "nodes", NODES, mute)
    run = run_of(given, tmp_path, grid, round_timeout=100)
    assert attends(run) == [[0, 2]] * 12
    reasons = [record["refused"]["1"] for record in ledger(run)]
    asked = [t for t, reason in enumerate(reasons, 1) if reason.startswith("No answer within 100 s")]
    assert asked == [1, 2, 4, 7, 12]
    assert all(reason.startswith("Left out") for t, reason in enumerate(reasons, 1) if t not in asked)
    assert 500 <= grid.now < 530


def test_who_answers_again_is_back(options: dict[str, Any], tmp_path: Path) -> None:
    def mute(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message | None:
        return None if k == 1 and int(message.metadata.group_id) < 4 else reply

    run = run_of(
        {**options, "num-server-rounds": 6}, tmp_path, Nodes(tmp_path / "nodes", NODES, mute), round_timeout=100
    )
    assert attends(run) == [[0, 2]] * 3 + [[0, 1, 2]] * 3


def test_a_silent_node_is_asked_where_it_is_needed(options: dict[str, Any], tmp_path: Path) -> None:
    grid = Nodes(
        tmp_path / "nodes", NODES, lambda grid, k, message, reply: silent(grid, k, message, reply) if k == 1 else reply
    )
    with pytest.raises(ReplyError, match="2 usable replies; expected 3"):
        run_of(options, tmp_path, grid, round_timeout=20, min_train_nodes=3, max_attempts=4)
    assert 80 <= grid.now < 100


def test_nobody_waits_twice_for_a_silent_node_s_evaluation(options: dict[str, Any], tmp_path: Path) -> None:
    class Mute(Nodes):
        def answer(self, partition: int, message: Message) -> Message | None:
            quiet = partition == 1 and message.metadata.message_type == "evaluate"
            return None if quiet else super().answer(partition, message)

    grid = Mute(tmp_path / "nodes", NODES)
    run = run_of({**options, "num-server-rounds": 7}, tmp_path, grid, round_timeout=100, evaluation="nodes")
    assert attends(run) == [[0, 1, 2]] * 7
    assert 400 <= grid.now < 430  # rounds 1, 2, 4 and 7


def test_the_silences_before_a_resume_count(options: dict[str, Any], tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def mute(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message | None:
        if message.metadata.group_id == "3":
            raise Stop
        return None if k == 1 else reply

    grid = Nodes(tmp_path / "nodes", NODES, mute)
    with pytest.raises(Stop):
        run_of(options, tmp_path, grid, round_timeout=100)
    grid.fault, grid.arrivals, grid.now = silent, [], 0.0
    grid.fault = lambda grid, k, message, reply: None if k == 1 else reply
    run = serve(grid.courier(), {"resume": str(tmp_path / "run"), "round-timeout": 100}).path
    assert ledger(run)[2]["refused"]["1"].startswith("Left out: it was silent 2 times")
    assert grid.now < 50


def test_a_node_that_joins_again_is_asked_but_not_for_ever() -> None:
    absence = Absence()
    for number in range(1, 200):
        absence.silent("train", 3, number)
    assert absence.reason("train", 3, 199 + 64) is not None
    assert absence.reason("train", 3, 199 + 65) is None
    assert absence.reason("evaluate", 3, 200) is None
    for number in (200, 201, 202):
        absence.returned(3)
        assert absence.reason("train", 3, number) is None
        absence.silent("train", 3, number)
    absence.returned(3)
    assert absence.reason("train", 3, 203) is not None
    absence.answered("train", 3)
    assert absence.reason("train", 3, 203) is None and absence.missed("train", 3) == 0


def test_the_usual_rules() -> None:
    given = ServerOptions.model_validate({})
    assert given.rules(True, None).max_update_ratio is None and not given.rules(True, None).fair_shares
    assert given.rules(False, None).max_update_ratio == USUAL_RATIO and given.rules(False, None).fair_shares
    assert given.rules(False, 0.0).max_update_ratio is None
    assert given.rules(True, 4.0).max_update_ratio == 4.0


def test_a_node_is_known_by_its_key(tmp_path: Path) -> None:
    """By its id if the grid knows no keys, as in memory."""

    @dataclass
    class Info:
        node_id: int
        public_key: bytes

    class WithKeys(FakeGrid):
        def get_nodes(self) -> list[Info]:
            return [Info(1, b"one"), Info(2, b"two"), Info(7, b"")]

    found = Courier(WithKeys(tmp_path, 1), simulated=False).present()
    assert found[1].startswith("key ") and found[2].startswith("key ") and found[1] != found[2]
    assert found[7] == "node 7"
    assert Courier(FakeGrid(tmp_path, 1), simulated=False).present() == {100: "node 100"}
