"""Names in any case mean what they mean: on the command line, in files, and in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_a2.config.run import RunConfig, make_config
from lora_a2.core.names import known_name
from lora_a2.core.optimizers import OPTIMIZERS
from lora_a2.data.finding import find_tables
from lora_a2.errors import ConfigError
from lora_a2.federation.probes import PROBES
from lora_a2.methods import METHODS, get_method
from lora_a2.model.names import ALIASES, BUILT_IN
from lora_a2.settings.task import TASKS
from lora_a2.tasks.registry import get_task
from lora_a2.trackers import TRACKERS, known_trackers

WORDS: list[tuple[str, str]] = [
    *(("method", name) for name in METHODS),
    *(("task", name) for name in TASKS),
    *(("model", name) for name in (*BUILT_IN, *ALIASES)),
    *(("server_optimizer", name) for name in OPTIMIZERS),
    *(("partitioner", name) for name in ("iid", "dirichlet", "label-shards", "pathological")),
    *(("probe", name) for name in PROBES),
    *(("criterion", name) for name in METHODS["lora-a2"].options[0].choices),
    *(("rank_budget", name) for name in ("uniform", "heavy-tail", "normal")),
    *(("wire_dtype", name) for name in ("fp32", "bf16")),
    *(("dtype", name) for name in ("auto", "float32", "bfloat16")),
    *(("pooling", name) for name in ("mean", "cls", "last")),
    ("head", "native"),
    ("train_on", "all"),
    ("lr_scheduler_type", "cosine"),
]
NEEDED: dict[str, dict[str, Any]] = {"train_on": {"task": "causal-lm"}, "rank_budget": {"r": 16}}


@pytest.mark.parametrize(("option", "name"), WORDS)
def test_any_case(option: str, name: str) -> None:
    for typed in (name, name.upper(), name.title(), name.swapcase()):
        config = make_config({}, {option: typed, **NEEDED.get(option, {})})
        assert getattr(config, option) == name
        assert make_config({option.replace("_", "-"): typed, **NEEDED.get(option, {})}, {}) == config


@pytest.mark.parametrize("name", METHODS)
def test_methods_with_underscores(name: str) -> None:
    assert get_method(name.replace("-", "_").title()) is METHODS[name]
    assert RunConfig(method=name.replace("-", "_")).method == name


def test_python_s_own_ways() -> None:
    assert METHODS["lora-a2"].options[0].check("Magnitude") == "magnitude"
    with pytest.raises(ConfigError, match="criterion: 'Nope' is not one of"):
        get_method("LoRA-A2", criterion="Nope")
    assert get_task("Causal_LM") is get_task("causal-lm")
    assert known_trackers(["None", "TensorBoard"]) == (next(iter(TRACKERS)),)
    assert find_tables("HelpDesk").name == "helpdesk"


def test_a_folder_comes_before_a_name_of_other_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "GPT2").mkdir()
    assert RunConfig(model="GPT2").model == "GPT2"
    assert RunConfig(model="Gpt2").model == "gpt2"


def test_a_wrong_name_stays_wrong_as_it_was_typed() -> None:
    assert known_name("Nope", METHODS) == "Nope"
    with pytest.raises(ConfigError, match=r"method: Unknown method 'LoRA-A3'\. Did you mean 'lora-a2'\?"):
        RunConfig(method="LoRA-A3")
    with pytest.raises(ConfigError, match="pooling: 'Max' is not one of"):
        RunConfig.model_validate({"pooling": "Max"})
