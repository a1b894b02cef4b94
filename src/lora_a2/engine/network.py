"""A frozen backbone with cohort LoRA layers, and an objective on top: what is trained and evaluated.

Shapes: K clients, T tokens a client, N sentences, H the backbone's width, W the numbers that the objective measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from lora_a2.core.types import Adapter, BaseDelta, FloatArray, ModuleShape, weight_name
from lora_a2.engine.calling import first_line
from lora_a2.engine.checkpointing import recomputing
from lora_a2.engine.fit import find_fit
from lora_a2.engine.kernels.activations import tabulate
from lora_a2.engine.kernels.attention import ATTENTION, packed_attention
from lora_a2.engine.lora import LoraLinear, Merged, Slot, install, share_inputs
from lora_a2.engine.objective import Batch, Objective
from lora_a2.engine.packing import pack
from lora_a2.engine.padding import PaddedBatch, pad
from lora_a2.engine.precision import dtypes_in
from lora_a2.engine.prefix import Blocks, Prefix, chunks
from lora_a2.engine.targets import block_lists
from lora_a2.engine.transfer import to_device
from lora_a2.engine.work import TokenizedExamples
from lora_a2.errors import ModelError

AttentionInterface.register(ATTENTION, packed_attention)

PREFIX_LIMIT = 2**30
"""Bytes of activations that a network may keep for a round."""
MEASURED_TOKENS = 8192
"""Tokens of examples that are measured in one pass, unless one example alone has more."""


class Network:
    """Owns `backbone` (its target linear layers are replaced) and keeps it frozen.

    Args:
        backbone: what `AutoModel` gives, in float32; on its device.
        modules: the target modules.
        objective: what stands on the backbone; it is told where it is placed.
        dtype: of the frozen weights and the activations; adapters and optimizer state are float32.
        pad_token_id: fills clients up to the longest of a cohort; never attended to.
        max_length: tokens of the longest sentence that will come.

    Attributes:
        room: tokens of the longest sentence that the backbone takes; None: any.
        batching: whether sentences are packed end to end, or padded, which is slower.
        notice: why they are padded, for the user; None if they are not.
        alone: clients of a cohort would feel each other's adapters, so that they can only train one by one.

    Raises:
        ModelError: the backbone cannot be used; the message says why.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        modules: Sequence[ModuleShape],
        *,
        objective: Objective,
        dtype: torch.dtype = torch.float32,
        pad_token_id: int = 0,
        max_length: int = 128,
        load_in_4bit: bool = False,
    ) -> None:
        self.load_in_4bit = load_in_4bit
        self.backbone = backbone.requires_grad_(False)
        self.backbone.train(False)
        self.objective = objective
        self.dtype = dtype
        self.pad_token_id = pad_token_id
        self.device = next(backbone.parameters()).device
        self._plain_attention = str(backbone.config._attn_implementation)
        fit = find_fit(backbone, max_length, pad_token_id)
        self.room, self._positions = fit.room, fit.positions
        self.batching: Literal["packed", "padded"] = "packed" if fit.reason is None else "padded"
        self.notice = (
            None
            if fit.reason is None
            else f"{type(backbone).__name__} is trained on padded sentences, which is slower: {fit.reason}."
        )
        kinds = {} if dtype == torch.float32 else dtypes_in(backbone, dtype)
        self.layers: dict[str, LoraLinear] = install(backbone, [m.name for m in modules], load_in_4bit)
        self._groups = [layer.group for layer in self.layers.values()]
        self._loaded: Adapter | None = None
        lists = block_lists(backbone)
        self._width = int(fit.width)
        self._blocks = Blocks(backbone, lists[0]) if len(lists) == 1 else None
        self._recomputable = [block for name in lists for block in backbone.get_submodule(name).children()]
        self._base: BaseDelta = {}
        self._pretrained: dict[str, Tensor] = {}
        self._cast_rest(kinds)
        tabulate(backbone)
        self.load(None)
        self._groups = share_inputs(self.layers, lambda: self.encode(self.pack([[np.arange(3)]])))
        self.load(None)
        self._check_gradient()
        self.alone = self._mixes_clients()
        objective.place(backbone, dtype)

    def _cast_rest(self, kinds: Mapping[str, torch.dtype]) -> None:
        """Gives everything but the LoRA layers' masters the number type that it has in Transformers' own model."""
        masters = {id(p) for layer in self.layers.values() for p in layer.parameters()}
        for name, tensor in [*self.backbone.named_parameters(), *self.backbone.named_buffers()]:
            if id(tensor) not in masters and tensor.is_floating_point():
                tensor.data = tensor.data.to(kinds.get(name, self.dtype))

    def _check_gradient(self) -> None:
        """Refuses a backbone through which no gradient passes, such as one with a backward pass of its own.

        Raises:
            ModelError: none reaches a layer.
        """
        none = ModelError(
            f"{type(self.backbone).__name__} lets no gradient through to its layers: choose another model."
        )
        try:
            found = self._trial_gradients(recompute=False)
        except RuntimeError as error:  # a backward pass of its own, or values that it has changed since
            raise none from error
        if not any(bool(gradient.any()) for gradient in found.values()):
            raise none

    def _trial_gradients(self, recompute: bool) -> dict[str, Tensor]:
        """By each module's B (1, 1, d_out), of a made-up loss."""
        ones = {n: (torch.ones(1, 1, m.d_in), torch.ones(1, 1, m.d_out)) for n, m in self.layers.items()}
        slots = {
            n: Slot(
                *(v.to(self.device, self.dtype) for v in pair), *(torch.zeros_like(v, device=self.device) for v in pair)
            )
            for n, pair in ones.items()
        }
        with torch.enable_grad(), self.slots(slots), self.recomputing(recompute):
            vectors = self.encode(self.pack([[np.arange(3, 10)]]))
            vectors.square().sum().backward()  # type: ignore[no-untyped-call]
        return {name: slot.dBt for name, slot in slots.items() if slot.dBt is not None}

    def check_recomputing(self) -> None:
        """Refuses a backbone whose blocks cannot be computed once more in the backward pass, by trying it.

        Raises:
            ModelError: it has no list of blocks, or its gradients become others.
        """
        kind = type(self.backbone).__name__
        if not self._recomputable:
            raise ModelError(f"{kind} has no list of blocks to compute once more: leave out gradient-checkpointing.")
        expected = self._trial_gradients(recompute=False)
        try:
            found = self._trial_gradients(recompute=True)
        except RuntimeError as error:  # what is computed the second time does not fit what was the first time
            raise ModelError(
                f"The blocks of {kind} cannot be computed once more ({first_line(error)}): leave out gradient-checkpointing."
            ) from error
        if not all(float((found[n] - g).norm()) <= 1e-2 * float(g.norm()) for n, g in expected.items()):
            raise ModelError(
                f"{kind} has other gradients where its blocks are computed once more: leave out gradient-checkpointing."
            )

    def recomputing(self, recompute: bool = True) -> AbstractContextManager[None]:
        """Within it, if `recompute`, forward passes keep what enters each block, and the backward pass computes the blocks once more."""
        return recomputing(self._recomputable, self.backbone.config) if recompute else nullcontext()

    @torch.no_grad()
    def _mixes_clients(self) -> bool:
        """Whether what the second of two clients adds reaches the first one's sentence.

        So it is where a layer reads what both share, such as embeddings of relative positions, or where rows are not client by client.
        """
        batch = self.pack([[np.arange(5, 12)], [np.arange(5, 9)]])

        def ramps(width: int, strength: float = 1.0) -> Tensor:
            ramp = torch.linspace(-1, 1, width, device=self.device, dtype=self.dtype)
            return torch.stack([0 * ramp, strength * ramp])[:, None]

        def first_beside(strength: float) -> Tensor:
            with self.slots({n: Slot(ramps(m.d_in), ramps(m.d_out, strength)) for n, m in self.layers.items()}):
                return self.encode(batch)[0]

        try:
            plain = first_beside(0.0)
            return not torch.allclose(first_beside(1.0), plain, rtol=1e-6, atol=1e-6 * float(plain.abs().max()))
        except RuntimeError:
            return True  # what is shared cannot even be divided

    def pack(self, cohort: Sequence[Sequence[np.ndarray]]) -> Batch:
        """Token ids of each client's sentences → a batch on this network's device."""
        if self.batching == "padded":
            return self._pad(cohort)
        return pack(
            cohort,
            pooling=self.objective.pooling,
            pad_token_id=self.pad_token_id,
            positions=self._positions,
            device=self.device,
        )

    def _pad(self, cohort: Sequence[Sequence[np.ndarray]]) -> PaddedBatch:
        return pad(cohort, pooling=self.objective.pooling, pad_token_id=self.pad_token_id, device=self.device)

    def load(self, adapter: Adapter | None) -> None:
        """Merges an adapter's B·A into the frozen weights (None: the plain base); nothing to do if it is there already.

        The sum is formed in float32 and rounded once to the compute dtype.
        """
        if adapter is self._loaded and self._loaded is not None:
            return
        merged: dict[int, Merged] = {}
        for name, layer in self.layers.items():
            moved = self._base.get(weight_name(name))
            own = Merged(moved=None if moved is None else to_device(moved, self.device))
            if adapter is not None and adapter.factors[name].B.any():
                f = adapter.factors[name].pair
                own = replace(
                    own, pair=(to_device(f.B, self.device), to_device(f.A, self.device)), scaling=adapter.scaling
                )
            merged[id(layer)] = own
        for group in self._groups:
            group.load([merged[id(member)] for member in group.members], self.dtype)
        self._loaded = adapter

    @property
    def base(self) -> BaseDelta:
        """How far the frozen weights are moved."""
        return self._base

    def set_base(self, base: BaseDelta) -> None:
        """Moves the frozen weights to pre-trained + `base`; the next `load` merges an adapter into these.

        Raises:
            ModelError: they are held in 4 bits.
        """
        if base is self._base or not (base or self._base):
            return
        if self.load_in_4bit:
            raise ModelError("load-in-4bit: base weights of 4 bits cannot be moved; choose another method.")
        targets = {weight_name(name) for name in self.layers}
        parameters = dict(self.backbone.named_parameters())
        for name in (base.keys() | self._base.keys()) - targets:
            parameter = parameters[name]
            origin = self._pretrained.setdefault(name, parameter.detach().clone())
            change = to_device(base[name], self.device) if name in base else torch.zeros_like(origin)
            parameter.data = (origin.float() + change).to(origin.dtype)
        self._base = base
        self.objective.place(self.backbone, self.dtype)
        self.load(None)

    @contextmanager
    def slots(self, slots: Mapping[str, Slot]) -> Iterator[None]:
        """What the clients of a forward pass add to the merged weights, module by module; gone afterwards."""
        for name, slot in slots.items():
            self.layers[name].slot = slot
        try:
            yield
        finally:
            for name in slots:
                self.layers[name].slot = None

    @contextmanager
    def called_plainly(self) -> Iterator[None]:
        """Within it, the backbone can be called as Transformers would, with a mask, padding and a cache of keys and values."""
        packed = self.backbone.config._attn_implementation
        self.backbone.config._attn_implementation = self._plain_attention
        try:
            yield
        finally:
            self.backbone.config._attn_implementation = packed

    def _hidden(self, batch: Batch) -> Tensor:
        hidden: Tensor = self.backbone(**batch.inputs).last_hidden_state
        return hidden

    def hidden(self, batch: Batch, entry: tuple[int, Tensor] | None = None) -> Tensor:
        """Hidden states of the batch: (1, K·T, H), or, where it is padded, (sentences, longest, H).

        `entry`: a block and the hidden states (1, K·T, H) that enter it; the blocks below are not computed.
        """
        if entry is None or self._blocks is None:
            return self._hidden(batch)
        with self._blocks.entering(*entry):
            return self._hidden(batch)

    def encode(self, batch: Batch) -> Tensor:
        """Sentence vectors (N, H) float32, in the order of `batch.sentences`."""
        return batch.vectors(self._hidden(batch))

    @torch.no_grad()
    def prefix(self, modules: Sequence[str], cohort: Sequence[Sequence[np.ndarray]]) -> Prefix | None:
        """The activations of all the clients' sentences below the lowest of `modules`, at the loaded weights.

        None if that is the first block, where they would take more than `PREFIX_LIMIT` bytes, or where sentences are padded.
        """
        if self.batching == "padded":
            return None
        block = 0 if self._blocks is None else self._blocks.lowest(modules)
        sentences = [s for client in cohort for s in client]
        lengths = np.array([len(s) for s in sentences])
        width = self._width
        if self._blocks is None or block == 0 or int(lengths.sum()) * width * self.dtype.itemsize > PREFIX_LIMIT:
            return None
        starts = np.cumsum(lengths) - lengths
        hidden = torch.empty(int(lengths.sum()), width, dtype=self.dtype, device=self.device)
        for chosen in chunks(lengths):
            batch = self.pack([[sentences[i] for i in chosen]])
            found: list[Tensor] = []
            with self._blocks.reading(block, found):
                self._hidden(batch)
            rows = np.concatenate([np.arange(starts[i], starts[i] + lengths[i]) for i in chosen])
            hidden[to_device(rows, self.device)] = found[0][0, : len(rows)]
        ends = np.cumsum([len(client) for client in cohort])
        return Prefix(block, hidden, tuple(np.split(starts, ends[:-1])))

    def hidden_with(self, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """As `hidden`, with other weights of the backbone, by name."""
        found: Tensor = torch.func.functional_call(self.backbone, dict(weights), (), batch.inputs).last_hidden_state
        return found

    @torch.no_grad()
    def measure(self, adapter: Adapter | None, examples: TokenizedExamples, batch_size: int = 64) -> FloatArray:
        """(n, W) float32: what the objective measures of n examples, in their order, with the adapter merged."""
        self.load(adapter)
        head = {}
        if adapter is not None:
            head = {name: torch.tensor(v, device=self.device) for name, v in adapter.head.items()}
        found: FloatArray | None = None
        for chosen in _passes([len(ids) for ids in examples.input_ids], batch_size):
            part = examples.take(chosen)
            batch = self.pack([part.input_ids])
            values = self.objective.outputs(self._hidden(batch), batch, part.labels, head).cpu().numpy()
            if found is None:
                found = np.empty((len(examples), values.shape[1]), np.float32)
            found[chosen[batch.sentences.cpu().numpy()]] = values
        return np.empty((0, 0), np.float32) if found is None else found

    def predict(self, adapter: Adapter | None, sentences: Sequence[np.ndarray], batch_size: int = 64) -> FloatArray:
        """As `measure`, for an objective that looks at no labels, such as logits (n, C) of a classifier."""
        return self.measure(
            adapter, TokenizedExamples(tuple(sentences), np.zeros(len(sentences), np.int64)), batch_size
        )


def _passes(lengths: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    """Examples for each pass, shortest first: at most `batch_size`, and at most `MEASURED_TOKENS` tokens with padding."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = min(start + batch_size, len(order))
        while end > start + 1 and (end - start) * lengths[order[end - 1]] > MEASURED_TOKENS:
            end -= 1
        yield order[start:end]
        start = end
