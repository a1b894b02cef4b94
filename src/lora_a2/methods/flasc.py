"""FLASC: sparse both ways, dense at both ends.

Kuo, Raje, Rajesh, Smith: "Federated LoRA with Sparse Communication", 2024, https://arxiv.org/abs/2406.05233.

Downloads the entries of A and B that are largest in magnitude, a quarter of them, the others being zero; clients train
all entries; uploads the entries of the change that are largest, a quarter again, with a bitmap that says which. The server
keeps a dense adapter and adds the weighted mean. Not exact, as A and B are averaged separately; linear in what is sent.

As in the paper: top-k by magnitude over the whole adapter, separately for both ways. Our choices: density 1/4 (the paper
goes from 1 to 1/64), plain FedAvg on the server unless told otherwise (the paper's FedAdam: `--server-optimizer adam`); a trained
head is always sent whole.
"""

from lora_a2.core.selection import top_entries
from lora_a2.core.transforms import Sending, Transform
from lora_a2.core.types import Adapter, ServerState
from lora_a2.methods.base import Method, always

DENSITY = 0.25


def largest(update: Adapter, sending: Sending) -> Adapter:
    """A quarter of the entries, by magnitude."""
    return top_entries(update, DENSITY)


def dispatch(state: ServerState, rank: int) -> Adapter:
    """The largest entries of the server's adapter."""
    return top_entries(state.adapter, DENSITY)


METHOD = Method(
    name="flasc",
    reference="Kuo, Raje, Rajesh, Smith: Federated LoRA with Sparse Communication. 2024. "
    "https://arxiv.org/abs/2406.05233",
    uploads="a quarter of A and B",
    downloads="a quarter of A and B",
    schedule=always("A", "B"),
    transforms=(Transform("top-k", largest, density=DENSITY, exact=False),),
    dispatch=dispatch,
)
