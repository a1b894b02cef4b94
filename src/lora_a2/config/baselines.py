"""What a run is compared with, client by client: each client alone, all data in one place, the result tuned for each."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from lora_a2.core.names import known_name
from lora_a2.errors import ConfigError
from lora_a2.methods.base import Method
from lora_a2.settings.options import MOST, Int, Options, option, split_names

LOCAL, CENTRALISED = "local", "centralised"
BASELINES = (LOCAL, CENTRALISED)


def _known_baselines(names: tuple[str, ...]) -> tuple[str, ...]:
    """In the order of `BASELINES`, each once."""
    given = {known_name(name, BASELINES) for name in names}
    if unknown := sorted(given - set(BASELINES)):
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(BASELINES)}.")
    return tuple(name for name in BASELINES if name in given)


class BaselineOptions(Options):
    """What is trained after the last round, to see whether joining helps."""

    baselines: Annotated[tuple[str, ...], BeforeValidator(split_names), AfterValidator(_known_baselines)] | None = (
        option(
            None,
            "Run",
            f"What to compare the result with, client by client: {' (each client alone), '.join(BASELINES)} (all data in one "
            "place); plain LoRA, for as many epochs as the rounds gave.",
            shown="none",
            reach="nobody",
            app=False,
        )
    )
    personalize: Int = option(
        0,
        "Run",
        "Epochs that each client goes on from the result on its own data, to see what that gains it; no model is kept.",
        reach="nobody",
        app=False,
        ge=0,
        le=MOST,
    )

    @property
    def compares(self) -> tuple[str, ...]:
        """The options of this group that are given."""
        given = {"baselines": bool(self.baselines), "personalize": self.personalize > 0}
        return tuple(name for name, there in given.items() if there)

    def check_baselines(self, method: Method) -> None:
        """Refuses what makes no sense.

        Raises:
            ConfigError: a method that trains no adapter.
        """
        if self.compares and method.full:
            raise ConfigError(
                f"{self.compares[0]}: it trains adapters, and {method.name} trains every weight, at another learning rate; "
                "leave it out, or choose another method."
            )

    def refuse_baselines(self) -> None:
        """For a run whose server has no client's training data.

        Raises:
            ConfigError: one of these options is given.
        """
        if self.compares:
            raise ConfigError(
                f"{self.compares[0]}: a Flower server has no client's training data; leave it out, or use lora-a2 run, which "
                "has all data in one process."
            )
