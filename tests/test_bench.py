"""The pure parts of the benchmarks: figures' lines, floors, pairs, the table, the exchange with the peers, the profile's groups."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange import ClientData, Settings, Workload, padded, read_workload, write_workload
from figures import FIGURES, Floors, fallen, floor, line, missing_line, reached
from gemm import floor_seconds
from lora_a2.simulation import make_plan
from memory import small_client
from ours import bare_round, results, rounds
from pairs import Measured, alternating
from peers.process import OWN_PLACE, SIDE_BY_SIDE, PeerError, started
from profile_step import GROUPS, kind
from records import command, merge, origin, origins, processor, table
from setups import GATE, GateError, Setup, difference
from table import BEGIN, END, PAGE, fill
from tiny import backbone, clients, model_of

S_CPU, R = FIGURES["S_cpu"], FIGURES["R"]


def test_a_figure_is_a_line() -> None:
    assert line(S_CPU, [7.83, 8.3, 8.61]) == "S_cpu 8.3 (goal ≥ 10) [7.83 … 8.61]"
    assert line(R, [0.971]) == "R 0.971 (goal ≤ 1) [0.971 … 0.971]"
    assert line(FIGURES["S_roberta"], [9, 8, 10]) == "S_roberta 9 (no goal) [8 … 10]"
    assert (
        missing_line(FIGURES["S_gpu"], "needs --device cuda") == "S_gpu not measured (goal ≥ 30): needs --device cuda"
    )


def test_the_figures_are_those_of_the_goals() -> None:
    goals = {name: (f.goal, f.at_least) for name, f in FIGURES.items() if f.goal is not None}
    assert goals == {
        "S_cpu": (10, True),
        "S_cpu_bf16": (5, True),
        "S_p1": (8, True),
        "S_p2": (8, True),
        "U_cpu": (0.6, True),
        "R": (1.0, False),
        "overhead": (0.03, False),
        "S_gpu": (30, True),
        "memory": (1.1, False),
        "S_lm": (4, True),
        "S_lm_bf16": (2.5, True),
        "U_lm": (0.6, True),
        "memory_lm": (0.5, False),
        "generate": (1.05, False),
    }


def test_goals_have_a_side() -> None:
    assert reached(S_CPU, [10, 9, 11]) and not reached(S_CPU, [9.9])
    assert reached(R, [1.0]) and not reached(R, [1.01])
    assert reached(FIGURES["S_roberta"], [0.1])


values = st.lists(st.floats(0.1, 100), min_size=1, max_size=7)


@given(st.sampled_from(sorted(FIGURES)), values)
def test_an_accepted_run_passes_its_own_floor_and_each_of_its_pairs_does(name: str, found: list[float]) -> None:
    figure = FIGURES[name]
    limit = floor(figure, found)
    assert not fallen(figure, found, limit)
    assert not any(fallen(figure, [value], limit) for value in found)
    far = [value / 2 - 1 if figure.at_least else value * 2 + 1 for value in [limit]]
    assert fallen(figure, far, limit)


def test_the_floor_is_the_worst_pair_but_no_closer_than_the_slack() -> None:
    assert floor(S_CPU, [8.0, 7.0, 9.0]) == 7.0
    assert floor(S_CPU, [8.0]) == pytest.approx(7.6)
    assert floor(R, [1.0, 1.3]) == 1.3
    assert floor(FIGURES["overhead"], [0.01]) == pytest.approx(0.03)


def test_floors_are_kept_and_complain(tmp_path: Path) -> None:
    path = tmp_path / "floors.json"
    assert Floors.read(path).complaints({"S_cpu": [0.1]}) == []
    first = Floors.read(path).accepted({"S_cpu": [8.0, 7.0, 9.0], "R": [1.0]}, "one")
    first.accepted({"R": [2.0]}, "other").write(path)
    kept = Floors.read(path)
    assert kept.floors == {"S_cpu": 7.0, "R": pytest.approx(2.1)}
    assert kept.processors == {"S_cpu": "one", "R": "other"}
    assert kept.complaints({"S_cpu": [7.0], "R": [2.1], "U_cpu": [0.0]}) == []
    (text,) = kept.complaints({"S_cpu": [6.9, 6.8, 20.0], "R": [2.0]})
    assert text == "S_cpu 6.9 is below the floor of 7 from the last accepted run, on one."
    (text,) = kept.complaints({"R": [2.2]})
    assert text == "R 2.2 is above the floor of 2.1 from the last accepted run, on other."


def test_pairs_alternate_and_divide(capsys: pytest.CaptureFixture[str]) -> None:
    turns: list[str] = []

    def timed(name: str, seconds: float) -> float:
        turns.append(name)
        return seconds

    found = alternating(("a", "b"), lambda: timed("a", 6.0), lambda: timed("b", 2.0), 3)
    assert turns == ["a", "b", "b", "a", "a", "b"]
    assert found.values == [3.0] * 3
    assert found.seconds == {"a": [6.0] * 3, "b": [2.0] * 3}
    assert capsys.readouterr().err.count("pair") == 3


def test_results_merge_and_make_the_page(tmp_path: Path) -> None:
    path = tmp_path / "results" / "benchmarks.json"
    about = origin({"clients": 4, "data": Path("/somewhere")}, None)
    assert about["options"] == {"clients": 4} and about["processor"] == processor()
    merge(path, {"R": Measured([1.1]), "S_cpu": Measured([9.0])}, about)
    merge(path, {"S_cpu": Measured([10.0, 12.0, 11.0], {"ours": [1.0]}, {"gate": 1e-5})}, about)
    entries = json.loads(path.read_text())
    assert list(entries) == ["S_cpu", "R"]
    assert entries["S_cpu"]["median"] == 11 and entries["S_cpu"]["facts"] == {"gate": 1e-5}
    rows = table(entries).splitlines()
    assert len(rows) == 2 + len(FIGURES)
    assert f"| 11 | 10 … 12 | ≥ 10 | yes | {about['date']} |" in rows[2]
    assert "| not measured | | ≥ 5 | | |" in rows[3]
    assert "| 1.1 | 1.1 … 1.1 | ≤ 1 | no |" in table(entries)
    (run,) = origins(entries).splitlines()
    assert run.startswith("- `S_cpu`, `R`: `python benchmarks/run.py") and "torch 2" in run
    page = fill(f"before\n{BEGIN}\nold\n{END}\nafter\n", entries)
    assert page.startswith("before\n") and page.endswith(f"{END}\nafter\n") and "old" not in page
    assert fill(page, entries) == page


def test_commands_name_no_place_of_this_machine() -> None:
    shown = "python benchmarks/run.py --data BANKING77_FOLDER --only R"
    assert command(["benchmarks/run.py", "--data", "elsewhere/banking77", "--only", "R"]) == shown


def test_the_page_names_every_figure_and_can_be_filled() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert all(f"`{name}`" in page for name in FIGURES)


def workload() -> Workload:
    settings = Settings("folder", ("m",), 2, 16.0, "mean", 0, 32, 2e-3, 0.01, "cpu")
    clients = tuple(
        ClientData(tuple(np.arange(1, n + 1) for n in lengths), np.arange(len(lengths))) for lengths in ([3, 1, 5], [2])
    )
    start = {"A/m": np.ones((2, 3), np.float32), "B/m": np.zeros((4, 2), np.float32)}
    return Workload(settings, clients, start, {"weight": np.ones((3, 4), np.float32)})


def test_the_exchange_loses_nothing(tmp_path: Path) -> None:
    given_, tokens = workload(), 11
    write_workload(tmp_path, given_)
    read = read_workload(tmp_path)
    assert read.settings == given_.settings and read.tokens == given_.tokens == tokens
    for ours, theirs in zip(given_.clients, read.clients, strict=True):
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert [s.tolist() for s in ours.sentences] == [s.tolist() for s in theirs.sentences]
    for ours_, theirs_ in ((given_.start, read.start), (given_.head, read.head)):
        assert ours_.keys() == theirs_.keys()
        for name in ours_:
            np.testing.assert_array_equal(ours_[name], theirs_[name])


def test_padding_is_dynamic() -> None:
    ids, mask = padded([np.array([5, 6, 7]), np.array([8])], 1)
    np.testing.assert_array_equal(ids, [[5, 6, 7], [8, 1, 1]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0]])


def gated(together: float, each: list[float]) -> Setup:
    setup = Setup.__new__(Setup)
    setup.gates = {}
    arrays = [{"A/m": np.full((2, 3), value, np.float32)} for value in (together, *each)]
    setup.__dict__["exact"] = (arrays[0], arrays[1:])
    return setup


def test_the_gate_compares_each_client_or_the_aggregate() -> None:
    setup = gated(2.0, [1.0, 3.0])
    setup.check("loop", {"0/A/m": np.full((2, 3), 1.0), "1/A/m": np.full((2, 3), 3.0 * (1 + GATE / 2))})
    assert 0 < setup.gates["loop"] < GATE
    setup.check("simulator", {"A/m": np.full((2, 3), 2.0)})
    with pytest.raises(GateError, match=r"loop differ by .* nothing is timed"):
        setup.check("loop", {"0/A/m": np.full((2, 3), 1.0), "1/A/m": np.full((2, 3), 3.1)})
    with pytest.raises(GateError):
        setup.check("simulator", {"A/m": np.full((2, 3), np.nan)})
    assert difference(np.array([3.0, 0.0]), np.array([0.0, 4.0])) == pytest.approx(5 / 4)


def test_a_peer_that_dies_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(PeerError, match=r"(?s)nobody ended with 1.*No module named 'peers.nobody'"),
        started("nobody", tmp_path),
    ):
        pass
    assert SIDE_BY_SIDE < OWN_PLACE


def test_the_floor_under_a_step_counts_forward_and_backward() -> None:
    assert floor_seconds([(3, 5), (2, 4)], tokens=7, rate=11.0) == pytest.approx(4 * 23 * 7 / 11)


def test_small_clients_have_sentences_of_their_own() -> None:
    sentences = tuple(np.full(k + 1, k) for k in range(40))
    clients = [small_client(k, sentences, np.arange(40)) for k in range(10)]
    assert [label for c in clients for label in c.train.labels] == list(range(40))
    assert [s.tolist() for c in clients for s in c.train.input_ids] == [s.tolist() for s in sentences]


@pytest.mark.parametrize(
    ("name", "above", "shapes", "group"),
    [
        ("aten::addmm", ["aten::linear"], [[1536], [576, 384], [384, 1536]], "base GEMMs"),
        ("aten::bmm", ["_LoraProducts"], [[1, 576, 384], [1, 384, 8]], "LoRA products"),
        ("aten::bmm", ["_PackedAttention"], [[384, 27, 32], [384, 32, 27]], "attention"),
        ("lora_a2::attention", [], [], "attention"),
        ("_CompiledAttentionBackward", [], [], "attention"),
        ("_TabulatedBackward", [], [], "element-wise"),
        ("mkldnn::_linear_pointwise", ["_LoraProducts"], [[576, 384], [1536, 384]], "base GEMMs"),
        ("aten::_softmax", [], [[384, 27, 27]], "attention"),
        ("aten::gelu", [], [[576, 1536]], "element-wise"),
        ("aten::index_select", [], [], "gathers and copies"),
        ("aten::view", ["_PackedAttention"], [], "dispatch"),
        ("_LoraProductsBackward", [], [], "LoRA products"),
        ("_ProductBackward", [], [], "dispatch"),
        ("autograd::engine::evaluate_function: _LoraProductsBackward", [], [], "dispatch"),
    ],
)
def test_operations_have_a_group(name: str, above: list[str], shapes: list[list[int]], group: str) -> None:
    assert kind(name, above, shapes) == group
    assert group in GROUPS


def test_every_figure_has_a_measure() -> None:
    from measures import MEASURES

    assert MEASURES.keys() == FIGURES.keys()


def test_the_machine_is_named() -> None:
    assert re.search(r"family \d+ model \d+", processor())
    assert SimpleNamespace(**origin({}, "a GPU")).accelerator == "a GPU"


@pytest.mark.parametrize("method", ["fl-lora", "lora-a2"])
def test_our_side_of_the_timings(method: str) -> None:
    """Rounds, bare training, and what the server sees of each client, of a tiny model."""
    model = model_of(backbone("bert"), "bert")
    members = clients([5, 3])
    plan = make_plan(model, members, method, num_server_rounds=3, local_epochs=1, r=2, rank_budget=2, num_workers=1)
    assert rounds(model, members, plan, count=2) > 0
    assert bare_round(model, members, plan) > 0
    together, each = results(model, members, plan)
    assert len(each) == 2
    weights = np.array([5, 3]) / 8
    for name, value in together.items():
        np.testing.assert_allclose(value, sum(w * own[name] for w, own in zip(weights, each, strict=True)), atol=1e-5)
