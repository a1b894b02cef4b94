"""The stored shapes of known models are those of the models themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import lora_a2
from federation import save_model
from lora_a2.engine.targets import layers_of
from lora_a2.errors import ModelError
from lora_a2.model.catalog import full_parameters, meta_backbone, model_config
from lora_a2.model.names import ALIASES, BUILT_IN, canonical, nearest, spelled
from lora_a2.model.shapes import SHAPES_FILE, ModelShape, model_shape, packed

FILE = Path(lora_a2.__file__).parent / "model" / SHAPES_FILE


def built(name: str) -> ModelShape:
    config = model_config(name)
    return ModelShape(layers_of(meta_backbone(config)), full_parameters(config))


def test_every_known_model_has_a_row() -> None:
    assert list(json.loads(FILE.read_text("utf-8"))) == list(BUILT_IN), f"run: python {Path(__file__).name}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_stored_shape_is_that_of_the_model(name: str) -> None:
    stored, real = model_shape(name), built(name)
    assert stored.full_parameters == real.full_parameters
    assert list(stored.layers.linear.items()) == list(real.layers.linear.items())
    assert list(stored.layers.blocks) == list(real.layers.blocks)


def test_a_folder_s_shape_is_read_from_its_configuration(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    folder = str(tmp_path / "model")
    assert model_shape(folder) == built(folder)
    with pytest.raises(ModelError, match="no such folder"):
        model_shape(str(tmp_path / "other"))


@pytest.mark.parametrize("name", [*BUILT_IN, *ALIASES])
def test_a_known_name_may_be_typed_in_any_case(name: str) -> None:
    assert spelled(name.upper()) == spelled(name.lower()) == spelled(name) == name
    assert canonical(name.upper()) == canonical(name) in BUILT_IN


def test_other_names_stay_as_they_are() -> None:
    for name in ("./Roberta-Base", "someone/Model", ""):
        assert spelled(name) == canonical(name) == name
    assert nearest("Robrta-Base") == "Did you mean 'roberta-base'?"


if __name__ == "__main__":
    rows = [f"{json.dumps(name)}: {json.dumps(packed(built(name)))}" for name in BUILT_IN]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
