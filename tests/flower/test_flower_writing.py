"""Models that write, over nodes: the simulator's results, and scores of texts from counts alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_flower import NODES, ledger, tensors

from fake_grid import FakeGrid
from lora_a2.config.run import make_config
from lora_a2.federation.observer import Observer
from lora_a2.flower.server_app import serve
from lora_a2.methods import METHODS
from lora_a2.runs.jobs import launch
from writers import save_questions, save_writer


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run configuration on a tiny model and tiny data, in Flower's keys."""
    folder = tmp_path_factory.mktemp("writing")
    return {
        "task": "causal-lm",
        "data": str(save_questions(folder / "questions.jsonl", 30)),
        "model": str(save_writer(folder / "model")),
        "dtype": "float32",
        "num-server-rounds": 2,
        "local-epochs": 1,
        "batch-size": 4,
        "max-length": 60,
        "r": 4,
        "learning-rate": 0.02,
    }


def both(options: dict[str, Any], folder: Path, **more: Any) -> tuple[Path, Path]:
    """The run over nodes, and the simulator's."""
    grid = FakeGrid(folder / "nodes", NODES)
    run = serve(grid.courier(), {**options, "output-dir": str(folder / "run"), **more}).path
    own = {name: value for name, value in {**options, **more}.items() if name != "evaluation"}
    launch(make_config(own, {"output_dir": str(folder / "twin"), "num_clients": NODES}), Observer())
    return run, folder / "twin"


@pytest.mark.parametrize("method", METHODS)
def test_the_results_are_those_of_the_simulator(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    run, twin = both(options, tmp_path, method=method)
    files = [path.relative_to(run) for name in ("adapter", "model") for path in (run / name).glob("*.safetensors")]
    assert files
    assert all((run / name).read_bytes() == (twin / name).read_bytes() for name in files)
    for ours, theirs in zip(ledger(run), ledger(twin), strict=True):
        assert ours["uploaded_bytes"] == theirs["uploaded_bytes"]
        assert ours["metrics"]["perplexity"] == theirs["metrics"]["perplexity"]
    if not METHODS[method].private:
        assert tensors(run) == tensors(twin)


def test_nodes_score_what_the_model_writes_and_tell_counts(options: dict[str, Any], tmp_path: Path) -> None:
    """The scores of the whole corpus, from the nodes' sums, are those of a simulation that writes to the same prompts."""
    every = {"generate": 30, "num-server-rounds": 1}
    run, twin = both(options, tmp_path, evaluation="nodes", **every)
    ours, theirs = ledger(run)[-1]["metrics"], ledger(twin)[-1]["metrics"]
    for name in ("exact_match", "rouge_l", "bleu", "chrf", "token_accuracy"):
        assert ours[name] == pytest.approx(theirs[name]), name
    assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-6)


def test_a_node_of_many_examples_weighs_no_more_than_it_may(options: dict[str, Any], tmp_path: Path) -> None:
    """What is counted of its texts stays whole numbers."""
    given = {"generate": 30, "num-server-rounds": 1, "max-node-test-examples": 1}
    run = serve(
        FakeGrid(tmp_path / "nodes", NODES).courier(),
        {**options, "output-dir": str(tmp_path / "run"), "evaluation": "nodes", **given},
    ).path
    metrics = ledger(run)[-1]["metrics"]
    assert metrics["num_examples"] == NODES and 0 <= metrics["bleu"] <= 100


def test_no_text_is_in_what_the_server_keeps(options: dict[str, Any], tmp_path: Path) -> None:
    texts = [json.loads(line) for line in Path(options["data"]).read_text().splitlines()]
    run = serve(
        FakeGrid(tmp_path / "nodes", NODES).courier(),
        {**options, "output-dir": str(tmp_path / "run"), "evaluation": "nodes", "generate": 4},
    ).path
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    for row in texts:
        for text in row.values():
            assert len(text) < 6 or text.encode() not in written


def test_nodes_with_their_own_files_need_no_data_on_the_server(options: dict[str, Any], tmp_path: Path) -> None:
    run = serve(
        FakeGrid(tmp_path / "nodes", NODES).courier(),
        {
            **options,
            "output-dir": str(tmp_path / "run"),
            "server-data": False,
            "evaluation": "nodes",
            "num-clients": NODES,
        },
    ).path
    last = ledger(run)[-1]["metrics"]
    assert np.isfinite(last["perplexity"]) and last["num_examples"] > 0


def test_a_new_app_for_a_model_that_writes(tmp_path: Path) -> None:
    import importlib.util
    import tomllib

    from lora_a2.flower.new_app import write_app
    from lora_a2.flower.options import read_options

    write_app(tmp_path / "assistant", "causal-lm")
    given = tomllib.loads((tmp_path / "assistant" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config, _ = read_options(given)
    assert (config.task, config.data, config.partitioner) == ("causal-lm", "shopdesk", "iid")
    spec = importlib.util.spec_from_file_location("assistant_data", tmp_path / "assistant" / "assistant" / "data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = module.load_data(config)
    assert (len(data.train), len(data.test)) == (200, 60)
