"""The run configuration of the Flower app: the keys of `RunConfig`, and those that only a server of real nodes needs.

Flower knows no "not given", so an empty text stands for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from lora_a2.config.run import RunConfig, make_config
from lora_a2.errors import ConfigError
from lora_a2.federation.exchange import RoundRules
from lora_a2.privacy.laplace import refuse_noise
from lora_a2.settings.errors import kebab
from lora_a2.settings.options import Options, marks_of, option

USUAL_RATIO = 10.0
"""`max-update-ratio` if the clients are nodes; honest replies have been seen up to 6 times the median (1 example, 6 epochs, a learning rate of 0.05)."""


_server = partial(option, group="Server", reach="nobody")


class ServerOptions(Options):
    """What only a server of nodes needs to know. Times are in seconds; 0 examples stand for the usual limit,
    which follows from what all nodes state (`bounds.fair_share`); in the simulation engine there is none."""

    labels: str = _server("", description="Class names, NAME,NAME,... or a JSON list, if the server has no data.")
    evaluation: Literal["auto", "server", "nodes", "none"] = _server(
        "auto", description="Where the model is evaluated; auto: on the server if it has test data."
    )
    min_train_nodes: int = _server(1, ge=1, description="A round needs this many nodes, and this many usable replies.")
    max_node_examples: int = _server(0, ge=0, description="No node counts for more training examples than this.")
    max_node_test_examples: int = _server(0, ge=0, description="No node counts for more test examples than this.")
    start_timeout: float = _server(60.0, ge=0, description="How long the first round waits for all announced nodes.")
    node_timeout: float = _server(600.0, gt=0, description="How long a round waits for min-train-nodes nodes.")
    round_timeout: float = _server(3600.0, gt=0, description="How long a node may take for its reply.")
    max_attempts: int = _server(5, ge=1, description="How often a round with too few usable replies is tried.")
    resume: str = _server("", description="The run directory to continue.")
    from_round: int = _server(
        0, ge=0, description="With resume: after this round, where the last checkpoint is damaged."
    )

    def rules(self, simulated: bool, max_update_ratio: float | None) -> RoundRules:
        """What a round must come to. `max_update_ratio` is the one given; nodes have a usual one, and 0 takes it away."""
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
            ConfigError: fewer than two, or one twice.
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
    return config, options


def app_fields() -> tuple[str, ...]:
    """The fields of `RunConfig` that an app has a key for; the others mean nothing where clients are Flower's."""
    return tuple(name for name, field in RunConfig.model_fields.items() if marks_of(field).app)


def sent_config(config: RunConfig) -> dict[str, Any]:
    """What the nodes are told of a configuration: all but what is the server's own."""
    own = {name for name, field in RunConfig.model_fields.items() if marks_of(field).reach == "nobody"}
    return config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=own)
