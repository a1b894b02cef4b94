"""Language models that write, taken apart: the backbone, and the head that makes logits of its hidden states.

Shapes: H the backbone's width, V the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_a2.engine.calling import first_line, hidden_width, vocabulary_size
from lora_a2.errors import ModelError
from lora_a2.model.backbone import Backbone, find_source
from lora_a2.model.checkpoint import load_tokenizer, load_weights, read_tokenizer
from lora_a2.model.fingerprint import fingerprint
from lora_a2.model.hub import hub_or_cache
from lora_a2.tasks.causal_lm.objective import Head

_TOLERANCE = 1e-4
"""Of the logits' root mean square."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in two parts, which are parts of `whole` too.

    Attributes:
        backbone: the model without its head, in float32.
        head: how its hidden states become logits.
        whole: both together, as `AutoModelForCausalLM` gives it.
    """

    backbone: Backbone
    head: Head
    whole: PreTrainedModel

    @property
    def fingerprint(self) -> str:
        """Of its weights as they are now, those of a head that is not the embeddings' among them."""
        own = [] if self.head.tied is not None else [self.head.weight]
        values = [*own, *([] if self.head.bias is None else [self.head.bias])]
        return fingerprint(self.backbone.module, self.backbone.tokenizer, values)


def load_language_model(name: str, trust_remote_code: bool = False) -> LanguageModel:
    """The causal language model called `name`, a folder's or a hub's, in float32.

    Raises:
        ModelError: there is no such model, it has no causal head, its weights or tokenizer cannot be loaded or do not belong
            together, or its logits are not understood.
    """
    source = find_source(name, trust_remote_code)
    _require_causal(name, source.config)
    with hub_or_cache(source.where, name):
        whole = load_weights(name, source.where, trust_remote_code, auto=AutoModelForCausalLM)
        tokenizer = load_tokenizer(name, source.where, whole, trust_remote_code)
    module = whole.base_model
    assert isinstance(module, PreTrainedModel)
    whole.train(False)
    hidden_width(module)  # says why a model cannot be called at all
    revision = getattr(whole.config, "_commit_hash", None)
    found = LanguageModel(
        Backbone(source.name, module, tokenizer, "last", "", revision), find_head(whole, module), whole
    )
    return replace(found, backbone=replace(found.backbone, fingerprint=found.fingerprint))


def load_writer_tokenizer(name: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of the language model called `name`, without its weights.

    Raises:
        ModelError: there is no such model or tokenizer, or the model has no causal head.
    """
    source = find_source(name, trust_remote_code)
    _require_causal(name, source.config)
    with hub_or_cache(source.where, name):
        return read_tokenizer(name, source.where, trust_remote_code)


def _require_causal(name: str, config: PretrainedConfig) -> None:
    if type(config) not in AutoModelForCausalLM._model_mapping or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"Model {name!r} is a {config.model_type} without a causal head, which cannot write: choose a language model such as "
            "Llama, Qwen or GPT-2, or leave --task causal-lm out."
        )


@torch.no_grad()
def find_head(whole: PreTrainedModel, module: PreTrainedModel) -> Head:
    """The head, tried on two texts against the model's own logits.

    Raises:
        ModelError: no way that is known here gives these.
    """
    kind, config = type(whole).__name__, whole.config
    linear = whole.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(linear, nn.Linear):
        raise ModelError(f"{kind} has no linear layer that makes logits: choose another model.")
    words = module.get_input_embeddings()
    tied = next((n for n, p in module.named_parameters() if p is linear.weight), None)
    if getattr(config, "tie_word_embeddings", False) and tied is None:
        raise ModelError(
            f"{kind} says that its head is its embeddings' (tie_word_embeddings), but has a head of its own: set "
            "tie_word_embeddings to false in its config.json."
        )
    plain = Head(linear.weight, linear.bias, tied=tied)
    scales = [1.0]
    if (scale := getattr(config, "logit_scale", None)) is not None:
        scales.append(float(scale))
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        scales.append(1 / float(scaling))
    caps = [None, getattr(config, "final_logit_softcapping", None)]
    sentences = _sentences(whole, int(words.num_embeddings) if isinstance(words, nn.Embedding) else 0)
    try:
        expected = [whole(input_ids=s, attention_mask=torch.ones_like(s)).logits[0] for s in sentences]
        hidden = [module(input_ids=s, attention_mask=torch.ones_like(s)).last_hidden_state[0] for s in sentences]
    except Exception as error:  # each model has reasons of its own
        raise ModelError(
            f"{kind} cannot be called with token ids and an attention mask: {first_line(error)}"
        ) from error
    _refuse_looking_ahead(kind, module, sentences[0], hidden[0])
    for cap in reversed(caps):
        for scale in reversed(scales):
            head = replace(plain, softcap=cap, scale=scale)
            if all(_alike(head.logits(h), e) for h, e in zip(hidden, expected, strict=True)):
                return head
    raise ModelError(
        f"{kind} makes its logits in a way that is not known here (neither scaled nor capped): choose another model."
    )


def _alike(one: Tensor, other: Tensor) -> bool:
    scale = float(other.square().mean().sqrt())
    return one.shape == other.shape and torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * scale)


def _refuse_looking_ahead(kind: str, module: PreTrainedModel, sentence: Tensor, hidden: Tensor) -> None:
    """Refuses an encoder that only wears a causal head, such as a `BertLMHeadModel` that is not set up as a decoder."""
    other = sentence.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary_size(module)
    found = module(input_ids=other, attention_mask=torch.ones_like(other)).last_hidden_state[0]
    if not _alike(found[:-1], hidden[:-1]):
        raise ModelError(
            f"{kind} is an encoder: its tokens see those that come after them, so that it cannot write. Choose a language model."
        )


def _sentences(whole: PreTrainedModel, words: int) -> list[Tensor]:
    """Token ids (1, length) without special tokens."""
    known = [getattr(whole.config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    ids = np.setdiff1d(np.arange(words), [i for i in known if isinstance(i, int)])
    device = next(whole.parameters()).device
    return [torch.from_numpy(np.resize(ids[3:], n).astype(np.int64))[None].to(device) for n in (9, 5)]
