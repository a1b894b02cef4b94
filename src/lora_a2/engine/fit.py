"""How a backbone can be fed: packed or padded, with which positions, up to which length. Found by trying it, in float32.

What must hold: a sentence's token vectors are those that the model gives when it is called with this sentence alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_a2.engine.calling import first_line, vocabulary_size
from lora_a2.engine.kernels.attention import ATTENTION
from lora_a2.engine.mpnet import prepare
from lora_a2.engine.packing import FROM_ZERO, Positions, pack
from lora_a2.engine.padding import pad
from lora_a2.errors import ModelError

TOLERANCE = 1e-3
"""Of the token vectors' root mean square: float32 in another order stays far below, a token more or less seen is above."""
BEYOND = 8
"""Tokens past a limit of the configuration up to which sentences are tried."""
LOW_CAP = 1e-3
"""A cap on attention scores that shows in any model."""

_LIMITS = re.compile(r"window|local_attention|chunk|block_size|distance|segment|max_relative|landmarks")
"""Keys of configurations that say from which length on a model does something else than before."""
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


@dataclass(frozen=True)
class Fit:
    """How sentences are given to a backbone.

    Attributes:
        positions: what packed sentences are numbered with.
        room: tokens of the longest sentence that it takes; None: any.
        width: H, of its hidden states.
        reason: why it is padded, as a part of a sentence; None: it is packed.
    """

    positions: Positions
    room: int | None
    width: int
    reason: str | None


@torch.no_grad()
def find_fit(backbone: PreTrainedModel, max_length: int, pad_token_id: int) -> Fit:
    """Tries the backbone; sets its attention to the packed one where that agrees with single sentences.

    Sentences go beyond every limit that the configuration names (`_LIMITS`) and that a sentence of up to `max_length` tokens
    can reach. Where attention scores are capped, the model is also tried with a cap so low that it shows.

    Raises:
        ModelError: padding, or another sentence beside it, changes what the model gives for a sentence.
    """
    _refuse_changing_frequencies(backbone, max_length)
    room = _room(backbone)
    trial = _Trial(backbone, pad_token_id, max_length if room is None else min(max_length, room))
    usual = backbone.config._attn_implementation
    try:
        expected = trial.expected()
    except Exception as error:  # each model has reasons of its own
        lengths = " and ".join(str(len(sentence)) for sentence in trial.sentences)
        raise ModelError(
            f"{type(backbone).__name__} cannot be called for sentences of {lengths} tokens: {first_line(error)}"
        ) from error
    reason, width = "", int(expected[0][0].shape[1])
    prepare(backbone)
    backbone.config._attn_implementation = ATTENTION
    for positions in _candidates(backbone):
        reason = trial.packed(positions, expected)
        if not reason:
            return Fit(positions, room, width, None)
    backbone.config._attn_implementation = usual
    if different := trial.padded(expected):
        raise ModelError(
            f"{type(backbone).__name__} cannot be used: {different} when it is padded to the length of a longer one."
        )
    return Fit(FROM_ZERO, room, width, reason)


def _refuse_changing_frequencies(backbone: PreTrainedModel, max_length: int) -> None:
    """LongRoPE takes other rotary frequencies for a whole batch as soon as one sentence is longer than at pre-training."""
    rope = getattr(backbone.config, "rope_parameters", None) or {}
    for entry in [rope, *(v for v in rope.values() if isinstance(v, dict))]:
        original = entry.get("original_max_position_embeddings")
        if entry.get("rope_type") == "longrope" and original and max_length > original:
            raise ModelError(
                f"{type(backbone).__name__} changes its rotary frequencies for all sentences of a batch that holds one of more "
                f"than {original} tokens (longrope), and max-length is {max_length}: choose at most {original}."
            )


def _position_tables(backbone: PreTrainedModel) -> list[nn.Embedding]:
    """Learned embeddings of positions."""
    return [
        module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Embedding) and re.search(r"position_embeddings$|embed_positions$|wpe$", name)
    ]


def _candidates(backbone: PreTrainedModel) -> list[Positions]:
    """Ways to number tokens that the model may expect: from 0, or after the index of padding as RoBERTa does."""
    padded = [table.padding_idx for table in _position_tables(backbone) if table.padding_idx is not None]
    return [*(Positions(start=index + 1, padding_idx=index) for index in dict.fromkeys(padded)), FROM_ZERO]


def _room(backbone: PreTrainedModel) -> int | None:
    """Tokens for which the model has positions; None if it counts without end."""
    stated = getattr(backbone.config, "max_position_embeddings", None)
    rooms = [stated] if isinstance(stated, int) and stated > 0 else []
    rooms += [t.num_embeddings - t.padding_idx - 1 for t in _position_tables(backbone) if t.padding_idx is not None]
    return min(rooms, default=None)


