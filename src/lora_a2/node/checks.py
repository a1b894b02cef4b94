"""What `lora-a2 node --check` looks at on the node itself: all that a first round would need of it, and nothing is sent.

The model and the examples are loaded as a request would load them, by the participant that answers requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_a2.config.run import RunConfig
from lora_a2.errors import DataError, NodeError
from lora_a2.federation.population import Client
from lora_a2.model.pretrained import Model
from lora_a2.node.own_data import OwnData
from lora_a2.node.participant import Participant
from lora_a2.node.policy import Policy, load_policy
from lora_a2.node.protocol import Request
from lora_a2.node.worker import listening
from lora_a2.settings.task import CAUSAL_LM
from lora_a2.system.checks import Check, NotChecked, writable
from lora_a2.system.machine import free_memory

_MOST_CLASSES = 8


@dataclass(frozen=True)
class NodeSetup:
    """A node as its command line describes it. `fields`: the fields of a run that the node decides."""

    own: OwnData
    fields: Mapping[str, Any]
    socket: Path
    store: Path
    policy: Path | None = None


def node_checks(setup: NodeSetup) -> Iterator[Check]:
    """The checks, in the order in which a worker comes to them. Later ones use what earlier ones have loaded."""
    node = _Node(setup)
    yield "policy", node.policy_file
    yield "data", node.data
    yield "classes", node.classes
    yield "model", node.model_files
    yield "examples", node.examples
    yield "memory", node.memory
    yield "socket", node.socket
    yield "store", node.store


class _Node:
    """What the checks have found so far."""

    def __init__(self, setup: NodeSetup) -> None:
        self.setup = setup
        self.policy = Policy.model_validate({})
        self.counts: dict[str, int] | None = None
        self.task: str | None = None
        self.model: Model | None = None
        self.client: Client | None = None

    def policy_file(self) -> str:
        if self.setup.policy is None:
            return "no --policy: every request within the default limits is answered (docs/node-policy.md)."
        self.policy = load_policy(self.setup.policy)
        given = sorted(key.replace("_", "-") for key in self.policy.model_fields_set)
        return f"{self.setup.policy} can be read; it says {', '.join(given) or 'nothing'}."

    def data(self) -> str:
        own = self.setup.own
        count = own.check()
        self.task = own.task
        if self.task != CAUSAL_LM:
            self.counts = own.classes()
        what = "prompts, chats or texts" if self.task == CAUSAL_LM else "labelled examples"
        return f"{count} {what} in {own.data}."

    def classes(self) -> str:
        if self.task is None:
            raise NotChecked("the data cannot be read.")
        if self.counts is None:
            return "none: the data are for a model that writes."
        if self.policy.labels and (unknown := sorted(set(self.counts) - set(self.policy.labels))):
            raise DataError(
                f"{len(unknown)} classes of the data are not among the {len(self.policy.labels)} that the policy's labels name, "
                f"such as {unknown[0]!r}: remove these rows, or agree on the classes."
            )
        shown = ", ".join(f"{name} ({count})" for name, count in list(self.counts.items())[:_MOST_CLASSES])
        more = f", and {len(self.counts) - _MOST_CLASSES} more" if len(self.counts) > _MOST_CLASSES else ""
        agreed = "all among the policy's labels" if self.policy.labels else "the server's labels must have all of them"
        return f"{len(self.counts)}: {shown}{more}; {agreed}."

    def model_files(self) -> str:
        setup = self.setup
        participant = Participant(self._load, setup.store, self.policy, setup.fields)
        try:
            participant.answer(self._request())
        except DataError:  # of the examples, which are looked at next
            if self.model is None:
                raise
        assert self.model is not None, "a profile needs it"
        same = "which the policy allows" if self.policy.model_fingerprints else "which must be the server's"
        return f"{self.model.name} can be loaded; its fingerprint is {self.model.fingerprint}, {same}."

    def examples(self) -> str:
        client = self._own()
        return f"{len(client.train)} to train with and {len(client.test)} to test with, as tokens of the model."

    def memory(self) -> str:
        client, model = self.client, self.model
        if client is None or model is None:
            raise NotChecked("it needs the examples.")
        batch = min(RunConfig().batch_size, self.policy.max_batch_size)
        needed = _training_bytes(model, [len(ids) for ids in client.train.input_ids], batch)
        device = model.network.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        if free is None:
            raise NotChecked("this system does not tell how much memory is free.")
        said = f"training takes about {needed / 1e6:,.0f} MB beside the model that is loaded, with batches of {batch}"
        if needed > free:
            raise NodeError(f"{said}; {free / 1e6:,.0f} MB are free: end other programs, or agree on smaller batches.")
        return f"{said}; {free / 1e6:,.0f} MB are free."

    def socket(self) -> str:
        with listening(self.setup.socket) as listener:
            return f"{listener.getsockname()} can be listened at, by this user alone."

    def store(self) -> str:
        return writable(self.setup.store)

    def _load(self, config: RunConfig, request: Request, model: Model) -> Client:
        self.model = model
        self.client = self.setup.own(config, request, model)
        return self.client

    def _own(self) -> Client:
        """The examples, as a request for training finds them.

        Raises:
            NotChecked: something before has failed.
            DataError: there is no way to use them.
        """
        if self.client is not None:
            return self.client
        if self.model is None or self.task is None:
            raise NotChecked("they need the data and the model.")
        return self._load(RunConfig().model_copy(update={"task": self.task}), self._request(), self.model)

    def _request(self) -> Request:
        """The first question of a server whose run is as small as any policy allows."""
        policy = self.policy
        run = {
            "method": policy.methods[0] if policy.methods else RunConfig().method,
            "r": min(RunConfig().r, policy.max_rank),
            "local-epochs": 1,
            "num-server-rounds": 1,
            "batch-size": min(RunConfig().batch_size, policy.max_batch_size),
        }
        labels: tuple[str, ...] = ()
        if self.task == CAUSAL_LM:
            run["task"] = CAUSAL_LM
        else:
            labels = policy.labels or _at_least_two(tuple(self.counts or ()))
        return Request(kind="profile", run_id="check", run=run, labels=labels, partition=0, num_partitions=1)


def _at_least_two(labels: tuple[str, ...]) -> tuple[str, ...]:
    """A node may have examples of one class alone, or none that can be read; a head has two at least."""
    more = (name for name in ("another class", "one more class") if name not in labels)
    return labels if len(labels) > 1 else (*labels, *(next(more) for _ in range(2 - len(labels))))


def _training_bytes(model: Model, lengths: Sequence[int], batch_size: int) -> int:
    """About what a step of training takes: the factors with gradient and two moments, and what the linear layers keep of the
    longest batch, twice, for what lies between them. A model that writes has a float32 for each token of its vocabulary too."""
    widths = sum(module.d_in + module.d_out for module in model.layout.modules)
    tokens = sum(sorted(lengths)[-batch_size:])
    factors = 16 * RunConfig().r * widths
    kept = 2 * tokens * widths * model.network.dtype.itemsize
    logits = 2 * 4 * tokens * len(model.tokenizer) if model.task.name == CAUSAL_LM else 0
    return factors + kept + logits
