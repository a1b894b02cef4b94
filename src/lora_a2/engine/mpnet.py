"""MPNet on packed sentences: its attention is not behind Transformers' attention interface, and adds a bias by distance.

The weights and their names stay as they are; what changes is how self-attention computes where a batch is packed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import MPNetModel, PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from lora_a2.engine.kernels.attention import Rule, attend
from lora_a2.engine.packing import PackedBatch


class _Packing:
    """What the parts of one MPNet share in a forward pass: its packed batch; None if it is padded.

    Objects rather than functions, so that a copy of the model gets copies that belong to it.
    """

    def __init__(self) -> None:
        self.batch: PackedBatch | None = None

    def __call__(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Takes the packed batch out of the model's arguments."""
        self.batch = kwargs.pop("packed", None)
        return args, kwargs


class _PositionBias:
    """The bias of one sentence as long as the longest, (h, L, L), in the place of one over all packed tokens."""

    def __init__(self, encoder: MPNetEncoder, packing: _Packing) -> None:
        self._encoder, self._packing = encoder, packing

    def __call__(self, hidden: Tensor) -> Tensor:
        batch = self._packing.batch
        longest = hidden if batch is None else hidden.new_empty(1, int(batch.lengths.max()), 1)
        bias: Tensor = type(self._encoder).compute_position_bias(self._encoder, longest)  # type: ignore[no-untyped-call]
        return bias if batch is None else bias[0]


class _SelfAttention(MPNetSelfAttention):
    """MPNet's own, with packed attention where there is a packed batch."""

    packing: _Packing

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """hidden_states (1, K·T, H) → (1, K·T, H), in a tuple as the original."""
        batch = self.packing.batch
        if batch is None:
            return super().forward(  # type: ignore[no-any-return, no-untyped-call]
                hidden_states, attention_mask, position_bias, output_attentions, **kwargs
            )
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        q, k, v = (layer(hidden_states).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = attend(q, k, v, batch, Rule(self.attention_head_size**-0.5), position_bias)
        return (self.o(out.reshape(*hidden_states.shape[:-1], -1)),)


def prepare(backbone: PreTrainedModel) -> None:
    """Lets an MPNet take packed batches; other models stay as they are, and so does an MPNet that is prepared already."""
    if not isinstance(backbone, MPNetModel) or hasattr(backbone, "packing"):
        return
    packing = _Packing()
    backbone.packing = packing  # type: ignore[assignment]
    backbone.register_forward_pre_hook(packing, with_kwargs=True)
    encoder: Any = backbone.encoder
    encoder.compute_position_bias = _PositionBias(encoder, packing)
    for module in backbone.modules():
        if type(module) is MPNetSelfAttention:
            module.__class__ = _SelfAttention  # same parts and names, another way to compute
            module.packing = packing  # type: ignore[assignment]
