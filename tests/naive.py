"""Every method a second time, from the papers' equations, with the slow trainer: what the simulator must agree with.

One client after the other, dense matrices, full SVDs, no codec, no combinators. Only the seeded draws are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.linalg
import torch
from transformers import get_scheduler

from lora_a2.core.randomness import generator
from lora_a2.core.sampling import choose_cohort
from lora_a2.core.types import Adapter, Factor, Factors
from lora_a2.engine.work import TrainingSettings, epoch_orders
from lora_a2.federation.loop import Plan
from lora_a2.federation.population import Client
from reference import ReferenceClassifier, ReferenceWriter, descend_reference, train_reference

Matrices = dict[str, np.ndarray]
BOTH: frozenset[Factor] = frozenset({"A", "B"})


@dataclass
class World:
    """The server's matrices, what the clients keep, and how to train one."""

    plan: Plan
    clients: tuple[Client, ...]
    model: ReferenceClassifier | ReferenceWriter
    A: Matrices
    B: Matrices
    R: Matrices = field(default_factory=dict)
    base: Matrices = field(default_factory=dict)
    full: Mapping[str, torch.Tensor] = field(default_factory=dict)
    private: dict[int, Matrices] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    scaling: float = 1.0
    round: int = 0

    def cohort(self) -> list[tuple[int, float]]:
        """(client id, w_k) of the round."""
        chosen = choose_cohort(self.plan.profiles, self.plan.fraction_train, 0, self.round)
        total = sum(p.num_examples for p in chosen)
        return [(p.id, p.num_examples / total) for p in chosen]

    def effective(self) -> Matrices:
        """W − W0 of every target module."""
        if self.full:
            names = list(self.A)
            return {
                n: (self.full[f"{n}.weight"] - self.model.get_parameter(f"backbone.{n}.weight")).numpy() for n in names
            }
        if self.R:
            return {n: self.scaling * self.B[n] @ self.R[n] @ self.A[n] for n in self.A}
        return {n: self.base.get(n, 0) + self.scaling * self.B[n] @ self.A[n] for n in self.A}


def training(world: World) -> TrainingSettings:
    """The settings of training, with the round's learning rate."""
    federation = world.plan.federation
    kind, warm, rounds = (getattr(federation.schedule, n) for n in ("kind", "warmup_rounds", "num_server_rounds"))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=federation.training.learning_rate)
    kind = "constant_with_warmup" if kind == "constant" else kind
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warm + 1, num_training_steps=rounds + 1)
    for _ in range(world.round):
        optimizer.step()
        scheduler.step()
    return replace(federation.training, learning_rate=scheduler.get_last_lr()[0])


def train(
    world: World,
    client: int,
    A: Matrices,
    B: Matrices,
    trained: frozenset[Factor],
    mask: Mapping[str, np.ndarray] | None = None,
    purpose: str = "train",
    penalty: Callable[..., torch.Tensor] | None = None,
    select: Callable[[Matrices, Matrices], Matrices] | None = None,
) -> tuple[Matrices, Matrices]:
    """A client's A and B after its epochs."""
    data, settings = world.clients[client].train, training(world)
    epochs = 1 if purpose == "probe" else world.plan.federation.local_epochs
    start = adapter(world, A, B)

    def mask_of(probed: Adapter) -> Matrices:
        return select(*({n: f.get(x) for n, f in probed.factors.items()} for x in ("A", "B")))

    end = train_reference(
        world.model,
        start,
        data.input_ids,
        data.labels,
        epoch_orders(len(data), epochs, generator(0, purpose, world.round, client)),
        trained,
        mask,
        batch_size=settings.batch_size * settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        ratio=settings.learning_rate_ratio,
        weight_decay=settings.weight_decay,
        base={n: v.astype(np.float32) for n, v in world.base.items()},
        penalty=penalty,
        select=mask_of if select else None,
        max_grad_norm=settings.max_grad_norm,
        max_steps=settings.max_steps,
    )
    return {n: f.A for n, f in end.factors.items()}, {n: f.B for n, f in end.factors.items()}


def adapter(world: World, A: Matrices, B: Matrices) -> Adapter:
    rank = next(iter(A.values())).shape[0]
    return Adapter({n: Factors(A[n].astype(np.float32), B[n].astype(np.float32)) for n in A}, world.scaling * rank)


def first(world: World, rank: int) -> tuple[Matrices, Matrices]:
    return {n: a[:rank] for n, a in world.A.items()}, {n: b[:, :rank] for n, b in world.B.items()}


