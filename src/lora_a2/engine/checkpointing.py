"""Gradient checkpointing: of a block only what enters it is kept, and the backward pass computes the block once more.

Chen, Xu, Zhang, Guestrin: "Training Deep Nets with Sublinear Memory Cost", 2016, https://arxiv.org/abs/1604.06174. Transformers'
own switch acts on models in training mode alone, and with it dropout would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from lora_a2.errors import ModelError


@contextmanager
def recomputing(blocks: Sequence[nn.Module], config: PreTrainedConfig) -> Iterator[None]:
    """Within it, a forward pass keeps what enters each of `blocks` and nothing of what is computed there.

    The backward pass must come within what the forward pass was computed in (slots, say). Keys and values are not cached
    meanwhile: a block computed twice would add its own twice.
    """
    with ExitStack() as undo:
        if getattr(config, "use_cache", False):
            config.use_cache = False
            undo.callback(setattr, config, "use_cache", True)
        for block in blocks:
            own = vars(block).get("forward")  # where somebody has wrapped this one before
            undo.callback(delattr, block, "forward") if own is None else undo.callback(setattr, block, "forward", own)
            block.forward = partial(_twice, block, block.forward)  # inside the hooks of the module
        yield


def _twice(block: nn.Module, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
        raise ModelError(
            f"{type(block).__name__} is given a cache of keys and values, and cannot be computed twice: leave out "
            "gradient-checkpointing."
        )
    # Weights that `functional_call` has put here are gone when the backward pass comes.
    lent = {name: w for name, w in block.named_parameters(remove_duplicate=False) if not isinstance(w, nn.Parameter)}
    function = partial(_with, _Body(plain, block), lent) if lent else plain
    # Stopping early would leave groups of layers with outputs that nobody takes.
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, early_stop=False, **kwargs)


class _Body(nn.Module):
    """A block's own forward pass as a module of its own, so that it can be called with other weights."""

    def __init__(self, plain: Callable[..., Any], block: nn.Module) -> None:
        super().__init__()
        self.block, self._plain = block, plain

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._plain(*args, **kwargs)


def _with(body: _Body, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    return torch.func.functional_call(body, {f"block.{name}": w for name, w in weights.items()}, args, kwargs)
