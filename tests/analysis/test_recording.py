"""What a run records for analysis, against dense products over the same replies, for every method."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import study_options, tiny_clients, tiny_model
from lora_a2.analysis import recording
from lora_a2.analysis.convergence import client_scores
from lora_a2.analysis.record import load_run
from lora_a2.analysis.recording import ProductSum, Recorder, gram_matrix
from lora_a2.analysis.summary import analyze
from lora_a2.cli import main
from lora_a2.config.run import RunConfig
from lora_a2.core.algebra import delta_weight
from lora_a2.core.types import Factors, Reply, ServerState, dense, weight_name
from lora_a2.federation.observer import Observer
from lora_a2.methods import METHODS
from lora_a2.methods.base import trained_adapter
from lora_a2.runs.jobs import launch
from lora_a2.simulation import make_plan, simulate
from writers import writing_options

WHOLE = [name for name, method in METHODS.items() if not (method.private or method.full)]


class Hearing(Recorder):
    """Keeps the replies of a round too."""

    heard: list[Reply]

    def begin(self) -> None:
        super().begin()
        self.heard = []

    def reply(self, reply: Reply) -> None:
        super().reply(reply)
        self.heard.append(reply)


def rounds_of(name: str, rounds: int = 3) -> list[tuple[list[Reply], ServerState, ServerState, Any]]:
    """(replies, state before, state after, analysis) of each round of a tiny run."""
    model, clients = tiny_model(), tiny_clients()
    budget = [1, 2, 3] if METHODS[name].mixed_ranks else 2
    plan = make_plan(
        model, clients, name, num_server_rounds=rounds, local_epochs=1, r=3, rank_budget=budget, learning_rate=0.01
    )
    recorder = Hearing(model.layout, plan.federation.method)
    result, state = [], plan.start()
    for new, _ in simulate(model, clients, plan, callback=recorder):
        result.append((recorder.heard, state, new, recorder.finish(state, new)))
        state = new
    return result


@pytest.mark.parametrize("name", WHOLE)
def test_similarity_and_discordance_are_those_of_dense_products(name: str) -> None:
    for replies, before, after, found in rounds_of(name):
        assert found.clients == tuple(sorted(r.profile.id for r in replies))
        if METHODS[name].asks_gradients(after.server_round):
            assert (found.discordance, found.change) == (None, None)
            continue
        replies.sort(key=lambda r: r.profile.id)
        modules = list(before.adapter.factors)
        ends = [{m: delta_weight(trained_adapter(r), m).astype(float) for m in modules} for r in replies]
        starts = [{m: delta_weight(r.download.adapter, m) for m in modules} for r in replies]
        changes = [np.concatenate([(e[m] - s[m]).ravel() for m in modules]) for e, s in zip(ends, starts, strict=True)]
        np.testing.assert_allclose(found.norms, [np.linalg.norm(c) for c in changes], rtol=1e-3)
        for cosine, (a, b) in zip(found.cosines, itertools.combinations(changes, 2), strict=True):
            assert cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=2e-3)
        weights = np.array([r.upload.num_examples for r in replies]) / sum(r.upload.num_examples for r in replies)
        lost = moved = 0.0
        for m in modules:
            new = delta_weight(after.adapter, m) + dense(after.base_update.get(weight_name(m), np.zeros(1, np.float32)))
            mean = sum(w * e[m] for w, e in zip(weights, ends, strict=True))
            lost += float(np.sum((mean - new) ** 2))
            moved += float(np.sum((new - delta_weight(before.adapter, m)) ** 2))
        assert found.discordance == pytest.approx(np.sqrt(lost), rel=2e-3, abs=2e-6)
        assert found.change == pytest.approx(np.sqrt(moved), rel=2e-3, abs=2e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_exact_methods_lose_nothing_and_averaging_both_factors_does(name: str) -> None:
    relative = [found.discordance / found.change for *_, found in rounds_of(name) if found.change is not None]
    assert relative
    if METHODS[name].exact:
        assert max(relative) < 1e-4
    elif len(METHODS[name].schedule(1)) == 2:
        assert max(relative) > 1e-3


def test_masks_are_those_uploaded() -> None:
    for replies, before, _, found in rounds_of("lora-a2"):
        modules = tiny_model().layout.modules
        assert list(before.adapter.factors) == [m.name for m in modules]
        masks = found.selected(modules)
        assert len(masks) == len(replies)
        for reply in replies:
            assert reply.upload.mask is not None
            for name, chosen in reply.upload.mask.items():
                np.testing.assert_array_equal(masks[reply.profile.id][name], chosen)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in WHOLE])
def test_what_the_server_cannot_see_is_not_recorded(name: str) -> None:
    for *_, found in rounds_of(name, rounds=2):
        assert len(found.clients) == 3
        assert (found.norms, found.cosines, found.discordance, found.change) == ((), (), None, None)


def test_pairs_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_PAIRED", 2)
    for *_, found in rounds_of("ffa-lora", rounds=1):
        assert (len(found.clients), len(found.norms), len(found.cosines)) == (3, 2, 1)
        assert found.discordance is not None


@given(
    ranks=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_gram_matrix_is_that_of_products(ranks: list[int], shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    changes = [(rng.standard_normal((shape[0], r)), rng.standard_normal((r, shape[1]))) for r in ranks]
    products = [left @ right for left, right in changes]
    found = gram_matrix(changes)  # type: ignore[arg-type]
    for i, j in itertools.product(range(len(ranks)), repeat=2):
        assert found[i, j] == pytest.approx(np.sum(products[i] * products[j]), abs=1e-9)


@given(
    trained=st.sampled_from([frozenset("A"), frozenset("B"), frozenset("AB")]),
    ranks=st.lists(st.integers(1, 2), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_product_sum_is_the_sum_of_products(trained: Any, ranks: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    common = {r: (rng.standard_normal((r, 3), np.float32), rng.standard_normal((4, r), np.float32)) for r in (1, 2)}
    total, expected = ProductSum(), np.zeros((4, 3))
    for c, r in enumerate(ranks, start=1):
        a = rng.standard_normal((r, 3), np.float32) if "A" in trained else common[r][0]
        b = rng.standard_normal((4, r), np.float32) if "B" in trained else common[r][1]
        total.add(c, Factors(A=a, B=b), trained)
        expected += c * b.astype(float) @ a
    np.testing.assert_allclose(total.total(), expected, atol=1e-9)
    assert total.square() == pytest.approx(np.sum(expected**2), abs=1e-9)
    total.add_dense(2, np.ones((4, 3), np.float32))
    assert total.square() == pytest.approx(np.sum((expected + 2) ** 2), abs=1e-9)


def test_many_terms_are_added_up_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_MAX_RANK", 3)
    test_product_sum_is_the_sum_of_products.hypothesis.inner_test(frozenset("AB"), [1, 2, 1, 1, 2, 2, 1], 0)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return study_options(tmp_path_factory.mktemp("study"), num_clients=3)


def test_a_run_is_read_back_and_analysed(study: dict[str, Any], tmp_path: Path) -> None:
    summary = launch(RunConfig(**study, output_dir=str(tmp_path / "run")), Observer())
    run = load_run(tmp_path / "run")
    assert [a.server_round for a in run.analyses] == [1, 2]
    assert all("analysis" in r.seconds for r in run.rounds)
    assert run.label_counts.sum() == sum(c.num_examples for c in run.rounds[0].clients)
    assert run.label_counts.shape == (3, 3)
    found = analyze(run)
    assert found["accuracy"] == summary.score
    assert set(found["selected_ranks"]) == {"0", "1"}
    assert max(found["relative_discordance"].values()) < 1e-4
    assert json.loads(json.dumps(found)) == found


def test_off_it_leaves_no_file_and_changes_no_result(study: dict[str, Any], tmp_path: Path) -> None:
    launch(RunConfig(**study, output_dir=str(tmp_path / "on")), Observer())
    launch(RunConfig(**study, record_analysis=False, output_dir=str(tmp_path / "off")), Observer())
    on, off = ({p.relative_to(tmp_path / x) for p in (tmp_path / x).rglob("*")} for x in ("on", "off"))
    assert on - off == {Path("clients.json"), Path("analysis.jsonl"), Path("analysis.sha256")}
    tensors = "checkpoint/round-00002.safetensors"
    assert (tmp_path / "on" / tensors).read_bytes() == (tmp_path / "off" / tensors).read_bytes()
    found = analyze(load_run(tmp_path / "off"))
    assert (found["updates"], found["discordance"]) == (None, None)
    assert found["selected_ranks"]["1"]


def test_analyze_prints_one_run_or_a_table_of_several(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"lora-a2": "ours", "ffa-lora": "theirs"}
    for method, name in names.items():
        launch(RunConfig(**study, method=method, output_dir=str(tmp_path / "c" / name)), Observer())
    (tmp_path / "c" / "compare.json").write_text(json.dumps({key: {} for key in [*names.values(), "later"]}))
    ours = tmp_path / "c" / "ours"
    assert main(["analyze", str(ours)]) == 0
    printed = capsys.readouterr().out
    for part in ("Discordance / change", "Selected ranks of two clients", "Updates of two clients", "Layer"):
        assert part in printed
    assert main(["analyze", str(ours), "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one == analyze(load_run(ours))
    assert main(["analyze", str(tmp_path / "c"), "--json"]) == 0
    several = json.loads(capsys.readouterr().out)["runs"]
    assert [Path(found["run"]).name for found in several] == list(names.values())
    assert several[0] == one
    assert main(["analyze", str(tmp_path / "c")]) == 0
    assert "theirs" in capsys.readouterr().out
    assert main(["analyze", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_a_model_that_writes_is_analyzed_by_its_perplexity(
    study: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, and beside a classifier, each in a column of its own."""
    options = writing_options(tmp_path)
    summary = launch(RunConfig(**options, method="lora-a2", output_dir=str(tmp_path / "writer")), Observer())
    run = load_run(tmp_path / "writer")
    assert run.clients == run.label_names == ()
    found = analyze(run)
    assert found["perplexity"] == summary.metrics["perplexity"] == run.rounds[-1].metrics["perplexity"]
    assert found["clients"]["worst_tenth"] == max(run.rounds[-1].metrics["per_client"].values())
    assert main(["analyze", str(tmp_path / "writer")]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"Perplexity\s+(\S+)\n", printed) == [f"{found['perplexity']:.2f}"]
    assert re.findall(r"Worst tenth of clients\s+(\S+)\n", printed) == [f"{found['clients']['worst_tenth']:.2f}"]
    assert "alike on average" in printed
    assert "Accuracy" not in printed
    other = launch(RunConfig(**study, method="ffa-lora", output_dir=str(tmp_path / "labels")), Observer())
    assert main(["analyze", str(tmp_path / "writer"), str(tmp_path / "labels")]) == 0
    lines = [row.split() for row in capsys.readouterr().out.splitlines()]
    (head,) = (row for row in lines if row[:1] == ["Run"])
    assert head[1:3] == ["Perplexity", "Accuracy"]
    (ours,) = (row for row in lines if row[:1] == ["writer"])
    (theirs,) = (row for row in lines if row[:1] == ["labels"])
    assert ours[1] == f"{found['perplexity']:.2f}"
    assert theirs[1:3] == [f"{100 * (other.metrics['accuracy'] or 0):.1f}", "%"]


def test_users_are_clients_end_to_end(study: dict[str, Any], tmp_path: Path) -> None:
    """A client column: every user its own accuracy, and the worst tenth of them."""
    texts = Path(study["data"]).read_text().splitlines()
    rows = [f"{line},user{k % 5}" for k, line in enumerate(texts[1:] * 3)]
    (tmp_path / "tweets.csv").write_text("text,label,user\n" + "\n".join(rows) + "\n")
    options = {k: v for k, v in study.items() if k != "num_clients"} | {"data": str(tmp_path / "tweets.csv")}
    options |= {"client_column": "user", "min_client_examples": 5, "fraction_train": 0.6}
    summary = launch(RunConfig(**options, output_dir=str(tmp_path / "run")), Observer())
    run = load_run(tmp_path / "run")
    assert sorted(client.name for client in run.clients) == [f"user{k}" for k in range(5)]
    assert [len(record.clients) for record in run.rounds] == [3, 3]
    accuracies = client_scores(run)
    assert set(accuracies.index) == {client.name for client in run.clients}
    assert summary.metrics["client_worst_tenth"] == accuracies.min()
    assert analyze(run)["clients"]["worst_tenth"] == accuracies.min()
