"""The classification head of a model's own architecture, as `AutoModelForSequenceClassification` computes it.

No family is spelt out here. The model's own class runs, with a stand-in for its backbone that hands it sentence vectors as the hidden
states of sentences of one token; what then enters the last linear layer are its features. Which token vector the head reads, and
through which pooling layer of the backbone, is found by trial: on two texts the logits have to be those of the whole model.

Shapes: N sentences, H the backbone's width, F the features, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from lora_a2.core.randomness import generator
from lora_a2.core.types import FloatArray
from lora_a2.engine.calling import first_line, vocabulary_size
from lora_a2.engine.packing import Pooling
from lora_a2.errors import ModelError
from lora_a2.model.catalog import has_optional_pooling
from lora_a2.model.checkpoint import some
from lora_a2.model.given import label_rows

_TOLERANCE = 1e-4
"""Of the logits' root mean square."""
_INSTEAD = "choose --head linear"
_Pooler = Callable[[Any, Tensor], Tensor]
_POOLERS: tuple[tuple[str, _Pooler], ...] = (
    ("pooler", lambda base, hidden: base.pooler(hidden)),
    ("pooler", lambda base, hidden: base.pooler_activation(base.pooler(hidden[:, 0]))),
)
"""How a backbone that has a pooling layer makes its `pooler_output`, and where that layer is."""


