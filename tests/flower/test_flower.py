"""The Flower driver over nodes in memory: it gives the simulator's results, and handles nodes that misbehave."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_grid import FakeGrid, Fault, honest, silent, with_payload
from federation import LABELS, save_data, save_model
from lora_a2.analysis.record import ANALYSIS_FILE, CLIENTS_FILE, load_run
from lora_a2.analysis.summary import analyze
from lora_a2.cli import main
from lora_a2.config.run import make_config
from lora_a2.errors import ConfigError, ReplyError, RunError
from lora_a2.federation.observer import Observer
from lora_a2.flower.messages import (
    SMALL,
    answer_message,
    error_message,
    read_answer,
    read_request_content,
    received_bytes,
    request_content,
)
from lora_a2.flower.server_app import serve
from lora_a2.methods import METHODS
from lora_a2.node.policy import Policy
from lora_a2.node.protocol import Answer, Request
from lora_a2.runs.directory import RunDirectory
from lora_a2.runs.jobs import launch

NODES = 3


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run configuration on a tiny model and tiny data."""
    folder = tmp_path_factory.mktemp("flower")
    return {
        "data": str(save_data(folder / "tiny.csv", 48)),
        "model": str(save_model(folder / "model")),
        "dtype": "float32",
        "num-server-rounds": 3,
        "local-epochs": 1,
        "batch-size": 8,
        "r": 4,
        "learning-rate": 0.05,
    }


def tensors(run: Path) -> bytes:
    """The final checkpoint's tensors: the server's whole state."""
    return max((run / "checkpoint").glob("*.safetensors")).read_bytes()


def ledger(run: Path) -> list[dict[str, Any]]:
    """The rounds' records without their times."""
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [{k: v for k, v in each.items() if k != "seconds"} for each in rounds]


def simulated(options: dict[str, Any], output: Path) -> Path:
    """The directory of the same run with the simulator."""
    values = {k: v for k, v in options.items() if v != ""}
    launch(make_config(values, {"output_dir": str(output), "num_clients": NODES}), Observer())
    return output


def flower(options: dict[str, Any], tmp_path: Path, grid: FakeGrid | None = None, **more: Any) -> Path:
    """A run over the nodes of `grid`; its directory."""
    grid = grid or FakeGrid(tmp_path / "nodes", NODES)
    extra = {key.replace("_", "-"): value for key, value in more.items()}
    return serve(grid.courier(), {**options, "output-dir": str(tmp_path / "run"), **extra}).path