class _Trial:
    """One backbone, the sentences with which it is tried, and the ways to give them to it."""

    def __init__(self, backbone: PreTrainedModel, pad_token_id: int, longest: int) -> None:
        self._backbone, self._pad_token_id = backbone, pad_token_id
        self._device = next(backbone.parameters()).device
        size = vocabulary_size(backbone)
        special = [getattr(backbone.config, name, None) for name in _SPECIAL]
        literal = [i for i in special if isinstance(i, int) and 0 <= i < size]
        beyond = [n + BEYOND for n in _limits(backbone.config.to_dict()) if n + 1 < longest]
        lengths = [5, min(12, longest), *([min(max(beyond), longest)] if beyond else [])]
        rng = np.random.default_rng(0)
        plain = np.setdiff1d(np.arange(size), literal)
        self.sentences = [rng.choice(plain, n).astype(np.int64) for n in lengths]
        self.sentences[0] = np.concatenate(
            [self.sentences[0][:2], np.asarray(literal[:1], np.int64), self.sentences[0][2:]]
        )
        self._capped = _caps(backbone)

    def expected(self) -> list[list[Tensor]]:
        """The token vectors (length, H) of each sentence alone, with each setting of the cap."""
        return [self._alone() for _ in self._settings()]

    def packed(self, positions: Positions, expected: Sequence[Sequence[Tensor]]) -> str:
        """What is different when the sentences are packed; empty: nothing."""
        try:
            found = [self._packed(positions) for _ in self._settings()]
        except ModelError as error:
            return str(error)
        except Exception:  # no room for such positions, no place for what packed attention is to know
            return "its attention is not behind Transformers' attention interface"
        return "its attention is not behind Transformers' attention interface" if _differ(found, expected) else ""

    def padded(self, expected: Sequence[Sequence[Tensor]]) -> str:
        """What is different when the sentences are padded; empty: nothing."""
        try:
            found = [self._padded() for _ in self._settings()]
        except Exception as error:  # each model has reasons of its own
            return f"it fails ({first_line(error)})"
        different = _differ(found, expected)
        return f"it gives other results for a sentence of {different} tokens" if different else ""

    def _settings(self) -> Iterator[None]:
        """As the model is; then with low caps, if it has some."""
        yield
        if self._capped:
            with _lowered(self._capped):
                yield

    def _alone(self) -> list[Tensor]:
        found = []
        for sentence in self.sentences:
            ids = torch.from_numpy(sentence).to(self._device)[None]
            found.append(self._hidden(input_ids=ids, attention_mask=torch.ones_like(ids))[0])
        return found

    def _packed(self, positions: Positions) -> list[Tensor]:
        batch = pack(
            [self.sentences],
            pooling="mean",
            pad_token_id=self._pad_token_id,
            positions=positions,
            device=self._device,
        )
        hidden = self._hidden(**batch.inputs)[0]
        return list(torch.split(hidden[: sum(map(len, self.sentences))], list(map(len, self.sentences))))

    def _padded(self) -> list[Tensor]:
        batch = pad([self.sentences], pooling="mean", pad_token_id=self._pad_token_id, device=self._device)
        hidden = self._hidden(**batch.inputs)
        return [row[: len(s)] for row, s in zip(hidden, self.sentences, strict=True)]

    def _hidden(self, **inputs: Any) -> Tensor:
        hidden: Tensor = self._backbone(**inputs).last_hidden_state
        return hidden


def _differ(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]) -> int:
    """The length of the first sentence that has other token vectors; 0: none."""
    for some, others in zip(found, expected, strict=True):
        for vectors, right in zip(some, others, strict=True):
            scale = float(right.float().square().mean().sqrt())
            if not torch.allclose(vectors, right, rtol=TOLERANCE, atol=TOLERANCE * scale):
                return len(right)
    return 0


def _limits(values: Mapping[str, Any]) -> list[int]:
    """The limits that a configuration names, in tokens."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _limits(value)
        elif _LIMITS.search(str(key)):
            found += [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and n > 0]
    return found


def _caps(backbone: PreTrainedModel) -> list[tuple[nn.Module, str]]:
    """The attributes by which modules cap attention scores."""
    return [
        (module, name)
        for module in backbone.modules()
        for name, value in vars(module).items()
        if "softcap" in name and isinstance(value, int | float) and not isinstance(value, bool)
    ]


@contextmanager
def _lowered(caps: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    usual = [getattr(module, name) for module, name in caps]
    for module, name in caps:
        setattr(module, name, LOW_CAP)
    try:
        yield
    finally:
        for (module, name), value in zip(caps, usual, strict=True):
            setattr(module, name, value)
