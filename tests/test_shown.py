"""Public values in Python: their repr is a short line, and a predictor answers one text for one text."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import lora_a2
from federation import LABELS, save_data, save_model, texts
from lora_a2.core.shown import count, few
from lora_a2.tasks.base import Evaluation

LONGEST = 200


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Values as a user gets them, none of which took any training."""
    folder = tmp_path_factory.mktemp("shown")
    data = lora_a2.load_data(save_data(folder / "data.csv", 40))
    model = lora_a2.load_model(save_model(folder / "model"), labels=data.label_names)
    clients = lora_a2.make_clients(data, model, num_clients=3, partitioner="iid")
    plan = lora_a2.make_plan(model, clients, "lora-a2", num_server_rounds=2)
    state = plan.start()
    lora_a2.save_result(folder / "result", model, state)
    return {
        "data": data,
        "train": data.train,
        "written": lora_a2.load_written("shopdesk"),
        "model": model,
        "client": clients[0],
        "plan": plan,
        "state": state,
        "adapter": state.adapter,
        "factors": next(iter(state.adapter.factors.values())),
        "method": lora_a2.get_method("flora"),
        "predictor": lora_a2.load_predictor(folder / "result"),
        "evaluation": Evaluation(
            {"accuracy": 0.5},
            24,
            0.5,
            0.1,
            0.25,
            {f"client-{n}": 0.5 for n in range(99)},
            {f"client-{n}": 1 for n in range(99)},
        ),
    }


NAMES = [
    "data",
    "train",
    "written",
    "model",
    "client",
    "plan",
    "state",
    "adapter",
    "factors",
    "method",
    "predictor",
    "evaluation",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_one_short_line(values: dict[str, Any], name: str) -> None:
    line = repr(values[name])
    assert line.startswith(type(values[name]).__name__) and "\n" not in line
    assert len(line) <= LONGEST, line


def test_the_line_says_what_is_in_it(values: dict[str, Any]) -> None:
    assert "train=Examples(" in repr(values["data"]) and f"{len(LABELS)} labels" in repr(values["data"])
    assert f"{len(values['data'].train)} texts" in repr(values["train"])
    assert repr(values["adapter"]).startswith("Adapter(rank=16, lora_alpha=16, ")
    longer = replace(values["data"], label_names=tuple(f"a label with a long name, number {n}" for n in range(500)))
    assert "and 497 more" in repr(longer) and len(repr(longer)) <= LONGEST + 100
    assert few(["a", "b"]) == "a, b" and count(1, "text") == "1 text" and count(2000, "text") == "2,000 texts"


def test_a_predictor_answers_one_text_for_one_text(values: dict[str, Any]) -> None:
    predictor = values["predictor"]
    given = texts(3)
    several = predictor.predict(given)
    assert several.shape == (3, len(LABELS))
    one = predictor.predict(given[1])
    assert one.shape == (len(LABELS),) and one.dtype == np.float32
    np.testing.assert_allclose(one, predictor.predict([given[1]])[0], rtol=1e-6)
    np.testing.assert_allclose(one, several[1], rtol=1e-4)
    assert predictor.logits(given[1]).shape == (len(LABELS),)
    assert predictor.predict([]).shape == (0, len(LABELS))
    wrong: Any
    for wrong in (b"bytes", [b"bytes"], [None], [["nested"]]):
        with pytest.raises(TypeError, match="A text is a str"):
            predictor.predict(wrong)


def test_what_launch_takes_and_gives_is_public() -> None:
    """Every type of ours in the signatures of public functions, and of an observer's methods, is a public name itself."""
    functions = [getattr(lora_a2, name) for name in ("launch", "resume", "evaluate_run", "save_result", "simulate")]
    functions += [function for _, function in inspect.getmembers(lora_a2.Observer, inspect.isfunction)]
    checked = 0
    for function in functions:
        for annotation in inspect.get_annotations(function).values():
            words = set(str(annotation).replace("|", " ").replace("[", " ").replace("]", " ").replace(",", " ").split())
            own = {word for word in words if hasattr(inspect.getmodule(function), word) and word[0].isupper()}
            ours = {
                word
                for word in own
                if str(getattr(getattr(inspect.getmodule(function), word), "__module__", "")).startswith("lora_a2.")
            }
            checked += len(ours)
            assert ours <= {*lora_a2.__all__, "ReplyCallback", "ClientStates"}, (function, ours)
    assert checked > 5
