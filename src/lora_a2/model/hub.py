"""The model hub is asked once whether it answers: its client would ask for every file, and repeat each request for half a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from lora_a2.errors import ModelError
from lora_a2.model.names import BUILT_IN, canonical, nearest
from lora_a2.model.packages import PACKAGED

SECONDS = 5.0
"""How long the hub may take to answer."""


@contextmanager
def hub_or_cache(where: str, name: str | None = None) -> Iterator[None]:
    """While a model's files are read: if the hub is out of reach, its cache on this machine is read at once.

    Args:
        where: a folder, which needs no hub, or a hub id.
        name: what the user calls the model.

    Raises:
        ModelError: the hub is out of reach, and the model is not in the cache.
    """
    silence = None if Path(where).is_dir() else _silence(where)
    if silence is None:
        yield
        return
    if not isinstance(try_to_load_from_cache(where, "config.json"), str):
        packages = f"or one that comes as a package ({', '.join(PACKAGED)})"
        other = f"{packages}." if canonical(where) in BUILT_IN else f"or a known one. {nearest(where)}"
        raise ModelError(
            f"Model {name or where!r} is not on this machine, and {silence}: give the folder of a model, {other}"
        )
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _silence(repo: str) -> str | None:
    """Why nothing can be had of the hub; None: it answers, if only that it has no such model."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi().model_info(repo, timeout=SECONDS)
    except (HfHubHTTPError, HFValidationError):
        return None  # what is wrong, the loading will say
    except Exception as error:  # whatever the transport raises
        said = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        return f"{constants.ENDPOINT} cannot be reached ({said})"
    return None
