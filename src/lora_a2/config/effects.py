"""Options that would have no effect beside others: refused rather than passed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lora_a2.errors import ConfigError


class Effect(NamedTuple):
    """`option` has an effect only where `acts`; `needs` tells what that takes."""

    option: str
    acts: Callable[[Any], bool]
    needs: str


EFFECTS: tuple[Effect, ...] = (
    Effect("client_column", lambda c: c.partitioner == "natural", "--partitioner natural, or none"),
    Effect("alpha", lambda c: c.partitioner in ("dirichlet", "quantity"), "--partitioner dirichlet or quantity"),
    Effect("min_client_examples", lambda c: c.partitioner == "natural", "--client-column"),
    Effect("laplace_clipping_norm", lambda c: c.laplace_epsilon is not None, "--laplace-epsilon"),
)


def check_effects(config: Any) -> None:
    """Refuses an option of a `RunConfig` that differs from its default where it has no effect.

    One that is at its default passes: the configuration of a run that is read again lists all of them.

    Raises:
        ConfigError: the message names the option and what it needs.
    """
    for effect in EFFECTS:
        default = type(config).model_fields[effect.option].get_default()
        if getattr(config, effect.option) != default and not effect.acts(config):
            raise ConfigError(
                f"{effect.option.replace('_', '-')}: it has no effect here; it needs {effect.needs}. Leave it out otherwise."
            )