@pytest.mark.parametrize("method", METHODS)
def test_the_results_are_those_of_the_simulator(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    given = {**options, "method": method}
    run, twin = flower(given, tmp_path), simulated(given, tmp_path / "twin")
    files = [path.relative_to(run) for name in ("adapter", "model") for path in (run / name).glob("*.safetensors")]
    assert files
    assert all((run / name).read_bytes() == (twin / name).read_bytes() for name in files)
    mine, theirs = ledger(run), ledger(twin)
    assert (run / ANALYSIS_FILE).read_bytes() == (twin / ANALYSIS_FILE).read_bytes()
    for a, b in zip(mine, theirs, strict=True):
        ours, others = a.pop("metrics"), b.pop("metrics")
        # Downloads for an evaluation if the clients are: of personal models here, which the server cannot evaluate.
        assert (a.pop("evaluation_bytes") > 0) == bool(METHODS[method].private)
        assert b.pop("evaluation_bytes") == 0
        assert a == b
        assert ours["accuracy"] == others["accuracy"]
        if METHODS[method].private:  # the nodes' own evaluation counts what the simulator measures
            assert ours["personal"]["accuracy"] == others["personal"]["accuracy"]
            assert ours["personal"]["client_mean"] == others["personal"]["client_mean"]
        else:
            assert ours == others
            assert tensors(run) == tensors(twin)


def test_a_run_of_nodes_is_analysed_without_their_labels(options: dict[str, Any], tmp_path: Path) -> None:
    run, twin = flower(options, tmp_path), simulated(options, tmp_path / "twin")
    found, other = analyze(load_run(run)), analyze(load_run(twin))
    for key in ("selected_ranks", "gradient_similarity", "discordance", "accuracy"):
        assert found[key] is not None and found[key] == other[key]
    assert (found["updates"]["test"], found["masks"]["test"]) == (None, None)
    assert other["updates"] and other["masks"]
    assert main(["analyze", str(run)]) == 0
    off = flower({**options, "record-analysis": False}, tmp_path / "off")
    assert not {CLIENTS_FILE, ANALYSIS_FILE} & {path.name for path in off.iterdir()}
    assert tensors(off) == tensors(run)


def test_cohorts_are_those_of_the_simulator(options: dict[str, Any], tmp_path: Path) -> None:
    given = {**options, "fraction-train": 0.6, "seed": 5}
    run, twin = flower(given, tmp_path), simulated(given, tmp_path / "twin")
    cohorts = [[client["id"] for client in r["clients"]] for r in ledger(run)]
    assert cohorts == [[client["id"] for client in r["clients"]] for r in ledger(twin)]
    assert len({tuple(c) for c in cohorts}) > 1
    assert tensors(run) == tensors(twin)


def test_the_nodes_evaluate_where_the_server_has_no_data(options: dict[str, Any], tmp_path: Path) -> None:
    run = flower(options, tmp_path, evaluation="nodes")
    metrics = ledger(run)[-1]["metrics"]
    server = ledger(flower(options, tmp_path / "b"))[-1]["metrics"]
    assert metrics["accuracy"] == server["accuracy"]
    assert list(metrics["per_client"].values()) == list(server["per_client"].values())
    assert "macro_f1" not in metrics  # it would need to know which labels a node has


def test_the_last_round_that_a_policy_allows_is_evaluated(options: dict[str, Any], tmp_path: Path) -> None:
    grid = FakeGrid(tmp_path / "nodes", NODES)
    grid.participant._policy = Policy(max_rounds=int(options["num-server-rounds"]))
    assert "accuracy" in ledger(flower(options, tmp_path, grid, evaluation="nodes"))[-1]["metrics"]


def test_nothing_is_evaluated_if_nobody_wants_it(options: dict[str, Any], tmp_path: Path) -> None:
    assert all(r["metrics"] == {} for r in ledger(flower(options, tmp_path, evaluation="none")))


def test_a_run_of_the_simulator_is_not_continued_by_flower(options: dict[str, Any], tmp_path: Path) -> None:
    """Nodes keep state under the id that Flower's server gives the run: this run has none."""
    run = simulated(options, tmp_path / "run")
    with pytest.raises(RunError, match="was not started by Flower: continue it with 'lora-a2 resume"):
        serve(FakeGrid(tmp_path / "nodes", NODES).courier(), {"resume": str(run)})


# --- what leaves a node


def test_only_the_upload_and_the_stated_metrics_leave_a_node(options: dict[str, Any], tmp_path: Path) -> None:
    grid = FakeGrid(tmp_path / "nodes", NODES)
    run = flower({**options, "method": "fedsa-lora"}, tmp_path, grid, evaluation="nodes")
    texts = [line.split(",")[0] for line in Path(options["data"]).read_text().splitlines()[1:]]
    stated = {
        *("partition", "num_partitions", "num_examples", "num_test_examples", "layout", "notes"),
        *("train_seconds", "num_correct", "num_correct_personal", "fingerprint"),
    }
    uploads = 0
    for message in grid.sent:
        assert set(message.content) == {"answer"}
        answer = dict(message.content["answer"])
        raw = answer.pop("payload", b"")
        assert set(answer) <= stated
        uploads += len(raw)
        everything = raw + json.dumps(list(answer.values())).encode()
        assert not [text for text in texts if len(text) > 4 and text.encode() in everything]
        assert not [label for label in LABELS if label.encode() in everything]
    assert uploads == sum(r["uploaded_bytes"] for r in ledger(run))
    assert len(grid.sent) == NODES * (1 + 2 * 3)


# --- faults


def garbage(grid: FakeGrid, partition: int, message: Message, reply: Message) -> Message:
    return with_payload(reply, message, lambda data: b"\x80\x04" + data[2:])


def not_finite(grid: FakeGrid, partition: int, message: Message, reply: Message) -> Message:
    return with_payload(reply, message, _with_nan)


def _with_nan(data: bytes) -> bytes:
    """The same frame with NaN as its last value and a checksum that fits."""
    import struct
    import zlib

    body = data[:-8] + np.float32(np.nan).tobytes()
    return body + struct.pack("<I", zlib.crc32(body))


def oversized(grid: FakeGrid, partition: int, message: Message, reply: Message) -> Message:
    return with_payload(reply, message, lambda data: data + bytes(10**6))


def truncated(grid: FakeGrid, partition: int, message: Message, reply: Message) -> Message:
    return with_payload(reply, message, lambda data: data[: len(data) // 2])


def complaint(grid: FakeGrid, partition: int, message: Message, reply: Message) -> Message:
    return error_message("No worker answers.", message)


def other_records(grid: FakeGrid, partition: int, message: Message, reply: Message) -> Message:
    return Message(RecordDict({"weights": ArrayRecord([np.ones(3)]), "c": ConfigRecord({"a": 1})}), reply_to=message)


def infinite_time(grid: FakeGrid, partition: int, message: Message, reply: Message) -> Message:
    content = RecordDict({**reply.content, "answer": ConfigRecord({"train_seconds": float("inf")})})
    return Message(content, reply_to=message)


FAULTS: dict[str, tuple[Fault, str]] = {
    "silent": (silent, "No answer within"),
    "garbage": (garbage, "starts with"),
    "not finite": (not_finite, "not finite"),
    "oversized": (oversized, "bytes; at most"),
    "truncated": (truncated, "was cut or extended|ends inside|asks for"),
    "complaint": (complaint, "The node reports: No worker answers."),
    "other records": (other_records, "records"),
    "infinite time": (infinite_time, "finite number"),
}


def one_faulty(fault: Fault, partition: int = 1, server_round: int = 2) -> Fault:
    def apply(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message | None:
        wrong = k == partition and message.metadata.group_id == str(server_round)
        return fault(grid, k, message, reply) if wrong else reply

    return apply


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_reply_is_refused_and_recorded_and_the_round_goes_on(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    fault, reason = FAULTS[name]
    rounds = ledger(flower(options, tmp_path, FakeGrid(tmp_path / "nodes", NODES, one_faulty(fault))))
    assert [len(r["clients"]) for r in rounds] == [3, 2, 3]
    assert [set(r["refused"]) for r in rounds] == [set(), {"1"}, set()]
    import re

    assert re.search(reason, rounds[1]["refused"]["1"]), rounds[1]["refused"]


def test_a_replayed_reply_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    first: dict[int, Message] = {}

    def replay(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        if k == 0:
            first.setdefault(k, reply)
            return Message(first[k].content, reply_to=message)
        return reply

    rounds = ledger(flower(options, tmp_path, FakeGrid(tmp_path / "nodes", NODES, replay)))
    assert [len(r["clients"]) for r in rounds] == [3, 2, 2]
    assert "sent a reply for round 1" in rounds[1]["refused"]["0"]


def test_an_answer_that_comes_too_late_is_recorded_and_changes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    def late(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message | None:
        if k == 1 and message.metadata.group_id == "1":
            grid.deliver(reply, message, delay=90)
            return None
        if k == 2 and message.metadata.group_id == "2":  # keeps the second round open until then
            grid.deliver(reply, message, delay=55)
            return None
        return reply

    rounds = ledger(flower(options, tmp_path, FakeGrid(tmp_path / "n", NODES, late), round_timeout=60))
    assert [len(r["clients"]) for r in rounds] == [2, 3, 3]
    assert "No answer within 60 s" in rounds[0]["refused"]["1"]
    assert "too late" in rounds[1]["refused"]["1"]
    plain = FakeGrid(tmp_path / "m", NODES, one_faulty(silent, 1, 1))
    twin = flower(options, tmp_path / "twin", plain)
    assert tensors(tmp_path / "run") == tensors(twin)


def test_a_node_that_goes_offline_is_not_waited_for(options: dict[str, Any], tmp_path: Path) -> None:
    def dies(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message | None:
        if k == 1 and message.metadata.group_id == "2":
            grid.online.discard(1)
            return None
        return reply

    grid = FakeGrid(tmp_path / "nodes", NODES, dies)
    rounds = ledger(flower(options, tmp_path, grid))
    assert [len(r["clients"]) for r in rounds] == [3, 2, 2]
    assert "gone offline" in rounds[1]["refused"]["1"]
    assert grid.now < 60  # of a round timeout of an hour


def test_a_late_joiner_takes_part_from_the_next_round(options: dict[str, Any], tmp_path: Path) -> None:
    def joins(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        if message.metadata.group_id == "1":
            grid.online.add(2)
        return reply

    grid = FakeGrid(tmp_path / "nodes", NODES, joins, online={0, 1})
    rounds = ledger(flower(options, tmp_path, grid, start_timeout=5))
    assert [[c["id"] for c in r["clients"]] for r in rounds] == [[0, 1], [0, 1, 2], [0, 1, 2]]


def test_a_node_whose_worker_is_not_there_yet_is_asked_again(options: dict[str, Any], tmp_path: Path) -> None:
    class Early(FakeGrid):
        def answer(self, partition: int, message: Message) -> Message:
            if partition == 2 and self.now < 40:
                return error_message("No worker answers.", message)
            return super().answer(partition, message)

    rounds = ledger(flower(options, tmp_path, Early(tmp_path / "nodes", NODES)))
    assert [len(r["clients"]) for r in rounds] == [3, 3, 3]


def test_the_first_round_waits_for_all_announced_nodes(options: dict[str, Any], tmp_path: Path) -> None:
    def appear(grid: FakeGrid) -> None:
        if grid.now > 20:
            grid.online.add(2)

    grid = FakeGrid(tmp_path / "nodes", NODES, online={0, 1}, on_sleep=appear)
    rounds = ledger(flower(options, tmp_path, grid))
    assert [len(r["clients"]) for r in rounds] == [3, 3, 3]


def test_below_the_minimum_it_waits_and_says_so(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def dies(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        if message.metadata.group_id == "1" and k == 2:
            grid.online.discard(2)
        return reply

    def returns(grid: FakeGrid) -> None:
        if grid.now > 100:
            grid.online.add(2)

    grid = FakeGrid(tmp_path / "nodes", NODES, dies, on_sleep=returns)
    logging.getLogger("flwr").propagate = True
    with caplog.at_level(logging.INFO, "flwr"):
        rounds = ledger(flower(options, tmp_path, grid, min_train_nodes=3))
    assert [len(r["clients"]) for r in rounds] == [3, 3, 3]
    assert "Waiting for nodes: 2 of 3 are online (limit 600 s)" in caplog.text


def test_the_wait_for_nodes_has_a_limit(options: dict[str, Any], tmp_path: Path) -> None:
    grid = FakeGrid(tmp_path / "nodes", NODES, online={0})
    with pytest.raises(RunError, match="1 of at least 2 nodes came within 30 s"):
        flower(options, tmp_path, grid, min_train_nodes=2, node_timeout=30)
    assert 30 <= grid.now < 40


@pytest.mark.parametrize("method", ["fedsa-lora", "lora-a2"])
def test_a_round_below_the_minimum_is_repeated(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    seen: list[str] = []

    def once(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message | None:
        if k > 0 and message.metadata.group_id == "2" and seen.count("2") < 2:
            seen.append("2")
            return None
        return reply

    given = {**options, "method": method}
    grid = FakeGrid(tmp_path / "nodes", NODES, once)
    run, twin = flower(given, tmp_path, grid, min_train_nodes=2, round_timeout=20), flower(given, tmp_path / "twin")
    assert [len(r["clients"]) for r in ledger(run)] == [3, 3, 3]
    # Nodes that had already trained the round started again from their state before it.
    assert tensors(run) == tensors(twin)
    # The replies of the first attempt are not in the record.
    assert (run / ANALYSIS_FILE).read_bytes() == (twin / ANALYSIS_FILE).read_bytes()


def test_a_round_is_not_repeated_for_ever(options: dict[str, Any], tmp_path: Path) -> None:
    grid = FakeGrid(tmp_path / "nodes", NODES, not_finite)
    with pytest.raises(ReplyError, match="not finite"):
        flower(options, tmp_path, grid, max_attempts=2)
    assert len([m for m in grid.sent if "payload" in m.content["answer"]]) == 2 * NODES


@given(st.lists(st.lists(st.sampled_from(["ok", *FAULTS]), min_size=NODES, max_size=NODES), min_size=3, max_size=3))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_mixture_of_faults(
    options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, plan: list[list[str]]
) -> None:
    """The honest replies count, the others are recorded; a round with none is tried again, honestly."""
    folder = tmp_path_factory.mktemp("mix")
    seen: Counter[str] = Counter()

    def mixed(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message | None:
        number = message.metadata.group_id
        kind = plan[int(number) - 1][k]
        seen[number] += 1
        if all(each != "ok" for each in plan[int(number) - 1]) and seen[number] > NODES:
            return reply
        return reply if kind == "ok" else FAULTS[kind][0](grid, k, message, reply)

    grid = FakeGrid(folder / "nodes", NODES, mixed)
    rounds = ledger(
        flower(options, folder, grid, round_timeout=20, evaluation="none", batch_size=48)
    )  # one step a round
    for record, kinds in zip(rounds, plan, strict=True):
        good = [k for k, kind in enumerate(kinds) if kind == "ok"] or list(range(NODES))
        assert [c["id"] for c in record["clients"]] == good
        assert sorted(map(int, record["refused"])) == sorted(set(range(NODES)) - set(good))


def test_no_node_counts_for_more_than_allowed(options: dict[str, Any], tmp_path: Path) -> None:
    rounds = ledger(flower(options, tmp_path, max_node_examples=5))
    examples = [c["num_examples"] for c in rounds[0]["clients"]]
    free = [c["num_examples"] for c in ledger(flower(options, tmp_path / "b"))[0]["clients"]]
    assert examples == [min(5, n) for n in free]
    assert examples != free


# --- profiles


def forged(**changes: Any) -> Any:
    """Nodes of which the second states a forged profile."""

    class Forged(FakeGrid):
        def answer(self, partition: int, message: Message) -> Message | None:
            reply = super().answer(partition, message)
            assert reply is not None
            if message.metadata.message_type == "query.profile" and partition == 1:
                reply.content["answer"].update(changes)
            return reply

    return Forged


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_examples": 0}, "num_examples = 0"),
        ({"num_examples": -3}, "num_examples = -3"),
        ({"num_examples": 2.5}, "num_examples = 2.5"),
        ({"partition": -1}, "partition = -1"),
        ({"num_partitions": 0}, "num_partitions = 0"),
        ({"layout": "00"}, "layout is 00"),
        ({"fingerprint": "00ff"}, "other weights (fingerprint 00ff; the server's has "),
        ({"fingerprint": 3}, "other weights (fingerprint 3"),
    ],
)
def test_a_node_with_an_impossible_profile_does_not_take_part(
    changes: dict[str, Any], reason: str, options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("flwr").propagate = True
    run = flower(options, tmp_path, forged(**changes)(tmp_path / "nodes", NODES), start_timeout=3)
    assert [[c["id"] for c in r["clients"]] for r in ledger(run)] == [[0, 2]] * 3
    assert reason in caplog.text


def slowly(grid: FakeGrid, k: int, message: Message, reply: Message) -> None:
    """Every round takes 20 seconds."""
    grid.deliver(reply, message, delay=20)


def test_a_node_that_is_set_right_is_asked_again(options: dict[str, Any], tmp_path: Path) -> None:
    class SetRight(FakeGrid):
        def answer(self, partition: int, message: Message) -> Message | None:
            wrong = partition == 1 and self.now < 15
            return error_message("No worker answers.", message) if wrong else super().answer(partition, message)

    rounds = ledger(flower(options, tmp_path, SetRight(tmp_path / "nodes", NODES, slowly), start_timeout=3))
    assert [[c["id"] for c in r["clients"]] for r in rounds] == [[0, 2], [0, 2], [0, 1, 2]]


def test_nobody_waits_for_the_profile_of_a_late_joiner(options: dict[str, Any], tmp_path: Path) -> None:
    class Mute(FakeGrid):
        def answer(self, partition: int, message: Message) -> Message | None:
            if message.metadata.group_id == "1":
                self.online.add(2)
            return None if partition == 2 else super().answer(partition, message)

    grid = Mute(tmp_path / "nodes", NODES, slowly, online={0, 1})
    rounds = ledger(flower(options, tmp_path, grid, start_timeout=3))
    assert [[c["id"] for c in r["clients"]] for r in rounds] == [[0, 1]] * 3
    assert grid.now < 80


def test_the_number_of_clients_must_be_the_number_of_nodes(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num-clients is 5, but the simulation has 3 nodes"):
        flower(options, tmp_path, num_clients=5)


# --- resuming


class Killed(Exception):
    """The server's process ends."""


def killed_in(server_round: int, partition: int) -> Fault:
    def fault(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        if message.metadata.group_id == str(server_round) and k == partition:
            raise Killed
        return reply

    return fault


@pytest.mark.parametrize("method", ["lora-a2", "fedsa-lora", "flora", "full"])
def test_a_killed_server_resumes_to_the_same_bytes(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Alternation, cohorts and clients' state continue; a client that had trained the lost round repeats it."""
    given = {**options, "method": method, "fraction-train": 0.7, "num-server-rounds": 4, "output-dir": ""}
    whole = flower(given, tmp_path / "whole")
    grid = FakeGrid(tmp_path / "nodes", NODES, honest)
    last = [c["id"] for c in ledger(whole)[2]["clients"]][-1]
    grid.fault = killed_in(3, last)
    with pytest.raises(Killed):
        flower(given, tmp_path, grid)
    grid.fault, grid.arrivals = honest, []
    assert len(RunDirectory.open(tmp_path / "run").load_records()) == 2
    run = serve(grid.courier(), {"resume": str(tmp_path / "run")}).path
    assert ledger(run) == ledger(whole)
    assert tensors(run) == tensors(whole)


@pytest.mark.parametrize("method", ["lora-a2", "fedsa-lora"])
def test_a_server_goes_back_to_the_checkpoint_before(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The last checkpoint is damaged: the server repeats the round after the one before, and the nodes still have its state."""
    given = {**options, "method": method, "num-server-rounds": 3, "output-dir": ""}
    grid = FakeGrid(tmp_path / "nodes", NODES, honest)
    run = flower(given, tmp_path, grid)
    expected = ledger(run), tensors(run)
    (run / "checkpoint" / "round-00003.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"--from-round 2"):
        serve(grid.courier(), {"resume": str(run)})
    serve(grid.courier(), {"resume": str(run), "from-round": 2})
    assert (ledger(run), tensors(run)) == expected


def test_lost_private_factors_are_noticed(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    seen: list[int] = []

    def lose(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        if message.metadata.group_id == "1":
            seen.append(k)
            if len(seen) % NODES == 0:
                shutil.rmtree(grid.store)
        return reply

    logging.getLogger("flwr").propagate = True
    flower({**options, "method": "fedsa-lora"}, tmp_path, FakeGrid(tmp_path / "nodes", NODES, lose))
    assert caplog.text.count("The private factors were lost; they start anew.") == NODES


@pytest.mark.parametrize("least", [1, NODES])
def test_if_too_many_lost_what_they_kept_the_round_is_repeated_with_everything(
    least: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """All of them, or so many that too few are left: the second attempt brings what the first did not."""
    import shutil

    seen: list[int] = []

    def lose(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        seen.append(k)
        if len(seen) == NODES:
            for kept in next(grid.store.iterdir()).iterdir():
                if least == 1 or kept.name == "0":
                    shutil.rmtree(kept)
        return reply

    grid = FakeGrid(tmp_path / "nodes", NODES, lose)
    run, twin = flower(options, tmp_path, grid, min_train_nodes=least), flower(options, tmp_path / "twin")
    assert [len(r["clients"]) for r in ledger(run)] == [NODES] * 3
    assert tensors(run) == tensors(twin)


def test_lost_base_weights_cost_one_round(options: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    def lose(grid: FakeGrid, k: int, message: Message, reply: Message) -> Message:
        if message.metadata.group_id == "1" and k == 1:
            shutil.rmtree(next(grid.store.iterdir()) / "1")
        return reply

    run = flower({**options, "method": "flora"}, tmp_path, FakeGrid(tmp_path / "nodes", NODES, lose))
    rounds = ledger(run)
    assert [[c["id"] for c in r["clients"]] for r in rounds] == [[0, 1, 2], [0, 2], [0, 1, 2]]
    assert "does not hold what the download builds on" in rounds[1]["refused"]["1"]


@pytest.mark.parametrize("size", [0, 5, SMALL, SMALL + 1])
def test_requests_and_answers_survive_the_records(size: int) -> None:
    payload = bytes(size)
    request = Request(
        kind="train", run_id="a1", run={"r": 4, "model": "m"}, labels=("x", "y"), partition=2, num_partitions=3,
        last_round=7, payload=payload,
    )  # fmt: skip
    content = request_content(request, "/clients")
    assert read_request_content(content, 2, 3) == (request, "/clients")
    assert ("payload" in content) == (size > SMALL)
    message = Message(content, dst_node_id=1, message_type="query")
    message.metadata.__dict__["_message_id"] = "1"
    answer = Answer({"num_examples": 3, "train_seconds": 0.5}, payload, ("a note",))
    reply = answer_message(answer, message)
    assert read_answer(reply, size) == answer
    assert received_bytes(reply) == size
    if size:
        with pytest.raises(ReplyError, match=f"has {size} bytes"):
            read_answer(reply, size - 1)


def test_a_payload_is_bytes() -> None:
    message = Message(RecordDict(), dst_node_id=1, message_type="query")
    message.metadata.__dict__["_message_id"] = "1"
    with pytest.raises(ReplyError, match="not bytes"):
        read_answer(Message(RecordDict({"answer": ConfigRecord({"payload": "text"})}), reply_to=message), 10)
