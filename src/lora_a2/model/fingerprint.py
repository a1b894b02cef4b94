"""What tells two sets of base weights apart, wherever they were loaded from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lora_a2.errors import RunError

_WITHOUT_EFFECT = frozenset(
    {
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "name_or_path",
        "use_cache",
        "id2label",
        "label2id",
    }
    | {"output_attentions", "output_hidden_states", "return_dict", "problem_type", "auto_map", "tie_word_embeddings"}
)
"""Keys of a configuration that change no hidden state."""
_TEXTS = [
    "The quick brown fox, 12.5 km!",
    "  GRÖSSE ça naïve 你好 🙂\tx\ny",
    "aaaaaaaaaa don't re-do <pad> [MASK] </s>",
]
"""What tokenizers differ in: case, accents, scripts, blanks, numbers, special tokens."""


def unused(weight: str) -> bool:
    """Whether a weight of a backbone is of its pooling layer, which has no part in token vectors."""
    return weight.startswith("pooler.")


def fingerprint(
    module: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, head: Sequence[torch.Tensor] = ()
) -> str:
    """64 hex digits (SHA-256) over the used weights and kept buffers (names, shapes, values), configuration and tokenizer.

    Taken of a backbone as `AutoModel` gives it, in float32: it does not depend on files, on their number type, or on the
    machine. `head`: weights beside the backbone that count too. All values count; a processor hashes about a gigabyte a second, less than it takes to read them. Of the
    configuration what differs from its class's defaults counts, of the tokenizer its vocabulary and what it makes of a few texts.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted((n, t) for n, t in module.state_dict().items() if not unused(n)):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, list(values.shape), str(values.dtype)]).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    for values in head:
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    config = getattr(module, "config", None)
    if isinstance(config, PretrainedConfig):
        stated = {k: v for k, v in config.to_diff_dict().items() if k not in _WITHOUT_EFFECT and not k.startswith("_")}
        digest.update(json.dumps(stated, sort_keys=True, default=str).encode())
    if tokenizer is not None:
        digest.update(json.dumps([sorted(tokenizer.get_vocab().items()), _made(tokenizer)]).encode())
    return digest.hexdigest()


def _made(tokenizer: PreTrainedTokenizerBase) -> object:
    try:
        return tokenizer(_TEXTS)["input_ids"]
    except Exception:  # one without a token for what it does not know
        return None


def require_same(model: str, found: str, expected: object, owner: str) -> None:
    """Compares the weights of a model with those that `owner`, a run or an adapter, was trained on.

    Raises:
        RunError: they are others.
    """
    if found != expected:
        raise RunError(
            f"The weights, configuration or tokenizer of {model} are not those that {owner} was trained on (fingerprint {found[:12]}; expected "
            f"{str(expected)[:12]}): restore them, or train anew."
        )
