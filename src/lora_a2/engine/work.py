"""What local training is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from lora_a2.core.shown import count, shown
from lora_a2.core.types import Adapter, Mask
from lora_a2.methods.base import Penalty

Labels = np.ndarray | tuple[np.ndarray, ...]
"""What n examples are to be labelled with: (n,) int64 a class each, or (length,) int64 a token for each token."""


@dataclass(frozen=True)
class TokenizedExamples:
    """A client's examples: token ids (length,) int64 each, their labels, and right answers as texts where there are some."""

    input_ids: tuple[np.ndarray, ...]
    labels: Labels
    references: tuple[tuple[str, ...], ...] = ()

    def __repr__(self) -> str:
        return shown(self, count(len(self), "example"), count(sum(map(len, self.input_ids)), "token"))

    def __len__(self) -> int:
        return len(self.input_ids)

    def take(self, rows: np.ndarray) -> TokenizedExamples:
        """The examples at `rows` (m,), in that order."""
        references = tuple(self.references[i] for i in rows) if self.references else ()
        return TokenizedExamples(tuple(self.input_ids[i] for i in rows), self.labels_at(rows), references)

    def labels_at(self, rows: np.ndarray) -> Labels:
        """The labels at `rows` (m,), in that order."""
        return tuple(self.labels[i] for i in rows) if isinstance(self.labels, tuple) else self.labels[rows]


def joined(parts: Sequence[Labels]) -> Labels:
    """The labels of several clients' examples, end to end."""
    if isinstance(parts[0], tuple):
        return tuple(label for part in parts for label in part)
    return np.concatenate([np.asarray(part) for part in parts])


def end_to_end(parts: Sequence[TokenizedExamples]) -> TokenizedExamples:
    """The examples of several clients, one client after the other."""
    ids = tuple(ids for part in parts for ids in part.input_ids)
    references = tuple(own for part in parts for own in part.references)
    return TokenizedExamples(ids, joined([part.labels for part in parts]), references)


def _go_on() -> None:
    """Ends no training."""


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of local training.

    η_A = `learning_rate`, η_B = `learning_rate_ratio` · η_A; a trained head takes η_A. `penalties` are added to the loss, and
    not counted in the losses reported. The gradient of every step is scaled down to the L1 norm `clipping_norm`, each client's
    for itself, over all that it trains, and to the L2 norm `max_grad_norm`; None leaves it as it is. A step adds up the gradients of `gradient_accumulation_steps`
    batches; a client makes `max_steps` of them at most (None: all of its epochs). With
    `gradient_checkpointing` the backward pass computes blocks once more in place of keeping their activations. `between_steps` is called before every batch, and may raise to end the training.
    """

    batch_size: int
    learning_rate: float
    learning_rate_ratio: float
    weight_decay: float = 0.01
    penalties: tuple[Penalty, ...] = ()
    clipping_norm: float | None = None
    max_grad_norm: float | None = None
    gradient_accumulation_steps: int = 1
    max_steps: int | None = None
    gradient_checkpointing: bool = False
    between_steps: Callable[[], None] = field(default=_go_on, compare=False)

    @property
    def step_examples(self) -> int:
        """Examples whose mean loss a step lowers; an epoch's last step has what is left."""
        return self.batch_size * self.gradient_accumulation_steps

    def steps(self, examples: int, epochs: int) -> int:
        """Optimizer steps of a client with this many examples."""
        whole = epochs * -(-examples // self.step_examples)
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def orders(self, examples: int, epochs: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """A permutation of the examples for each epoch, up to the last step that is made."""
        needed = epochs if self.max_steps is None else min(epochs, self.max_steps)  # an epoch has a step at least
        left, cut = self.steps(examples, epochs), []
        for order in epoch_orders(examples, needed, rng):
            cut.append(order[: left * self.step_examples])
            left -= -(-len(cut[-1]) // self.step_examples)
        return tuple(order for order in cut if len(order))


@dataclass(frozen=True)
class ClientTask:
    """One client's part in a cohort: its start, its examples, and the order in which its epochs go through them.

    `mask` None trains every rank slice of the trained factors.
    """

    start: Adapter
    examples: TokenizedExamples
    mask: Mask | None
    orders: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Trained:
    """A client's adapter after its epochs, and the mean loss of its examples over them."""

    adapter: Adapter
    train_loss: float


def pieces(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """`rows` (n,) in stretches of `size`; the last has what is left."""
    return (rows[i : i + size] for i in range(0, len(rows), size))


def epoch_orders(examples: int, epochs: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A permutation of the examples for each epoch."""
    return tuple(rng.permutation(examples) for _ in range(epochs))
