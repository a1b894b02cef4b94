"""The run configuration of the Flower app: the keys of `RunConfig`, and those that only a server of real nodes needs.

Flower has no missing values, so an empty text means "not given".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lora_a2.config.run import RunConfig, make_config
from lora_a2.errors import ConfigError
from lora_a2.privacy.laplace import refuse_noise
from lora_a2.settings.errors import kebab
from lora_a2.settings.options import Options, marks_of, option

if TYPE_CHECKING:
    from lora_a2.federation.exchange import RoundRules

USUAL_RATIO = 10.0
"""Default `max-update-ratio` if the clients are nodes. Honest replies reached 6 times the median (1 example, 6 epochs,
learning rate 0.05)."""


_server = partial(option, group="Server", reach="nobody")


class ServerOptions(Options):
    """Options of a server of nodes. Times are in seconds; a limit of 0 examples means the default, which depends on all
    nodes' counts (`bounds.fair_share`); the simulation engine has no limit."""

    labels: str = _server("", description="Class names, NAME,NAME,... or a JSON list, if the server has no data.")
    server_data: bool = _server(
        True,
        description="Whether the server reads the data; false: only the nodes have some, and --task says what for.",
    )
    evaluation: Literal["auto", "server", "nodes", "none"] = _server(
        "auto", description="Where the model is evaluated; auto: on the server if it has test data."
    )
    min_train_nodes: int = _server(1, ge=1, description="Least number of nodes, and of usable replies, in a round.")
    max_node_examples: int = _server(0, ge=0, description="Most training examples that a node counts for.")
    max_node_test_examples: int = _server(0, ge=0, description="Most test examples that a node counts for.")
    start_timeout: float = _server(60.0, ge=0, description="How long the first round waits for all num-clients nodes.")
    node_timeout: float = _server(600.0, gt=0, description="How long a round waits for min-train-nodes nodes.")
    round_timeout: float = _server(3600.0, gt=0, description="How long a node may take to reply.")
    max_attempts: int = _server(5, ge=1, description="How often a round with too few usable replies is tried.")
    resume: str = _server("", description="The run directory to continue.")
    from_round: int = _server(
        0, ge=0, description="With resume: continue after this round, if the last checkpoint is damaged."
    )

    def rules(self, simulated: bool, max_update_ratio: float | None) -> RoundRules:
        """The rules of a round. None for `max_update_ratio` means `USUAL_RATIO` for nodes, and no bound in simulations; 0
        means no bound."""
        from lora_a2.federation.exchange import RoundRules  # and with it PyTorch, which an app's keys do without

        ratio = USUAL_RATIO if max_update_ratio is None and not simulated else max_update_ratio
        return RoundRules(
            min_replies=self.min_train_nodes,
            max_examples=self.max_node_examples or None,
            max_update_ratio=ratio or None,
            fair_shares=not simulated,
        )

    def label_names(self) -> tuple[str, ...]:
        """The class names; empty if none are given.

        Raises:
            ConfigError: there are fewer than two, or duplicates.
        """
        text = self.labels.strip()
        if not text:
            return ()
        try:
            found = json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(",")]
        except ValueError:
            raise ConfigError(f"labels: {text[:40]!r} is neither NAME,NAME,... nor a JSON list.") from None
        names = tuple(str(name) for name in found)
        if len(set(names)) < max(2, len(names)) or not all(names):
            raise ConfigError(f"labels: {text[:40]!r} must be two or more different names.")
        return names


def read_options(values: Mapping[str, Any]) -> tuple[RunConfig, ServerOptions]:
    """Both halves of a run configuration. Keys are kebab-case; empty texts are left out.

    Raises:
        ConfigError: one line that names each wrong option.
    """
    own = set(map(kebab, ServerOptions.model_fields))
    given = {kebab(key): value for key, value in values.items() if value != ""}
    options = ServerOptions.model_validate({key: v for key, v in given.items() if key in own})
    options.label_names()
    config = make_config({key: v for key, v in given.items() if key not in own}, {})
    refuse_noise(config)
    config.refuse_baselines()
    return config, options


def app_fields() -> tuple[str, ...]:
    """The fields of `RunConfig` that an app has a key for; the others have no effect with Flower."""
    return tuple(name for name, field in RunConfig.model_fields.items() if marks_of(field).app)


def sent_config(config: RunConfig) -> dict[str, Any]:
    """The part of a configuration that is sent to the nodes: all but the server's own fields."""
    own = {name for name, field in RunConfig.model_fields.items() if marks_of(field).reach == "nobody"}
    return config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=own)
