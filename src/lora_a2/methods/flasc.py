"""FLASC: sparse both ways, dense at both ends.

Kuo, Raje, Rajesh, Smith: "Federated LoRA with Sparse Communication", 2024, https://arxiv.org/abs/2406.05233.

Downloads the entries of A and B that are largest in magnitude, the others being zero; clients train all entries; uploads as many
entries of the change, the largest, with a bitmap that says which. The server
keeps a dense adapter and adds the weighted mean. Not exact, as A and B are averaged separately; linear in what is sent.

As in the paper: top-k by magnitude over the whole adapter, separately for both ways. Our choices: a quarter of the entries unless told otherwise
(`--density`; the paper goes from 1 to 1/64), plain FedAvg on the server unless told otherwise (the paper's FedAdam: `--server-optimizer adam`); a trained
head is always sent whole.
"""

from functools import partial

from lora_a2.core.options import Option
from lora_a2.core.selection import top_entries
from lora_a2.core.transforms import Sending, Transform
from lora_a2.core.types import Adapter, ServerState
from lora_a2.methods.base import Method, always

DENSITY = 0.25
OPTIONS = (Option("density", DENSITY, "Share of the adapter's entries that travel, for FLASC.", above=0, most=1),)


def largest(density: float, update: Adapter, sending: Sending) -> Adapter:
    """A share of the entries, by magnitude."""
    return top_entries(update, density)


def dispatch(density: float, state: ServerState, rank: int) -> Adapter:
    """The largest entries of the server's adapter."""
    return top_entries(state.adapter, density)


def flasc(density: float = DENSITY) -> Method:
    """The method with the given share of entries."""
    return Method(
        name="flasc",
        reference="Kuo, Raje, Rajesh, Smith: Federated LoRA with Sparse Communication. 2024. "
        "https://arxiv.org/abs/2406.05233",
        uploads="the largest entries of A and B",
        downloads="the largest entries of A and B",
        schedule=always("A", "B"),
        transforms=(Transform("top-k", partial(largest, density), density=density, exact=False),),
        dispatch=partial(dispatch, density),
        options=OPTIONS,
        variant=flasc,
    )


METHOD = flasc()
