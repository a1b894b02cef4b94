"""The worked example of CONTRIBUTING.md is a method like any other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from test_conformance import run

from lora_a2.methods.base import Method
from lora_a2.simulation import make_plan, simulate
from tiny import backbone, clients, model_of

GUIDE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


def example() -> tuple[str, Method]:
    """The code under the marker, and the method that it defines."""
    found = re.search(r"<!-- example: run by .*? -->\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    scope: dict[str, object] = {"__name__": "ffa_median"}
    exec(compile(found[1], str(GUIDE), "exec"), scope)
    method = scope["METHOD"]
    assert isinstance(method, Method)
    return found[1], method


def test_the_example_is_short_and_runs() -> None:
    code, method = example()
    assert len(code.splitlines()) < 60
    model, members = model_of(backbone("bert"), "bert"), clients([6, 3, 5])
    plan = make_plan(model, members, method, num_server_rounds=2, local_epochs=1, batch_size=4, r=2, rank_budget=2)
    states = [state for state, _ in simulate(model, members, plan)]
    before, after = plan.federation.initial, states[-1].adapter
    assert all(
        (after.factors[n].A == f.A).all() and (after.factors[n].B != f.B).any() for n, f in before.factors.items()
    )


def test_the_example_is_a_median() -> None:
    _, method = example()
    states, _, _, cohort = run(method, [5, 9, 2], [[0, 1, 2]])
    for name, f in states[-1].adapter.factors.items():
        ends = [
            download.adapter.factors[name].B + upload.update.factors[name].B
            for download, upload in cohort.seen.values()
        ]
        np.testing.assert_allclose(f.B, np.median(ends, axis=0), atol=1e-6)