def averaged(world: World, trained: frozenset[Factor]) -> None:
    """fl-lora, ffa-lora, rolora: each trained factor's mean."""
    ends = [(w, *train(world, k, world.A, world.B, trained)) for k, w in world.cohort()]
    world.A = {n: sum(w * a[n] for w, a, _ in ends) for n in world.A}
    world.B = {n: sum(w * b[n] for w, _, b in ends) for n in world.B}


def fl_lora(world: World) -> None:
    averaged(world, BOTH)


def ffa_lora(world: World) -> None:
    averaged(world, frozenset({"B"}))


def rolora(world: World) -> None:
    averaged(world, frozenset({"B"}) if world.round % 2 else frozenset({"A"}))


def chosen(world: World, client: int, A: Matrices, B: Matrices) -> Matrices:
    """LoRA-A²'s mask, by the contribution of a client's probed A and B."""
    odd, scores = world.round % 2 == 1, []
    for n in world.A:
        for i in range(len(world.A[n])):
            outer = (
                np.outer((B[n] - world.B[n])[:, i], world.A[n][i])
                if odd
                else np.outer(world.B[n][:, i], (A[n] - world.A[n])[i])
            )
            scores.append((-np.linalg.norm(outer), n, i))
    count = world.plan.profiles[client].rank_budget * len(world.A)
    best = {s[1:] for s in sorted(scores, key=lambda s: s[0])[:count]}
    return {n: np.array([(n, i) in best for i in range(len(a))]) for n, a in world.A.items()}


def own_epoch(world: World, client: int, trained: frozenset[Factor]) -> tuple[Matrices, Matrices]:
    """A client's A and B, its mask from an epoch of its own."""
    mask = chosen(world, client, *train(world, client, world.A, world.B, trained, purpose="probe"))
    return train(world, client, world.A, world.B, trained, mask)


def first_epoch(world: World, client: int, trained: frozenset[Factor]) -> tuple[Matrices, Matrices]:
    """A client's A and B, its mask from the first of its epochs."""
    return train(world, client, world.A, world.B, trained, select=lambda A, B: chosen(world, client, A, B))


def at_start(world: World, client: int, trained: frozenset[Factor], batches: int = 2) -> tuple[Matrices, Matrices]:
    """A client's A and B, its mask from the gradients of its first batches."""
    data, settings = world.clients[client].train, training(world)
    (order,) = epoch_orders(len(data), 1, generator(0, "probe", world.round, client))
    size = settings.batch_size * settings.gradient_accumulation_steps
    rows = [order[i : i + size] for i in range(0, len(order), size)][: min(batches, settings.max_steps or batches)]
    start = adapter(world, world.A, world.B)
    rates = {"A": settings.learning_rate, "B": settings.learning_rate * settings.learning_rate_ratio}
    end = descend_reference(world.model, start, data.input_ids, data.labels, rows, trained, rates)
    mask = chosen(world, client, {n: f.A for n, f in end.factors.items()}, {n: f.B for n, f in end.factors.items()})
    return train(world, client, world.A, world.B, trained, mask)


PROBES = {"epoch": own_epoch, "reuse": first_epoch, "gradient": at_start}


def lora_a2(world: World, local: Callable[..., tuple[Matrices, Matrices]] = own_epoch) -> None:
    odd = world.round % 2 == 1
    trained: frozenset[Factor] = frozenset({"B"}) if odd else frozenset({"A"})
    change = {n: np.zeros_like(world.B[n] if odd else world.A[n]) for n in world.A}
    for k, w in world.cohort():
        A, B = local(world, k, trained)
        for n in change:
            change[n] = change[n] + w * (B[n] - world.B[n] if odd else A[n] - world.A[n])
    target = world.B if odd else world.A
    for n in target:
        target[n] = target[n] + change[n]


def flexlora(world: World) -> None:
    total = dict.fromkeys(world.A, 0)
    for k, w in world.cohort():
        A, B = train(world, k, *first(world, world.plan.profiles[k].rank), BOTH)
        total = {n: total[n] + w * world.scaling * B[n] @ A[n] for n in total}
    rank = next(iter(world.A.values())).shape[0]
    for n, delta in total.items():
        u, s, vt = np.linalg.svd(delta)
        world.A[n], world.B[n] = vt[:rank], u[:, :rank] * s[:rank] / world.scaling


