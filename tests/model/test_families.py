"""Which families of Transformers are packed, padded, or refused: each is tested at lengths beyond its windows.

The table in docs/models.md is written by: PYTHONPATH=tests python tests/model/test_families.py
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from families import FAMILIES, LENGTH, VOCABULARY, make
from lora_a2.core.randomness import generator
from lora_a2.engine.calling import hidden_width
from lora_a2.engine.network import Network
from lora_a2.engine.packing import Pooling
from lora_a2.engine.targets import find_target_modules
from lora_a2.errors import ModelError
from lora_a2.model.pretrained import random_head
from lora_a2.tasks.classification.objective import Classification

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
START, END = "<!-- table: written by tests/model/test_families.py -->", "<!-- end of the table -->"
PACKED = frozenset(
    {
        *("bert", "roberta", "distilbert", "mpnet", "modernbert", "gpt2", "llama", "qwen2", "qwen3", "mistral"),
        *("gemma2", "gemma3_text", "phi3"),
    }
)
"""Those that must be."""


@cache
def built(family: str, pooling: Pooling = "mean", capped: bool = False) -> Network:
    backbone = make(family)
    if capped:
        lower(backbone)
    head = random_head(3, hidden_width(backbone), 4.0, 0)
    return Network(backbone, find_target_modules(backbone), objective=Classification(head, pooling), max_length=LENGTH)


def lower(backbone: torch.nn.Module) -> None:
    """Caps attention scores so low that it shows."""
    for module in backbone.modules():
        if getattr(module, "attn_logit_softcapping", None):
            module.attn_logit_softcapping = 0.7  # type: ignore[assignment]


def status(family: str) -> tuple[str, str]:
    """Packed, padded or refused, and why."""
    try:
        classifier = built(family)
    except ModelError as error:
        return "refused", str(error)
    return ("packed", "") if classifier.batching == "packed" else ("padded", classifier.notice)


def sentences() -> list[np.ndarray]:
    rng = generator(0, "test-texts")
    return [rng.integers(3, VOCABULARY, n) for n in (3, 7, 17, 18, 40, LENGTH)]


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_of_transformers_own_model(family: str, pooling: Pooling) -> None:
    found, reason = status(family)
    assert found == "packed" or family not in PACKED
    if found == "refused":
        assert len(reason.splitlines()) == 1 and reason.endswith((".", "448"))
        return
    classifier, own = built(family, pooling), make(family)
    weight, bias = classifier.objective.head["weight"], classifier.objective.head["bias"]
    for sentence, logits in zip(sentences(), classifier.predict(None, sentences()), strict=True):
        ids = torch.from_numpy(sentence)[None]
        with torch.no_grad():
            hidden = own(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        vector = hidden.mean(0) if pooling == "mean" else hidden[-1]
        expected = (weight @ vector + bias).numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_low_caps_on_attention_scores_are_kept() -> None:
    own = make("gemma2")
    plain = own(input_ids=torch.from_numpy(sentences()[4])[None]).last_hidden_state
    lower(own)
    expected = own(input_ids=torch.from_numpy(sentences()[4])[None]).last_hidden_state.mean(1)
    classifier = built("gemma2", capped=True)
    assert classifier.batching == "packed"
    got = classifier.encode(classifier.pack([[sentences()[4]]]))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain.mean(1), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", ["roberta", "mpnet", "xlm-roberta", "bert", "gpt2"])
def test_a_literal_padding_token_has_the_place_that_transformers_gives_it(family: str) -> None:
    padding = FAMILIES[family].pad_token_id
    sentence = np.array([5, 6, padding, 7, 8, padding, padding, 9])
    others = [np.array([4, 5]), np.arange(5, 20)]
    ids = torch.from_numpy(sentence)[None]
    expected = make(family)(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1)
    classifier = built(family)
    for batch in ([sentence], [others[0], sentence], [sentence, others[1]]):
        row = [s is sentence for s in batch].index(True)
        packed = classifier.pack([batch])
        got = classifier.encode(packed)[packed.sentences.tolist().index(row)]
        torch.testing.assert_close(got[None], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [None, 0, 3, 59])
@pytest.mark.parametrize("family", ["bloom", "gptj", "xlnet", "gpt_oss", "llama", "gpt2"])
def test_room_does_not_follow_from_the_padding_token(family: str, padding: int | None) -> None:
    backbone = make(family)
    backbone.config.pad_token_id = padding
    head = random_head(3, 32, 4.0, 0)
    classifier = Network(
        backbone,
        find_target_modules(backbone),
        objective=Classification(head, "last"),
        pad_token_id=padding or 0,
        max_length=60,
    )
    assert classifier.room is None or classifier.room >= 60
    ids = np.arange(3, 59)
    alone = make(family)(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[:, -1]
    batch = classifier.pack([[ids[:4], ids]])
    beside = classifier.encode(batch)[batch.sentences.tolist().index(1)]
    torch.testing.assert_close(beside[None], alone, rtol=1e-4, atol=1e-4)


def table() -> str:
    rows = ["| family | sentences are | because |", "| --- | --- | --- |"]
    for family in sorted(FAMILIES, key=lambda f: (["packed", "padded", "refused"].index(status(f)[0]), f)):
        found, reason = status(family)
        rows.append(f"| {family} | {found} | {reason.replace('|', '/')} |")
    return "\n".join(rows)


def test_the_table_in_the_documentation_is_what_was_found() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(START)[2].partition(END)[0].strip() == table()


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.exit(0)
