"""Tiny random models that write, and a tokenizer of bytes for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from families import FAMILIES

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SINGLE = [bytes([b]) for b in b"abcdefghijklmnopqrstuvwxyz .,\n"]
PIECES = [*SINGLE, *(bytes([b]) for b in sorted({*"é犬".encode()})), b" the", b"ing"]


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Ids 0 to 2 are padding, beginning and end; 3 to 6 are those of the template; then pieces of bytes."""
    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    vocabulary = {name: i for i, name in enumerate(special)}
    for piece in PIECES:
        vocabulary["".join(_LETTERS[b] for b in piece)] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], fuse_unk=False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[3:],
    )
    made.chat_template = template
    return made


def _letters() -> dict[int, str]:
    """GPT-2's letters for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


_LETTERS = _letters()


def writer(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model whose weights are spread, so that what it writes depends on what it reads."""
    config = copy.deepcopy(FAMILIES[family])
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()