def hetlora(world: World, gamma: float = 0.99, weight: float = 1e-3) -> None:
    ends = []
    for k, _ in world.cohort():
        rank = world.ranks.get(k, world.plan.profiles[k].rank)
        cut = max(1, int(gamma * rank))

        def penalty(v: dict[tuple[str, str], torch.Tensor], cut: int = cut) -> torch.Tensor:
            terms = [v[n, "B"][:, cut:].norm() * v[n, "A"][cut:].norm() for n in world.A if v[n, "A"][cut:].numel()]
            return weight * sum(t for t in terms if t > 0)

        start = first(world, rank)
        A, B = train(world, k, *start, BOTH, penalty=penalty)
        tails = [sum(np.linalg.norm(b[n][:, cut:]) * np.linalg.norm(a[n][cut:]) for n in a) for a, b in ((A, B), start)]
        world.ranks[k] = rank = cut if tails[0] < tails[1] else rank
        A, B = {n: a[:rank] for n, a in A.items()}, {n: b[:, :rank] for n, b in B.items()}
        ends.append((A, B, np.sqrt(sum(np.linalg.norm(B[n] @ A[n]) ** 2 for n in A))))
    total, held = sum(e[2] for e in ends), max(len(next(iter(e[0].values()))) for e in ends)
    for n in world.A:
        world.A[n], world.B[n] = world.A[n].copy(), world.B[n].copy()
        world.A[n][:held] = sum(norm / total * np.pad(A[n], ((0, held - len(A[n])), (0, 0))) for A, _, norm in ends)
        world.B[n][:, :held] = sum(
            norm / total * np.pad(B[n], ((0, 0), (0, held - B[n].shape[1]))) for _, B, norm in ends
        )


def flora(world: World) -> None:
    ends = [(w, *train(world, k, *first(world, world.plan.profiles[k].rank), BOTH)) for k, w in world.cohort()]
    for n in world.A:
        world.base[n] = world.base.get(n, 0) + sum(w * world.scaling * b[n] @ a[n] for w, a, b in ends)
    rng = generator(0, "restart", world.round)
    for n, a in world.A.items():
        world.A[n] = rng.standard_normal(a.shape, np.float32) / np.float32(np.sqrt(3 * a.shape[1]))


def fedex_lora(world: World) -> None:
    ends = [(w, *train(world, k, world.A, world.B, BOTH)) for k, w in world.cohort()]
    for n in world.A:
        a, b = sum(w * e[n] for w, e, _ in ends), sum(w * e[n] for w, _, e in ends)
        residual = sum(w * B[n] @ A[n] for w, A, B in ends) - b @ a
        world.base[n] = world.base.get(n, 0) + world.scaling * residual
        world.A[n], world.B[n] = a, b


def fedsa_lora(world: World) -> None:
    ends = []
    for k, w in world.cohort():
        A, world.private[k] = train(world, k, world.A, world.private.get(k, world.B), BOTH)
        ends.append((w, A))
    world.A = {n: sum(w * a[n] for w, a in ends) for n in world.A}


def fedsvd(world: World) -> None:
    averaged(world, frozenset({"B"}))
    for n in world.A:
        u, s, vt = np.linalg.svd(world.B[n] @ world.A[n])
        rank = len(world.A[n])
        world.A[n], world.B[n] = vt[:rank], u[:, :rank] * s[:rank]


def quarter(A: Matrices, B: Matrices) -> tuple[Matrices, Matrices]:
    sizes = np.sort(np.abs(np.concatenate([v.ravel() for v in [*A.values(), *B.values()]])))[::-1]
    least = sizes[int(np.ceil(sizes.size / 4)) - 1]
    return tuple({n: np.where(np.abs(v) >= least, v, 0) for n, v in x.items()} for x in (A, B))  # type: ignore[return-value]


def flasc(world: World) -> None:
    start = quarter(world.A, world.B)
    sums: tuple[Matrices, Matrices] = (dict(world.A), dict(world.B))
    for k, w in world.cohort():
        end = train(world, k, *start, BOTH)
        sent = quarter(*({n: e[n] - s[n] for n in e} for e, s in zip(end, start, strict=True)))
        for total, change in zip(sums, sent, strict=True):
            for n in total:
                total[n] = total[n] + w * change[n]
    world.A, world.B = sums


def nearest_rotation(M: np.ndarray) -> np.ndarray:
    """By scipy: the polar factor, mirrored along the direction that costs least where it is a reflection."""
    turn, size = scipy.linalg.polar(M)
    if np.linalg.det(turn) < 0:
        least = np.linalg.eigh(size)[1][:, :1]
        turn = turn - 2 * turn @ least @ least.T
    return turn


def fedrot_lora(world: World, strength: float = 0.5) -> None:
    ends = []
    for k, w in world.cohort():
        A, B = train(world, k, world.A, world.B, BOTH)
        for n in A if world.round > 1 else ():
            M = A[n] @ world.A[n].T if world.round % 2 == 0 else B[n].T @ world.B[n]
            R = nearest_rotation((1 - strength) * np.eye(len(M)) + strength * nearest_rotation(M.astype(float)))
            A[n], B[n] = R.T @ A[n], B[n] @ R
        ends.append((w, A, B))
    world.A = {n: sum(w * a[n] for w, a, _ in ends) for n in world.A}
    world.B = {n: sum(w * b[n] for w, _, b in ends) for n in world.B}


