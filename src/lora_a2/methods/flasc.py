"""FLASC: sparse both ways, dense at both ends.

Kuo, Raje, Rajesh, Smith: "Federated LoRA with Sparse Communication", 2024, https://arxiv.org/abs/2406.05233.

Downloads the entries of A and B that are largest in magnitude, a quarter of them, the others being zero; clients train
all entries; uploads the entries of the change that are largest, a quarter again, with a bitmap that says which. The server
keeps a dense adapter and adds the weighted mean. Not exact, as A and B are averaged separately; linear in what is sent.

As in the paper: top-k by magnitude over the whole adapter, separately for both ways. Our choices: density 1/4 (the paper
goes from 1 to 1/64), FedAvg on the server where the paper uses FedAdam; a trained head is always sent whole.
"""

from lora_a2.core.selection import top_entries
from lora_a2.core.types import Adapter, ClientProfile, ServerState
from lora_a2.methods.base import Method, always

DENSITY = 0.25


def largest(adapter: Adapter) -> Adapter:
    """A quarter of the entries, by magnitude."""
    return top_entries(adapter, DENSITY)


def dispatch(state: ServerState, profile: ClientProfile) -> Adapter:
    """The largest entries of the server's adapter."""
    return largest(state.adapter)


METHOD = Method(
    name="flasc",
    reference="Kuo, Raje, Rajesh, Smith: Federated LoRA with Sparse Communication. 2024. "
    "https://arxiv.org/abs/2406.05233",
    uploads="a quarter of A and B",
    downloads="a quarter of A and B",
    trainable=always("A", "B"),
    compress=largest,
    density=DENSITY,
    dispatch=dispatch,
)