@dataclass(frozen=True)
class NativeHead:
    """A head apart from its backbone. Names of tensors are those of the whole model.

    Attributes:
        prefix: the backbone's name in the whole model, such as "roberta".
        pooling: the token vector that the head reads.
        strips_padding: padding tokens at a text's end are passed over.
        features: (N, H) → (N, F) float32, everything but the last layer.
        last: the last layer's name.
        values: its weight (C, F) and, if it has one, its bias (C,).
        earlier: all other weights of the head, by name.
        modules: the parts of the whole model that hold all these, by name.
    """

    prefix: str
    pooling: Pooling
    strips_padding: bool
    features: nn.Module
    last: str
    values: dict[str, FloatArray]
    earlier: dict[str, FloatArray]
    modules: tuple[str, ...]

    def tensors(self, values: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """All weights of the head by name, with these values of the last layer."""
        return dict(sorted({**self.earlier, **{f"{self.last}.{name}": v for name, v in values.items()}}.items()))


@dataclass(frozen=True)
class Start:
    """Where the weights of a head come from.

    Attributes:
        labels: C class names.
        seed: of what is drawn.
        scale: standard deviation of the last layer's drawn weights times √F.
        values: all of them, by name; None: the checkpoint's, and what that lacks is drawn. Its last layer counts if its classes are
            these, in any order.
    """

    labels: Sequence[str]
    seed: int
    scale: float
    values: Mapping[str, FloatArray] | None = None


class _Outputs(BaseModelOutputWithPoolingAndCrossAttentions):
    """What a backbone gives; whatever else a head passes on is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _StandIn(nn.Module):
    """In the backbone's place: gives the vectors (N, H) that it holds as hidden states (N, 1, H)."""

    def __init__(self, base: nn.Module, where: str | None, pooler: _Pooler | None) -> None:
        super().__init__()
        self._pool = pooler
        self.vectors: Tensor | None = None
        if where is not None:
            self.pooler = copy.deepcopy(base.get_submodule(where))
        if hasattr(base, "pooler_activation"):
            self.pooler_activation = base.pooler_activation

    def forward(self, *args: Any, **kwargs: Any) -> _Outputs:
        assert self.vectors is not None, "features hold them"
        hidden = self.vectors[:, None]
        return _Outputs(
            last_hidden_state=hidden,
            pooler_output=None if self._pool is None else self._pool(self, hidden),
        )


class Features(nn.Module):
    """What enters the last layer of a head, (N, F) float32, of sentence vectors (N, H).

    Args:
        whole: the model, with a stand-in for its backbone.
        stand_in: that.
        last: the last layer.
        token: any token but padding.
    """

    def __init__(self, whole: PreTrainedModel, stand_in: _StandIn, last: nn.Linear, token: int) -> None:
        super().__init__()
        self.whole, self._stand_in, self._last, self._token = whole, stand_in, last, token

    def forward(self, vectors: Tensor) -> Tensor:
        found: list[Tensor] = []
        handle = self._last.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
        self._stand_in.vectors = vectors
        ids = torch.full((len(vectors), 1), self._token, device=vectors.device)
        try:
            self.whole(input_ids=ids, attention_mask=torch.ones_like(ids))
        finally:
            handle.remove()
            self._stand_in.vectors = None
        return found[0].reshape(len(vectors), -1)


def prefix_of(whole: PreTrainedModel) -> str:
    """The name of the backbone in the whole model.

    Raises:
        ModelError: the whole model is its own backbone.
    """
    for name, module in whole.named_children():
        if module is whole.base_model:
            return name
    raise ModelError(f"{type(whole).__name__} has no backbone apart from its head: {_INSTEAD}.")


def head_weights(whole: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The weights outside of the backbone, and those of its pooling layer, by name."""
    prefix = prefix_of(whole)
    return {
        n: p for n, p in whole.named_parameters() if not n.startswith(f"{prefix}.") or n.startswith(f"{prefix}.pooler.")
    }


@torch.no_grad()
def take_head(
    whole: PreTrainedModel, new: frozenset[str], known: Sequence[str] | None, pad_token_id: int, start: Start
) -> NativeHead:
    """Takes the head off `whole`, which has a stand-in for its backbone afterwards; the backbone loses its pooling layer if the
    head has that.

    Args:
        whole: in float32, with C classes.
        new: names of the weights that no checkpoint gave values to.
        known: the class names of the checkpoint's last layer; None: it has none.
        pad_token_id: the tokenizer's.
        start: where the weights come from.

    Raises:
        ModelError: the head is not understood, or `start.values` are not for it.
    """
    base, prefix = whole.base_model, prefix_of(whole)
    assert isinstance(base, PreTrainedModel)
    whole.requires_grad_(False)
    whole.train(False)
    whole.config = copy.deepcopy(base.config)
    whole.config.get_text_config().pad_token_id = pad_token_id
    name, last = _last_layer(whole, prefix, len(start.labels))
    if start.values is None:
        kept = known is not None and not any(n.startswith(f"{name}.") for n in new)
        _draw(whole, name, new, label_rows(known or (), start.labels) if kept else None, start)
    else:
        fill(whole, start.values)
    weights = {n: p.clone() for n, p in head_weights(whole).items()}
    for n, p in head_weights(whole).items():
        if p.ndim > 1:  # of zeros every pooling would give the same
            p.copy_(_gaussian(0, f"trial {n}", p, 1 / np.sqrt(p.shape[1])))
    where, pooling, strips, features = _try(whole, base, last, pad_token_id)
    if has_optional_pooling(base.config):
        setattr(base, "pooler", None)  # noqa: B010 (no tensor)
    held = {n: p for n, p in whole.named_parameters() if n in weights}
    for n, p in held.items():
        p.copy_(weights[n])
    tensors = {n: p.numpy().copy() for n, p in held.items()}
    if start.values is not None and (lacking := tensors.keys() - start.values.keys()):
        raise ModelError(f"The head's weights lack {some(lacking)}, which a {type(whole).__name__} has.")
    values = {n: tensors.pop(f"{name}.{n}") for n in ("weight", "bias") if f"{name}.{n}" in tensors}
    parts = [n for n, m in whole.named_children() if n != prefix and any(True for _ in m.parameters())]
    parts += [f"{prefix}.{where}"] if where is not None else []
    return NativeHead(prefix, pooling, strips, features, name, values, tensors, tuple(parts))


def _try(
    whole: PreTrainedModel, base: PreTrainedModel, last: nn.Linear, pad_token_id: int
) -> tuple[str | None, Pooling, bool, Features]:
    """Where the backbone's pooling layer is, if the head has it; what the head reads; whether it passes over padding at the end of a
    sentence; its features. A stand-in is in the backbone's place afterwards.

    Raises:
        ModelError: no way that is known here gives the model's own logits.
    """
    kind, prefix, sentences = type(whole).__name__, prefix_of(whole), _sentences(base)
    try:
        expected = [_logits(whole, ids) for ids in sentences]
        hidden = [
            base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].float() for ids in sentences
        ]
    except Exception as error:  # each model has reasons of its own
        raise ModelError(
            f"{kind} cannot be called with token ids and an attention mask: {first_line(error)}; {_INSTEAD}."
        ) from error
    strips = _alike(_logits(whole, torch.cat([sentences[0], torch.tensor([[pad_token_id]])], 1)), expected[0])
    has_pooler = getattr(base, "pooler", None) is not None
    for where, pooler in ((None, None), *(_POOLERS if has_pooler else ())):
        stand_in = _StandIn(base, where, pooler)
        setattr(whole, prefix, stand_in)
        features = Features(whole, stand_in, last, int(sentences[0][0, 0]))
        for pooling in get_args(Pooling):
            if all(_gives(features, last, _pooled(h, pooling), e) for h, e in zip(hidden, expected, strict=True)):
                return where, pooling, strips and pooling == "last", features
        setattr(whole, prefix, base)
    raise ModelError(
        f"The head of {kind} does not make its logits of the mean, the first or the last token vector alone: {_INSTEAD}."
    )


def _last_layer(whole: PreTrainedModel, prefix: str, classes: int) -> tuple[str, nn.Linear]:
    """The linear layer of the head that gives a number a class, the last of them if there are several."""
    found = [
        (name, module)
        for name, module in whole.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(f"{prefix}.") and module.out_features == classes
    ]
    if not found:
        raise ModelError(f"The head of {type(whole).__name__} does not end in a linear layer: {_INSTEAD}.")
    return found[-1]


@torch.no_grad()
def fill(whole: PreTrainedModel, values: Mapping[str, FloatArray]) -> None:
    """Gives the head of a whole model these weights, by name.

    Raises:
        ModelError: they are not those of its head.
    """
    own, prefix = head_weights(whole), prefix_of(whole)
    wanted = {n: tuple(p.shape) for n, p in own.items() if n in values or not n.startswith(f"{prefix}.")}
    given = {n: v.shape for n, v in values.items()}
    if wrong := sorted(n for n in wanted.keys() | given.keys() if wanted.get(n) != given.get(n)):
        raise ModelError(f"The head's weights are not those of a {type(whole).__name__}: {some(wrong)} is another.")
    for n, value in values.items():
        own[n].copy_(torch.from_numpy(value))


def _draw(whole: PreTrainedModel, last: str, new: frozenset[str], rows: list[int] | None, start: Start) -> None:
    """Gives the weights of the head that are `new` their start, and the last layer too unless these rows of it are kept."""
    own = head_weights(whole)
    layer = {n: own[n] for n in (f"{last}.weight", f"{last}.bias") if n in own}
    for p in layer.values():
        if rows is not None:
            p.copy_(p[rows])
        elif p.ndim == 2:
            p.copy_(_gaussian(start.seed, "head", p, start.scale / np.sqrt(p.shape[1])))
        else:
            p.zero_()
    spread = float(getattr(whole.config, "initializer_range", None) or 0.02)
    for n in sorted((new & own.keys()) - layer.keys()):
        if own[n].ndim > 1:  # a bias or a norm keeps the constants that its class starts it with
            own[n].copy_(_gaussian(start.seed, f"head {n}", own[n], spread))


def _gaussian(seed: int, purpose: str, like: Tensor, deviation: float) -> Tensor:
    values = generator(seed, purpose).standard_normal(tuple(like.shape), np.float32)
    return torch.from_numpy(values * np.float32(deviation))


def _logits(whole: PreTrainedModel, ids: Tensor) -> Tensor:
    """(C,) of one sentence (1, length)."""
    found: Tensor = whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return found


def _pooled(hidden: Tensor, pooling: Pooling) -> Tensor:
    """(1, H) of token vectors (length, H)."""
    return hidden.mean(0, keepdim=True) if pooling == "mean" else hidden[:1] if pooling == "cls" else hidden[-1:]


def _gives(features: Features, last: nn.Linear, vectors: Tensor, expected: Tensor) -> bool:
    try:
        found = features(vectors)
    except Exception:  # the head wants something else of its backbone
        return False
    return found.shape[1] == last.in_features and _alike(last(found)[0], expected)


def _alike(one: Tensor, other: Tensor) -> bool:
    scale = float(other.square().mean().sqrt())
    return one.shape == other.shape and torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * scale)


def _sentences(base: PreTrainedModel) -> list[Tensor]:
    """Token ids (1, length) without special tokens."""
    known = [getattr(base.config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    ids = np.setdiff1d(np.arange(vocabulary_size(base)), [i for i in known if isinstance(i, int)])
    return [torch.from_numpy(np.resize(ids[3:], n).astype(np.int64))[None] for n in (9, 5)]
