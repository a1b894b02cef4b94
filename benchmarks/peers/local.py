"""Local training as users of PEFT write it, shared by all peers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModel

from exchange import ClientData, Workload, padded


class PeftClassifier(torch.nn.Module):
    """A backbone with PEFT's LoRA layers under a frozen linear head; dropout is off, as in ours."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.settings = settings = workload.settings
        backbone = AutoModel.from_pretrained(settings.model, dtype=torch.float32)
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # its output is not used
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=int(settings.lora_alpha),
            target_modules=list(settings.modules),
            lora_dropout=0.0,
        )
        self.backbone = get_peft_model(backbone, config)
        for name, value in workload.head.items():
            self.register_buffer(f"head_{name}", torch.tensor(value))
        self.to(settings.device).train(False)

    def loss(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of a padded batch (n, longest)."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        if self.settings.pooling == "mean":
            vectors = (hidden * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        else:
            vectors = hidden[:, 0]
        logits = torch.nn.functional.linear(vectors, self.head_weight, self.head_bias)
        return torch.nn.functional.cross_entropy(logits, labels)

    def factors(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters, as "A/module" and "B/module"."""
        found = {}
        for name in self.settings.modules:
            layer: Any = self.backbone.get_submodule(f"base_model.model.{name}")
            found[f"A/{name}"] = layer.lora_A["default"].weight
            found[f"B/{name}"] = layer.lora_B["default"].weight
        return found

    @torch.no_grad()
    def load(self, adapter: Mapping[str, np.ndarray]) -> None:
        """Copies an adapter into the PEFT layers."""
        for name, parameter in self.factors().items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(adapter[name])))

    def read(self) -> dict[str, np.ndarray]:
        """The adapter in the PEFT layers."""
        return {name: parameter.detach().cpu().numpy().copy() for name, parameter in self.factors().items()}

    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters that the optimizer updates."""
        return [p for p in self.parameters() if p.requires_grad]


def optimizer_of(parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """PyTorch's fused AdamW, the default of Transformers' Trainer."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def examples(client: ClientData) -> list[tuple[np.ndarray, int]]:
    """A client's (token ids, label) pairs, in order."""
    return list(zip(client.sentences, client.labels.tolist(), strict=True))


def collate(batch: list[tuple[np.ndarray, int]], pad_token_id: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels, padded to the longest sentence of the batch."""
    ids, mask = padded([sentence for sentence, _ in batch], pad_token_id)
    labels = torch.tensor([label for _, label in batch], device=device)
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), labels


def train(model: PeftClassifier, client: ClientData, bfloat16: bool) -> None:
    """Trains one epoch of a client's batches, from the layers' present values."""
    settings = model.settings
    optimizer = optimizer_of(model.trained(), settings.learning_rate, settings.weight_decay)
    rows = examples(client)
    kind = torch.device(settings.device).type
    for i in range(0, len(rows), settings.batch_size):
        batch = collate(rows[i : i + settings.batch_size], settings.pad_token_id, settings.device)
        with torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
            loss = model.loss(*batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