def fed_sb(world: World, step: float = 1e-3, examples: int = 50) -> None:
    if world.round == 1:
        total = dict.fromkeys(world.A, 0.0)
        for k, w in world.cohort():
            data = world.clients[k].train
            rows = generator(0, "gradient", 1, k).permutation(len(data))[:examples]
            zeros = {n: torch.zeros(len(world.B[n]), a.shape[1], requires_grad=True) for n, a in world.A.items()}
            labels = [data.labels[j] for j in rows]
            world.model.loss([data.input_ids[j] for j in rows], zeros, None, labels).backward()
            total = {n: total[n] + w * zeros[n].grad.double().numpy() for n in total}
        for n, gradient in total.items():
            u, s, vt = np.linalg.svd(-step * np.sign(gradient))
            rank = len(world.A[n])
            world.A[n], world.B[n], world.R[n] = vt[:rank], u[:, :rank], np.diag(s[:rank]) / world.scaling
        return
    sums = dict.fromkeys(world.R, 0)
    for k, w in world.cohort():
        data, settings = world.clients[k].train, training(world)
        pairs = {n: Factors(*(v[n].astype(np.float32) for v in (world.A, world.B, world.R))) for n in world.A}
        end = train_reference(
            world.model,
            Adapter(pairs, world.scaling * len(next(iter(world.R.values())))),
            data.input_ids,
            data.labels,
            epoch_orders(len(data), world.plan.federation.local_epochs, generator(0, "train", world.round, k)),
            frozenset({"R"}),
            None,
            batch_size=settings.batch_size * settings.gradient_accumulation_steps,
            learning_rate=settings.learning_rate,
            ratio=settings.learning_rate_ratio,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            max_steps=settings.max_steps,
        )
        sums = {n: sums[n] + w * f.get("R") for n, f in end.factors.items()}
    world.R = sums


def full(world: World) -> None:
    settings = training(world)
    names = dict(world.model.backbone.named_parameters())
    server = dict(world.full) or {n: p.detach().clone() for n, p in names.items()}
    total = {n: torch.zeros_like(p) for n, p in server.items()}
    for k, w in world.cohort():
        data = world.clients[k].train
        weights = {n: p.clone().requires_grad_() for n, p in server.items()}
        steps = 0
        optimizer = torch.optim.AdamW(weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        for order in epoch_orders(len(data), world.plan.federation.local_epochs, generator(0, "train", world.round, k)):
            size = settings.batch_size * settings.gradient_accumulation_steps
            for i in range(0, len(order), size):
                steps += 1
                if settings.max_steps is not None and steps > settings.max_steps:
                    break
                rows = order[i : i + size]
                changes = {n: weights[f"{n}.weight"] - names[f"{n}.weight"].detach() for n in world.A}
                with _swapped(world.model.backbone, weights, set(world.A)):
                    labels = [data.labels[j] for j in rows]
                    loss = world.model.loss([data.input_ids[j] for j in rows], changes, None, labels)
                optimizer.zero_grad()
                loss.backward()
                if settings.max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(weights.values(), settings.max_grad_norm)
                optimizer.step()
        for n in total:
            total[n] += w * weights[n].detach()
    world.full = total


class _swapped:
    """The backbone with other weights, except those of the modules that the forward pass is given anyway."""

    def __init__(self, backbone: torch.nn.Module, weights: Mapping[str, torch.Tensor], targets: set[str]) -> None:
        self.backbone, self.old = backbone, {}
        self.new = {n: w for n, w in weights.items() if n.removesuffix(".weight") not in targets or n.endswith(".bias")}

    def __enter__(self) -> None:
        for name, value in self.new.items():
            parent, _, child = name.rpartition(".")
            module = self.backbone.get_submodule(parent)
            self.old[name] = module._parameters.pop(child)
            setattr(module, child, value)

    def __exit__(self, *_: object) -> None:
        for name, value in self.old.items():
            parent, _, child = name.rpartition(".")
            module = self.backbone.get_submodule(parent)
            delattr(module, child)
            module._parameters[child] = value


NAIVE: dict[str, Callable[[World], None]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        lora_a2,
        fl_lora,
        ffa_lora,
        rolora,
        flexlora,
        hetlora,
        flora,
        fedex_lora,
        fedsa_lora,
        fedsvd,
        flasc,
        fedrot_lora,
        fed_sb,
        full,
    )
}
