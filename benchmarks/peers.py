"""The stack that everyone uses, as a peer: a Transformers + PEFT training loop, one resident model, dynamic padding."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from lora_a2.model.backbone import load_backbone
from lora_a2.training.local import TokenizedExamples
from lora_a2.types import Adapter, Factors


class PeftPeer:
    """FL + LoRA's local training with PEFT layers, `torch.optim.AdamW`, and a frozen linear head on mean pooling."""

    def __init__(self, names: Sequence[str], rank: int, lora_alpha: float, head: dict[str, torch.Tensor]) -> None:
        config = LoraConfig(r=rank, lora_alpha=int(lora_alpha), target_modules=list(names), lora_dropout=0.0)
        backbone = load_backbone("all-MiniLM-L6-v2").module
        self.model = get_peft_model(backbone, config)
        self.model.train(False)  # no dropout, as in ours
        self.names = list(names)
        self.head = head

    def _layer(self, name: str) -> torch.nn.Module:
        return self.model.get_submodule(f"base_model.model.{name}")

    def load(self, adapter: Adapter) -> None:
        """Copies an adapter into the PEFT layers."""
        with torch.no_grad():
            for name in self.names:
                layer = self._layer(name)
                layer.lora_A["default"].weight.copy_(torch.from_numpy(np.ascontiguousarray(adapter.factors[name].A)))
                layer.lora_B["default"].weight.copy_(torch.from_numpy(np.ascontiguousarray(adapter.factors[name].B)))

    def read(self, lora_alpha: float) -> Adapter:
        """The PEFT layers' adapter."""
        factors = {}
        for name in self.names:
            layer = self._layer(name)
            factors[name] = Factors(
                A=layer.lora_A["default"].weight.detach().numpy().copy(),
                B=layer.lora_B["default"].weight.detach().numpy().copy(),
            )
        return Adapter(factors, lora_alpha)

    def train(
        self, examples: TokenizedExamples, orders: Sequence[np.ndarray], batch_size: int, rate: float, bf16: bool
    ) -> None:
        """The usual loop over a client's epochs, in the given order of examples."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
        for order in orders:
            for i in range(0, len(order), batch_size):
                rows = order[i : i + batch_size]
                longest = max(len(examples.input_ids[j]) for j in rows)
                ids = torch.zeros(len(rows), longest, dtype=torch.int64)
                mask = torch.zeros_like(ids)
                for at, j in enumerate(rows):
                    sentence = torch.from_numpy(examples.input_ids[j])
                    ids[at, : len(sentence)] = sentence
                    mask[at, : len(sentence)] = 1
                with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                    hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
                pooled = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                logits = pooled @ self.head["weight"].T + self.head["bias"]
                loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(examples.labels[rows]))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
