"""FLASC's density: what travels of what there is."""

from __future__ import annotations

import pytest
from test_conformance import run

from lora_a2.errors import ConfigError
from lora_a2.methods import METHODS, get_method


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 1.0])
def test_so_much_travels_up_and_down(density: float) -> None:
    _, records, _, cohort = run(get_method("flasc", density=density), [5, 9], [[0, 1]] * 3)
    modules = cohort.federation.layout.modules
    entries = 3 * sum(m.d_out + m.d_in for m in modules)
    for record in records:
        for client in record.clients:
            assert client.uploaded_parameters == pytest.approx(density * entries + 6, abs=1)
            assert client.downloaded_parameters <= density * entries + 7


def test_a_quarter_unless_told_otherwise_and_of_no_other_method() -> None:
    assert METHODS["flasc"].density == 0.25
    with pytest.raises(ConfigError, match="density: fl-lora has no such switch; use flasc"):
        get_method("fl-lora", density=0.5)
    with pytest.raises(ConfigError, match=r"density: 0.0 should be greater than 0"):
        get_method("flasc", density=0)
